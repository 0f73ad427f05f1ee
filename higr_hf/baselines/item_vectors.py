"""The control that tells HiGR's item vectors from its decoding: SASRec on them, with no planner and no generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..configuration_higr import HiGRConfig
from ..data.embeddings import training_sequences
from ..layers_higr import HiGRDropout, rotary_table
from ..stages_higr import ContextEncoder, ItemEmbeddings
from .base import Arrays, ScoringBaseline
from .torch_training import TrainingPlan, default_device, padded, runs, train_network, validation_judge

if TYPE_CHECKING:
    from datasets import Dataset


class ItemVectorNetwork(nn.Module):
    """HiGR's context encoder over HiGR's item vectors; the state of an event · the item vectors are the scores.

    Args:
        config: the sizes; planner and generator are not built.
        codes (`LongTensor [N, L]`): semantic IDs of the catalogue.
    """

    def __init__(self, config: HiGRConfig, codes: torch.Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codes", codes)
        self.embeddings, self.encoder = ItemEmbeddings(config), ContextEncoder(config)
        self.dropout = HiGRDropout(config.dropout)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=config.initializer_range)

    def forward(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Item indices `[B, H]`, -1 on the right, to states `[B, H, d]` and the catalogue's vectors `[N, d]`."""
        table = self.embeddings.items(self.codes, torch.arange(len(self.codes), device=self.codes.device))
        units = torch.where(items[..., None] >= 0, nn.functional.embedding(items.clamp(min=0), table), 0)
        positions = torch.arange(items.shape[1], device=items.device)[None]
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        rotary = rotary_table(positions, head_dim, self.config.rope_theta, units.dtype)
        return self.encoder(self.dropout(units), (items >= 0).sum(1), rotary), table


class SASRecItemVectors(ScoringBaseline):
    """SASRec whose item vectors are HiGR's: the sum of an item's code embeddings + an embedding of its own.

    Trained at every position with the cross-entropy over the whole catalogue, on runs of the whole history.

    Args:
        item_ids: the catalogue; the place in it is the item index.
        codebook_sizes: K of every level of the semantic IDs.
        codes: int64 `[N, L]`, the items' semantic IDs; a loaded baseline brings its own.
        hidden_size, intermediate_size, heads, blocks: size of the encoder.
        max_history: newest events that are read.
        dropout: rate.
        **plan: fields of [`TrainingPlan`].

    Raises:
        ValueError: for codes that do not fit catalogue or codebooks, and in `fit` without codes.

    Example:
        >>> baseline = SASRecItemVectors(
        ...     tokenizer.item_ids, codebook_sizes=[4, 4, 4], codes=np.array(tokenizer.codes), epochs=1
        ... )
        >>> baseline.fit(splits["train"]).recommend([[0, 1]], slate_size=2).shape
        (1, 2)
    """

    kind = "sasrec-item-vectors"

    def __init__(
        self,
        item_ids: Sequence[str],
        *,
        codebook_sizes: Sequence[int],
        codes: np.ndarray | None = None,
        hidden_size: int = 64,
        intermediate_size: int = 256,
        heads: int = 2,
        blocks: int = 2,
        max_history: int = 50,
        dropout: float = 0.2,
        **plan: float,
    ) -> None:
        self.plan = TrainingPlan(**plan)
        super().__init__(
            item_ids,
            codebook_sizes=[int(size) for size in codebook_sizes],
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            heads=heads,
            blocks=blocks,
            max_history=max_history,
            dropout=dropout,
            **dataclasses.asdict(self.plan),
        )
        self.config = HiGRConfig(
            codebook_sizes=list(codebook_sizes),
            num_items=self.num_items,
            max_history=max_history,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_attention_heads=heads,
            encoder_layers=blocks,
            dropout=dropout,
        )
        self.config._attn_implementation = "sdpa"
        self.network: ItemVectorNetwork | None = None
        self.codes = None if codes is None else check_codes(codes, self.num_items, self.config.codebook_sizes)

    def fit(self, train: Dataset, validation: Dataset | None = None) -> SASRecItemVectors:
        """Train; with a validation split the best epoch is kept."""
        if self.codes is None:
            raise ValueError("SASRecItemVectors needs the items' semantic IDs: pass `codes`.")
        plan = self.plan
        torch.manual_seed(plan.seed)
        self.network = ItemVectorNetwork(self.config, torch.from_numpy(self.codes)).to(default_device())
        events, lengths = training_sequences(train, self.item_ids)
        sequences = np.split(events, np.cumsum(lengths)[:-1])
        longest = self.config.max_history + 1
        best = train_network(
            self.network,
            lambda epoch: runs(sequences, longest, plan.batch_size, np.random.default_rng((plan.seed, epoch))),
            self._loss,
            plan,
            validation_judge(self, validation, plan),
            self.checkpoint,
        )
        self.history = best.history
        return self

    def _loss(self, batch: np.ndarray) -> torch.Tensor:
        items = torch.from_numpy(batch).to(self.network.codes.device)
        states, table = self.network(items[:, :-1])
        known = items[:, 1:] >= 0
        return nn.functional.cross_entropy(states[known] @ table.T, items[:, 1:][known])

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """See [`ScoringBaseline.scores`]; an empty history is read as no event, and scores alike for everybody."""
        if self.network is None:
            raise RuntimeError("This baseline has not been fitted.")
        items = torch.from_numpy(padded(histories, self.config.max_history)).to(self.network.codes.device)
        if not items.shape[1]:
            items = items.new_full((len(items), 1), -1)
        states, table = self.network.eval()(items)
        last = (items >= 0).sum(1).clamp(min=1) - 1
        return (states[torch.arange(len(items)), last] @ table.T).float().cpu().numpy()

    def num_parameters(self) -> int:
        """Weights of encoder, code embeddings and item embeddings."""
        return 0 if self.network is None else sum(weight.numel() for weight in self.network.parameters())

    def arrays(self) -> Arrays:
        """The network's weights and the codes."""
        if self.network is None:
            raise RuntimeError("This baseline has not been fitted.")
        return {name: value.detach().cpu().numpy() for name, value in self.network.state_dict().items()}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up the weights and the codes."""
        self.codes = check_codes(arrays["codes"], self.num_items, self.config.codebook_sizes)
        self.network = ItemVectorNetwork(self.config, torch.from_numpy(self.codes))
        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.network.to(default_device()).eval()


def check_codes(codes: np.ndarray, num_items: int, codebook_sizes: Sequence[int]) -> np.ndarray:
    """Semantic IDs as int64 `[N, L]`.

    Raises:
        ValueError: for a wrong shape, or a code outside its level, naming the item.
    """
    codes = np.ascontiguousarray(codes, dtype=np.int64)
    if codes.shape != (num_items, len(codebook_sizes)):
        raise ValueError(f"codes have shape {codes.shape}, expected {(num_items, len(codebook_sizes))}.")
    outside = (codes < 0) | (codes >= np.asarray(codebook_sizes))
    if outside.any():
        item, level = np.argwhere(outside)[0].tolist()
        raise ValueError(
            f"Item {item} has code {codes[item, level]} at level {level}, which has {codebook_sizes[level]} codes."
        )
    return codes
