"""`fit_semantic_ids`: from item embeddings to one semantic ID an item, with any of the three quantisers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from higr_hf.configuration_crq_vae import CRQVAEConfig
from higr_hf.modeling_crq_vae import CRQVAEModel
from higr_hf.semantic_ids.checkpoint import load_checkpoint, save_checkpoint, settings_fingerprint
from higr_hf.semantic_ids.collisions import COLLISION_RULES, resolve_collisions
from higr_hf.semantic_ids.metrics import residual_norms, tokenizer_metrics
from higr_hf.semantic_ids.positives import _check_table, cosine_neighbours


@dataclass(frozen=True)
class SemanticIDs:
    """The semantic IDs of a catalogue and the quantiser that made them.

    Attributes:
        codes (int64 `[N, L]`): distinct semantic IDs, after the collision rule.
        raw_codes (int64 `[N, D]`): what the quantiser says; items may share them.
        codebook_sizes (`tuple[int, ...]`): size of each of the L levels.
        model ([`CRQVAEModel`]): the fitted quantiser; `assign_new` needs it for items that join later.
        collision_rule (`str`): how `codes` came from `raw_codes`.
        metrics (`dict[str, float]`): of the raw codes; those that need categories are there if they were given.
        history (`list[dict[str, float]]`): the losses of every epoch.
    """

    codes: np.ndarray
    raw_codes: np.ndarray
    codebook_sizes: tuple[int, ...]
    model: CRQVAEModel
    collision_rule: str
    metrics: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class FitSettings:
    """How a quantiser is trained; the losses' own settings are fields of [`CRQVAEConfig`].

    Attributes:
        epochs (`int`, *optional*): passes over the catalogue with quantisation; by default 90, but no more than
            make 3,000 steps.
        warmup_epochs (`int`): passes before it that train the auto-encoder alone, so that k-means starts the codebooks
            on latents that mean something.
        batch_size (`int`): most items a step.
        learning_rate (`float`): of AdamW; falls to 0 along a half cosine.
        weight_decay (`float`): of AdamW.
        max_grad_norm (`float`): the gradient is cut to this norm. The contrastive loss on a residual has a gradient of
            1/‖r‖; uncut, one short residual can throw the encoder where it does not come back from.
        revive_every (`int`): epochs between two looks for dead codes, in the first half of the training; 0: never.
        refit_levels (`int`, *optional*): how many of the last levels are fitted again by k-means when training is
            over; by default all of them: the latents have moved, and fresh codebooks fit them better.
    """

    epochs: int | None = None
    warmup_epochs: int = 10
    batch_size: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    revive_every: int = 10
    refit_levels: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "warmup_epochs", "revive_every", "refit_levels"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}.")
        for name in ("batch_size", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, got {self.weight_decay}.")


def default_codebook_sizes(num_items: int, num_levels: int = 3) -> tuple[int, ...]:
    """K of every level for a catalogue: the power of two nearest to 2√N, within 4..1024.

    Two levels then write about four prefixes an item: few items share one, so that the last level can tell them apart
    (raw collisions of one percent, where √N gives three to nine), and those that do share one are close.

    Example:

    ```python
    >>> default_codebook_sizes(3706)
    (128, 128, 128)

    ```
    """
    return (min(1024, max(4, 2 ** round(math.log2(2 * math.sqrt(num_items))))),) * num_levels


def fit_semantic_ids(
    embeddings: np.ndarray | torch.Tensor,
    *,
    method: str = "crq-vae",
    codebook_sizes: Sequence[int] | None = None,
    positives: np.ndarray | None = None,
    categories: Sequence[Sequence[str]] | None = None,
    collision_rule: str = "nearest-free",
    extra_capacity: int | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 50,
    device: str | torch.device = "cpu",
    progress: bool = True,
    **settings: Any,
) -> SemanticIDs:
    r"""Fit a quantiser to a catalogue and give every item a semantic ID of its own.

    On the CPU the same inputs and seed give the same semantic IDs.

    Args:
        embeddings (float `[N, E]`): one row an item.
        method (`str`): `"crq-vae"`, `"rq-vae"` or `"rq-kmeans"`.
        codebook_sizes (sequence of `int`, *optional*): K of every level; by default [`default_codebook_sizes`].
        positives (int64 `[N, P]`, *optional*): item indices of each item's positives, -1 where there are no more; by
            default the items with a cosine of at least 0.8, and in any case the three nearest. Only CRQ-VAE uses them.
        categories (*optional*): the categories of every item, for the metrics only: no quantiser sees them.
        collision_rule (`str`): `"nearest-free"` or `"extra-token"`, see [`resolve_collisions`].
        extra_capacity (`int`, *optional*): size of the extra level under `"extra-token"`.
        seed (`int`): of the weights, the k-means, the order of items and the draws of positives.
        config (mapping, *optional*): more fields of [`CRQVAEConfig`], e.g. `{"latent_size": 32}`.
        checkpoint_dir (path, *optional*): where the training is kept every `checkpoint_every` epochs and taken up
            again from; the curve then continues as if it had never stopped.
        checkpoint_every (`int`): epochs between two checkpoints.
        device (`str`): where to train.
        progress (`bool`): show a bar.
        **settings: fields of [`FitSettings`], e.g. `epochs=100`.

    Returns:
        [`SemanticIDs`].

    Raises:
        ValueError: for NaN embeddings (naming the row), a catalogue that does not fit the codebooks, or a checkpoint
            of another training.

    Example:

    ```python
    >>> import numpy as np
    >>> embeddings = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
    >>> sids = fit_semantic_ids(embeddings, method="rq-kmeans", codebook_sizes=(4, 4, 4), progress=False)
    >>> sids.codes.shape, len({tuple(code) for code in sids.codes})
    ((40, 3), 40)

    ```
    """
    x = torch.as_tensor(np.asarray(embeddings), dtype=torch.float32).to(device)
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"embeddings must have the shape [N >= 1, E >= 1], got {list(x.shape)}.")
    plan = _with_epochs(FitSettings(**settings), len(x))
    sizes = default_codebook_sizes(len(x)) if codebook_sizes is None else tuple(codebook_sizes)
    if collision_rule not in COLLISION_RULES:
        raise ValueError(f"Unknown collision rule {collision_rule!r}; choose one of {COLLISION_RULES}.")
    if collision_rule == "nearest-free" and len(x) > math.prod(sizes):
        # Said before the training rather than after it.
        raise ValueError(
            f"{len(x)} items do not fit into the {math.prod(sizes)} semantic IDs that codebook_sizes={list(sizes)} "
            'can write: use larger codebooks, more levels, or collision_rule="extra-token".'
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model_config = CRQVAEConfig.for_method(
            method, input_size=x.shape[1], codebook_sizes=list(sizes), **dict(config or {})
        )
        model = CRQVAEModel(model_config).to(device)
    model.fit_standardization(x)
    history: list[dict[str, float]] = []
    if model.config.autoencoder:
        table = _positives(model.config, positives, x)
        trainer = _Trainer(model, x, table, plan, seed)
        history = trainer.run(checkpoint_dir, checkpoint_every, progress)
        refit = len(sizes) if plan.refit_levels is None else min(plan.refit_levels, len(sizes))
        if refit:
            model.init_codebooks(x, seed=seed, first_level=len(sizes) - refit)
    else:
        model.init_codebooks(x, seed=seed)
    model.eval()
    raw_codes = model.encode(x).cpu().numpy()
    codes, level_sizes = resolve_collisions(model, x, raw_codes, rule=collision_rule, extra_capacity=extra_capacity)
    metrics = tokenizer_metrics(raw_codes, sizes, categories=categories, embeddings=x.cpu().numpy())
    metrics |= {f"residual_norm_{level + 1}": norm for level, norm in enumerate(residual_norms(model, x))}
    metrics["moved"] = float((codes[:, : len(sizes)] != raw_codes).any(1).mean())
    return SemanticIDs(codes, raw_codes, tuple(level_sizes), model.cpu(), collision_rule, metrics, history)


def _with_epochs(plan: FitSettings, num_items: int) -> FitSettings:
    if plan.epochs is not None:
        return plan
    steps = math.ceil(num_items / plan.batch_size)
    return replace(plan, epochs=min(90, math.ceil(3000 / steps)))


def _positives(config: CRQVAEConfig, positives: np.ndarray | None, x: torch.Tensor) -> torch.Tensor | None:
    if config.contrastive_weight == 0 or config.num_levels < 2:
        return None
    if positives is None:
        positives = cosine_neighbours(x.cpu().numpy(), threshold=config.false_negative_threshold, min_neighbours=3)
    _check_table(np.asarray(positives), len(x))
    return torch.as_tensor(np.asarray(positives), dtype=torch.int64, device=x.device)


class _Trainer:
    """The training loop; every draw is a function of (seed, epoch), so a resumed run needs no generator's state."""

    def __init__(
        self, model: CRQVAEModel, x: torch.Tensor, positives: torch.Tensor | None, plan: FitSettings, seed: int
    ) -> None:
        self.model, self.x, self.positives, self.plan, self.seed = model, x, positives, plan, seed
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        self.total = plan.warmup_epochs + plan.epochs
        self.history: list[dict[str, float]] = []

    def run(
        self, checkpoint_dir: str | os.PathLike[str] | None, checkpoint_every: int, progress: bool
    ) -> list[dict[str, float]]:
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        fingerprint = settings_fingerprint(self.model.config, self.plan, self.seed, self.x, self.positives)
        if folder is not None and folder.exists():
            self.history = load_checkpoint(folder, self.model, self.optimizer, fingerprint)
        self.model.train()
        bar = tqdm(
            range(len(self.history), self.total),
            desc=f"fitting {self.model.config.method}",
            initial=len(self.history),
            total=self.total,
            disable=not progress,
            unit="epoch",
        )
        for epoch in bar:
            self.history.append(self._epoch(epoch))
            bar.set_postfix(loss=f"{self.history[-1]['loss']:.4f}")
            if folder is not None and (len(self.history) % checkpoint_every == 0 or len(self.history) == self.total):
                save_checkpoint(folder, self.model, self.optimizer, self.history, fingerprint)
        return self.history

    def _epoch(self, epoch: int) -> dict[str, float]:
        plan, quantise = self.plan, epoch >= self.plan.warmup_epochs
        if epoch == plan.warmup_epochs:
            self.model.init_codebooks(self.x, seed=self.seed)
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.total))
        order = torch.randperm(len(self.x), generator=draw).to(self.x.device)
        # Batches of equal size: a last batch of two items would be a contrastive loss over two items.
        batches = order.tensor_split(max(1, math.ceil(len(order) / plan.batch_size)))
        usage = [torch.zeros(len(codebook), dtype=torch.int64) for codebook in self.model.quantizer.codebooks]
        sums: dict[str, float] = {}
        for batch in batches:
            losses = self._step(batch, quantise, draw, usage)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value * len(batch) / len(order)
        record = {"epoch": float(epoch + 1), "learning_rate": self.optimizer.param_groups[0]["lr"], **sums}
        if quantise:
            record["dead_codes"] = float(sum(int((counts == 0).sum()) for counts in usage))
            done = epoch + 1 - plan.warmup_epochs
            if plan.revive_every and done % plan.revive_every == 0 and done <= plan.epochs // 2:
                self.model.revive_dead_codes(self.x, usage, seed=self.seed + epoch)
        return record

    def _step(
        self, batch: torch.Tensor, quantise: bool, draw: torch.Generator, usage: list[torch.Tensor]
    ) -> dict[str, float]:
        x = self.x[batch]
        if not quantise:
            loss = self.model.reconstruction_without_quantization(x)
            losses = {"loss": loss, "reconstruction_loss": loss}
        else:
            output = self.model(x, *self._draw_positives(batch, draw))
            for level, counts in enumerate(usage):
                counts += torch.bincount(output.codes[:, level], minlength=len(counts)).cpu()
            losses = {name: value for name, value in output.items() if name.endswith("loss") and value is not None}
        if not torch.isfinite(losses["loss"]):
            raise ValueError(
                f"The loss became {losses['loss'].item()} in epoch {len(self.history) + 1}: lower the learning_rate "
                f"({self.plan.learning_rate}) or check the embeddings for huge values."
            )
        self.optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.max_grad_norm)
        self.optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    def _draw_positives(self, batch: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor | None, ...]:
        if self.positives is None or self.positives.shape[1] == 0:
            return None, None
        options = self.positives[batch]
        valid = options >= 0
        scores = torch.rand(options.shape, generator=draw).to(options.device).masked_fill(~valid, -1)
        picked = options.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
        has_positive = valid.any(1)
        return self.x[torch.where(has_positive, picked, batch)], has_positive
