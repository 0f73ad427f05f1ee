"""ListCVAE: a conditional VAE over slates (Jiang et al., "Beyond Greedy Ranking", ICLR 2019, arXiv 1803.01682)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..data.embeddings import training_sequences, training_views
from .base import Arrays, Baseline
from .torch_training import TrainingPlan, default_device, padded, runs, train_network, validation_judge

if TYPE_CHECKING:
    from datasets import Dataset

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class ListCVAENetwork(nn.Module):
    """Encoder, prior and decoder around one latent a slate.

    Args:
        num_items: N.
        slate_size: M.
        factors: d, size of item embeddings and condition.
        hidden_size: width of the MLPs.
        latent_size: size of z.
        dropout: rate on the condition.
    """

    def __init__(
        self, num_items: int, slate_size: int, factors: int, hidden_size: int, latent_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.slate_size, self.factors = slate_size, factors
        # Row 0 stands for no item and stays zero.
        self.embed_items = nn.Embedding(num_items + 1, factors, padding_idx=0)
        self.bias = nn.Parameter(torch.zeros(num_items))
        self.embed_response = nn.Linear(1, factors)
        self.condition = nn.Sequential(nn.Linear(2 * factors, factors), nn.Dropout(dropout))
        self.encoder = _mlp((slate_size + 1) * factors, hidden_size, 2 * latent_size)
        self.prior = _mlp(factors, hidden_size, 2 * latent_size)
        self.decoder = _mlp(latent_size + factors, hidden_size, slate_size * factors)
        nn.init.normal_(self.embed_items.weight, std=0.05)
        with torch.no_grad():
            self.embed_items.weight[0].zero_()

    def conditions(self, histories: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
        """Histories `[B, H]` (-1 for none) and responses float `[B]` in 0..1 to conditions `[B, d]`."""
        count = (histories >= 0).sum(1, keepdim=True).clamp(min=1)
        taste = self.embed_items(histories + 1).sum(1) / count
        return self.condition(torch.cat([taste, self.embed_response(response[:, None])], dim=-1))

    def decode(self, latent: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Latents `[B, z]` and conditions `[B, d]` to the logits of every slot `[B, M, N]`."""
        slots = self.decoder(torch.cat([latent, condition], dim=-1)).unflatten(-1, (self.slate_size, self.factors))
        return slots @ self.embed_items.weight[1:].T + self.bias

    def forward(
        self, histories: torch.Tensor, slates: torch.Tensor, response: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction loss (mean over items) and KL divergence (mean over slates) of slates `[B, M]`."""
        condition = self.conditions(histories, response)
        content = self.embed_items(slates + 1).flatten(1)
        mean, log_variance = self.encoder(torch.cat([content, condition], dim=-1)).chunk(2, dim=-1)
        prior_mean, prior_log_variance = self.prior(condition).chunk(2, dim=-1)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        logits = self.decode(latent, condition)
        known = slates >= 0
        reconstruction = nn.functional.cross_entropy(logits[known], slates[known])
        distance = (mean - prior_mean) ** 2 + log_variance.exp()
        divergence = prior_log_variance - log_variance + distance / prior_log_variance.exp() - 1
        return reconstruction, 0.5 * divergence.sum(-1).mean()


class ListCVAE(Baseline):
    """Writes all M slots at once from one latent, given the history and the response that is wished for.

    The response of a training slate is the share of its items that were effectively viewed; slates are asked for with
    response 1. Where the split has real lists (`basket_splits`) they are the slates, else runs of M events are.

    Args:
        item_ids: the catalogue; the place in it is the item index.
        factors: size of item embeddings and condition.
        hidden_size: width of the MLPs.
        latent_size: size of the latent.
        dropout: rate on the condition.
        kl_weight: β of the divergence.
        max_history: newest events whose mean embedding is the user.
        slates_per_run: slates of a run of `max_history` events that are trained in an epoch.
        **plan: fields of [`TrainingPlan`]; its `slate_size` is the M that is trained.

    Example:
        >>> listcvae = ListCVAE(log.item_ids, factors=8, hidden_size=16, epochs=1).fit(splits["train"])
        >>> listcvae.recommend([[0, 1]], slate_size=5, exclude=[[0, 1]]).shape
        (1, 5)
    """

    kind = "listcvae"

    def __init__(
        self,
        item_ids: Sequence[str],
        *,
        factors: int = 64,
        hidden_size: int = 256,
        latent_size: int = 16,
        dropout: float = 0.2,
        kl_weight: float = 0.1,
        max_history: int = 50,
        slates_per_run: int = 8,
        **plan: float,
    ) -> None:
        self.plan = TrainingPlan(**plan)
        super().__init__(
            item_ids,
            factors=factors,
            hidden_size=hidden_size,
            latent_size=latent_size,
            dropout=dropout,
            kl_weight=kl_weight,
            max_history=max_history,
            slates_per_run=slates_per_run,
            **dataclasses.asdict(self.plan),
        )
        if kl_weight < 0:
            raise ValueError(f"kl_weight must not be negative, got {kl_weight}.")
        self.kl_weight, self.max_history, self.slates_per_run = kl_weight, max_history, slates_per_run
        size = self.plan.slate_size
        with torch.random.fork_rng(devices=[]):  # making or loading one must not disturb the caller's draws
            torch.manual_seed(self.plan.seed)
            network = ListCVAENetwork(self.num_items, size, factors, hidden_size, latent_size, dropout)
        self.network = network.to(default_device())

    def fit(self, train: Dataset, validation: Dataset | None = None) -> ListCVAE:
        """Train on real lists where there are any; with a validation split the best epoch is kept."""
        plan = self.plan
        torch.manual_seed(plan.seed)
        lists = self._lists(train)
        events, lengths = training_sequences(train, self.item_ids)
        # Item and response in one number, so that both are cut alike.
        sequences = np.split(2 * events + training_views(train), np.cumsum(lengths)[:-1])

        def batches(epoch: int) -> Iterator[Batch]:
            generator = np.random.default_rng((plan.seed, epoch))
            return self._batches_of_lists(lists, generator) if lists else self._batches(sequences, generator)

        best = train_network(
            self.network, batches, self._loss, plan, validation_judge(self, validation, plan), self.checkpoint
        )
        self.history = best.history
        return self

    def _lists(self, train: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
        """Every real list of a split: its history's items, and its items with their responses as `runs` has them."""
        if not any(train["target_item_ids"]):
            return []
        index = {item: row for row, item in enumerate(self.item_ids)}
        found = []
        for row in train.select_columns(["history_item_ids", "target_item_ids", "target_views"]):
            history = np.array([index[item] for item in row["history_item_ids"][-self.max_history :]], dtype=np.int64)
            target = np.array([index[item] for item in row["target_item_ids"]], dtype=np.int64)
            found.append((history, 2 * target + np.array(row["target_views"], dtype=np.int64)))
        return found

    def _batches_of_lists(
        self, lists: list[tuple[np.ndarray, np.ndarray]], generator: np.random.Generator
    ) -> Iterator[Batch]:
        order, size = generator.permutation(len(lists)), self.plan.batch_size
        for start in range(0, len(order), size):
            chosen = [lists[number] for number in order[start : start + size]]
            slates = np.full((len(chosen), self.plan.slate_size), -1, dtype=np.int64)
            for row, (_, slate) in enumerate(chosen):
                # A list longer than M is one M-item slate an epoch, another one the next time.
                kept = np.sort(generator.permutation(len(slate))[: slates.shape[1]])
                slates[row, : len(kept)] = slate[kept]
            yield padded([history for history, _ in chosen]), *_split(slates)

    def _batches(self, sequences: Sequence[np.ndarray], generator: np.random.Generator) -> Iterator[Batch]:
        size, longest = self.plan.slate_size, self.max_history
        for batch in runs(sequences, longest + size, self.plan.batch_size, generator):
            count = (batch >= 0).sum(1)
            rows = np.repeat(np.arange(len(batch)), self.slates_per_run)
            start = 1 + (generator.random(len(rows)) * (count[rows] - 1)).astype(np.int64)
            place = start[:, None] + np.arange(-longest, size)
            inside = (place >= 0) & (place < batch.shape[1])
            found = np.where(inside, batch[rows[:, None], place.clip(0, batch.shape[1] - 1)], -1)
            histories = found[:, :longest]
            yield np.where(histories >= 0, histories // 2, -1), *_split(found[:, longest:])

    def _loss(self, batch: Batch) -> torch.Tensor:
        device = self.network.bias.device
        reconstruction, divergence = self.network(*(torch.from_numpy(part).to(device) for part in batch))
        return reconstruction + self.kl_weight * divergence

    @torch.no_grad()
    def recommend(
        self, histories: Sequence[np.ndarray], slate_size: int, exclude: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        """Slots of the prior's mean latent, best item first come; see [`Baseline.recommend`].

        Raises:
            ValueError: for more slots than were trained.
        """
        if slate_size > self.plan.slate_size:
            raise ValueError(f"Slates of {self.plan.slate_size} were trained, {slate_size} are asked for.")
        network, device = self.network.eval(), self.network.bias.device
        slates = [np.empty((0, slate_size), dtype=np.int64)]
        for start in range(0, len(histories), 256):
            rows = slice(start, start + 256)
            items = torch.from_numpy(padded(histories[rows], self.max_history)).to(device)
            condition = network.conditions(items, torch.ones(len(items), device=device))
            latent = network.prior(condition).chunk(2, dim=-1)[0]
            logits = network.decode(latent, condition)[:, :slate_size]
            forbidden = torch.zeros(len(items), self.num_items, dtype=torch.bool, device=device)
            for row, taken in enumerate([] if exclude is None else exclude[rows]):
                forbidden[row, torch.as_tensor(np.asarray(taken, dtype=np.int64), device=device)] = True
            chosen = []
            for slot in range(slate_size):
                best, item = logits[:, slot].masked_fill(forbidden, float("-inf")).max(-1)
                chosen.append(torch.where(best > float("-inf"), item, -1))
                forbidden.scatter_(1, item[:, None], True)
            slates.append(torch.stack(chosen, dim=1).cpu().numpy())
        return np.concatenate(slates)

    def num_parameters(self) -> int:
        """Weights that a recommendation is computed from; the encoder serves training alone."""
        encoder = sum(weight.numel() for weight in self.network.encoder.parameters())
        return sum(weight.numel() for weight in self.network.parameters()) - encoder

    def arrays(self) -> Arrays:
        """The network's weights."""
        return {name: value.detach().cpu().numpy() for name, value in self.network.state_dict().items()}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up the weights."""
        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.network.eval()


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Linear(hidden, outputs))  # fmt: skip


def _split(slates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items int64 `[B, M]`, and the share of each slate's items that were viewed, float32 `[B]`."""
    known = slates >= 0
    share = np.where(known, slates % 2, 0).sum(1) / known.sum(1).clip(min=1)
    return np.where(known, slates // 2, -1), share.astype(np.float32)
