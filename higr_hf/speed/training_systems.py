"""The models whose training is timed: HiGR and the flat decoder on the same batches of slates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from ..architectures import architecture
from ..configuration_higr import HiGRConfig
from ..data.collators import SlateCollator
from ..data.encoding import EncodedSequence, TokenLayout
from .systems import Shape, random_codes
from .training_work import training_work

SYSTEMS = {"flat": "onerec", "slates": "higr", "slates, catalogue prior": "higr"}
"""What is trained -> the benchmark's system that it belongs to; the first is what the others are held against."""


@dataclass(frozen=True)
class TrainingShape:
    """What is trained on.

    Attributes:
        preset: size of the models.
        batch: B, sequences a step.
        num_items: N, catalogue.
        codebook_size: K, codes of each of the three levels.
        slate_size: M.
        history: events a sequence has before its last slate.
        num_starts, num_windows: see [`SlateCollator`].
    """

    preset: str = "tiny"
    batch: int = 64
    num_items: int = 3706
    codebook_size: int = 128
    slate_size: int = 5
    history: int = 50
    num_starts: int = 48
    num_windows: int = 4

    def __str__(self) -> str:
        return (
            f"training {self.preset}, batch {self.batch}, {self.num_items} items of {self.codebook_size}x3 codes, "
            f"{self.slate_size} slots, history {self.history}, {self.num_starts} starts, {self.num_windows} windows"
        )


class TrainingBench:
    """Models of one shape, their optimisers, and one random batch for all of them.

    Args:
        shape: what is trained on.
        dtype: of the matrix products; any but float32 by autocasting, as `Trainer` does it.
        device: where.
        seed: of weights, catalogue and sequences.

    Example:
        >>> shape = TrainingShape(batch=2, num_items=50, codebook_size=4, history=6, num_starts=3, num_windows=1)
        >>> bench = TrainingBench(shape)
        >>> losses = [bench.step("flat").item() for _ in range(2)]
    """

    def __init__(
        self, shape: TrainingShape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
    ) -> None:
        self.shape, self.dtype, self.device, self.seed = shape, dtype, torch.device(device), seed
        self.codes = random_codes(Shape(num_items=shape.num_items, codebook_size=shape.codebook_size), seed)
        config = self.config("flat")
        layout = TokenLayout(self.codes.numpy(), config.level_offsets, config.feature_offset, 0)
        self.collator = SlateCollator(
            layout,
            slate_size=shape.slate_size,
            max_history=shape.history,
            num_starts=shape.num_starts,
            num_windows=shape.num_windows,
            plan_once_rate=0.5,
            seed=seed,
        )
        random, length = np.random.default_rng(seed), shape.history + shape.slate_size
        nothing = np.full(length, -1)
        self.rows = [
            EncodedSequence(random.integers(shape.num_items, size=length), nothing, nothing)
            for _ in range(shape.batch)
        ]
        self.batch = {name: tensor.to(self.device) for name, tensor in self.collator(self.rows).items()}
        self.targets = int((self.batch["slate_queries"][..., 4] >= 0).sum())

    def config(self, system: str) -> HiGRConfig:
        """The configuration of a system, as the recipes for MovieLens have it."""
        shape = self.shape
        return architecture(SYSTEMS[system])[0].from_preset(
            shape.preset,
            codebook_sizes=[shape.codebook_size] * 3,
            num_items=shape.num_items,
            slate_size=shape.slate_size,
            max_history=shape.history,
            dropout=0.2,
            dense_head=False,
            catalog_prior="prior" in system,
        )

    @functools.cache  # noqa: B019 - a bench and its models live and die together
    def model(self, system: str) -> PreTrainedModel:
        """The model of a system, in training mode."""
        torch.manual_seed(self.seed)
        model = architecture(SYSTEMS[system])[1](self.config(system)).to(self.device)
        model.set_catalog(self.codes.to(self.device))
        return model.train()

    @functools.cache  # noqa: B019
    def _optimizer(self, system: str) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model(system).parameters(), lr=1e-3, weight_decay=0.01, fused=True)

    def step(self, system: str) -> torch.Tensor:
        """One step on the batch, from its tensors to new weights; the loss before it."""
        model, optimizer = self.model(system), self._optimizer(system)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = model(**self.batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def calls(self) -> dict[str, Callable[[], object]]:
        """What is timed: a step of every system, and making the batch."""
        steps = {system: functools.partial(self.step, system) for system in SYSTEMS}
        return {**steps, "collate": functools.partial(self.collator, self.rows)}

    def work(self, system: str) -> int:
        """Floating-point operations of a step."""
        return training_work(
            self.config(system),
            batch=self.shape.batch,
            units=self.shape.history + self.shape.slate_size + 1,
            queries=self.batch["slate_queries"].shape[1],
            flat=system == "flat",
        )


__all__ = ["SYSTEMS", "TrainingBench", "TrainingShape"]
