"""TIGER: a T5 that writes the next item's semantic ID (Rajput et al., NeurIPS 2023, arXiv 2305.05065)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from ..catalog_higr import Legality, SIDTrie
from ..data.embeddings import training_sequences
from .base import Arrays, Baseline
from .item_vectors import check_codes
from .torch_training import TrainingPlan, default_device, padded, runs, train_network, validation_judge

if TYPE_CHECKING:
    from datasets import Dataset

PAD = 0
"""Token that pads histories and starts the decoder; the codes come behind it, level after level."""


class TIGER(Baseline):
    """An encoder-decoder over semantic IDs; a slate is the M best items of one beam, constrained to the catalogue.

    Args:
        item_ids: the catalogue; the place in it is the item index.
        codebook_sizes: K of every level, the disambiguation level included.
        codes: int64 `[N, L]`, the items' semantic IDs; a loaded baseline brings its own.
        hidden_size, intermediate_size, heads, head_size: width of the T5.
        encoder_layers, decoder_layers: its depth.
        dropout: rate.
        max_history: newest events that are read.
        targets_per_run: random positions of a run of 2·`max_history` events that are trained in an epoch; 0 for each
            of them once, so that an epoch asks for every event as those of the other systems do.
        num_beams: width of the beam; at least the slate's size is used.
        **plan: fields of [`TrainingPlan`].

    Raises:
        ValueError: for codes that do not fit catalogue or codebooks, and in `fit` without codes.

    Example:
        >>> tiger = TIGER(
        ...     tokenizer.item_ids, codebook_sizes=[4, 4, 4], codes=np.array(tokenizer.codes), hidden_size=16, epochs=1
        ... )
        >>> tiger.fit(splits["train"]).recommend([[0, 1]], slate_size=2).shape
        (1, 2)
    """

    kind = "tiger"

    def __init__(
        self,
        item_ids: Sequence[str],
        *,
        codebook_sizes: Sequence[int],
        codes: np.ndarray | None = None,
        hidden_size: int = 64,
        intermediate_size: int = 256,
        heads: int = 2,
        head_size: int = 32,
        encoder_layers: int = 2,
        decoder_layers: int = 2,
        dropout: float = 0.1,
        max_history: int = 20,
        targets_per_run: int = 2,
        num_beams: int = 20,
        **plan: float,
    ) -> None:
        self.plan = TrainingPlan(**plan)
        super().__init__(
            item_ids,
            codebook_sizes=[int(size) for size in codebook_sizes],
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            heads=heads,
            head_size=head_size,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            dropout=dropout,
            max_history=max_history,
            targets_per_run=targets_per_run,
            num_beams=num_beams,
            **dataclasses.asdict(self.plan),
        )
        self.codebook_sizes = list(codebook_sizes)
        self.max_history, self.targets_per_run, self.num_beams = max_history, targets_per_run, num_beams
        self.config = T5Config(
            vocab_size=1 + sum(codebook_sizes),
            d_model=hidden_size,
            d_ff=intermediate_size,
            d_kv=head_size,
            num_heads=heads,
            num_layers=encoder_layers,
            num_decoder_layers=decoder_layers,
            dropout_rate=dropout,
            pad_token_id=PAD,
            decoder_start_token_id=PAD,
            eos_token_id=None,
        )
        # Token of code 0 of every level.
        self.offsets = np.cumsum([1, *codebook_sizes[:-1]])
        self.network: T5ForConditionalGeneration | None = None
        self.trie: SIDTrie | None = None
        self.codes: np.ndarray | None = None
        if codes is not None:
            self._take(codes)

    def _take(self, codes: np.ndarray) -> None:
        self.codes = check_codes(codes, self.num_items, self.codebook_sizes)
        self.trie = SIDTrie.build(torch.from_numpy(self.codes).to(default_device()), self.codebook_sizes)
        # The row behind the last item stands for no event.
        nothing = np.full((1, len(self.offsets)), PAD)
        self.tokens = torch.from_numpy(np.concatenate([self.codes + self.offsets, nothing])).to(default_device())

    def fit(self, train: Dataset, validation: Dataset | None = None) -> TIGER:
        """Train on random next items of the training sequences; with a validation split the best epoch is kept."""
        if self.codes is None:
            raise ValueError("TIGER needs the items' semantic IDs: pass `codes`.")
        plan = self.plan
        torch.manual_seed(plan.seed)
        self.network = T5ForConditionalGeneration(self.config).to(default_device())
        events, lengths = training_sequences(train, self.item_ids)
        sequences = np.split(events, np.cumsum(lengths)[:-1])
        best = train_network(
            self.network,
            lambda epoch: self._batches(sequences, np.random.default_rng((plan.seed, epoch))),
            self._loss,
            plan,
            validation_judge(self, validation, plan),
            self.checkpoint,
        )
        self.history = best.history
        return self

    def _batches(
        self, sequences: Sequence[np.ndarray], generator: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Histories int64 `[B, H]`, -1 on the left and at most `max_history` long, and their next items `[B]`."""
        # Twice as long as a history, so that half of a run's targets have a whole one.
        for batch in runs(sequences, 2 * self.max_history + 1, self.plan.batch_size, generator):
            rows, target = self._targets((batch >= 0).sum(1), generator)
            place = target[:, None] + np.arange(-self.max_history, 0)
            histories = np.where(place >= 0, batch[rows[:, None], place.clip(min=0)], -1)
            shortest = self.max_history - min(int(target.max()), self.max_history)
            yield histories[:, shortest:], batch[rows, target]

    def _targets(self, count: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows and positions int64 `[R]` of what is asked for in runs of `count` events, position 0 never."""
        if not self.targets_per_run:
            rows, before = np.nonzero(np.arange(1, count.max()) < count[:, None])
            return rows, before + 1
        rows = np.repeat(np.arange(len(count)), self.targets_per_run)
        return rows, 1 + (generator.random(len(rows)) * (count[rows] - 1)).astype(np.int64)

    def _loss(self, batch: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        histories, targets = (torch.from_numpy(part).to(self.tokens.device) for part in batch)
        tokens = self.tokens[histories].flatten(1)
        return self.network(input_ids=tokens, attention_mask=tokens != PAD, labels=self.tokens[targets]).loss

    @torch.no_grad()
    def recommend(
        self, histories: Sequence[np.ndarray], slate_size: int, exclude: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        """The M best items of a beam over all levels; see [`Baseline.recommend`]."""
        if self.network is None:
            raise RuntimeError("This baseline has not been fitted.")
        self.network.eval()
        slates = [np.empty((0, slate_size), dtype=np.int64)]
        for start in range(0, len(histories), 128):
            rows = slice(start, start + 128)
            forbidden = None if exclude is None else torch.from_numpy(padded(exclude[rows])).to(self.tokens.device)
            slates.append(self._beam(padded(histories[rows], self.max_history), slate_size, forbidden))
        return np.concatenate(slates)

    def _beam(self, histories: np.ndarray, slate_size: int, exclude: torch.Tensor | None) -> np.ndarray:
        batch, device = len(histories), self.tokens.device
        tokens = self.tokens[torch.from_numpy(histories).to(device)].flatten(1)
        if not tokens.shape[1]:
            tokens = tokens.new_full((batch, 1), PAD)
        mask = tokens != PAD
        mask[:, 0] |= ~mask.any(1)  # attention over nothing is not defined: an empty history is one padding token
        encoded = self.network.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        legal = Legality(self.trie, batch, excluded=exclude)
        width = max(self.num_beams, slate_size)
        nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)
        totals = torch.zeros(batch, 1, device=device)
        written = torch.full((batch, 1, 1), PAD, device=device)
        for depth, (offset, size) in enumerate(zip(self.offsets.tolist(), self.codebook_sizes, strict=True)):
            beams = written.shape[1]
            logits = self.network(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded.repeat_interleave(beams, 0)),
                attention_mask=mask.repeat_interleave(beams, 0),
                decoder_input_ids=written.flatten(0, 1),
                use_cache=False,
            ).logits[:, -1, offset : offset + size]
            log_probs = logits.float().log_softmax(-1).unflatten(0, (batch, beams))
            children, exists = legal.children(depth, nodes)
            code = self.trie.node_code[depth][children]
            grown = (totals[..., None] + log_probs.gather(-1, code)).masked_fill(~exists, float("-inf")).flatten(1)
            totals, choice = grown.topk(min(width, grown.shape[1]), dim=-1)
            nodes = children.flatten(1).gather(1, choice)
            before = written.gather(1, (choice // children.shape[-1])[..., None].expand(-1, -1, depth + 1))
            newest = code.flatten(1).gather(1, choice) + offset
            written = torch.cat([before, newest[..., None]], dim=2)
        # Semantic IDs are unique: a node of the last depth is its item's rank.
        items = torch.where(totals > float("-inf"), self.trie.order[nodes], -1)[:, :slate_size].cpu().numpy()
        return np.pad(items, ((0, 0), (0, slate_size - items.shape[1])), constant_values=-1)

    def num_parameters(self) -> int:
        """Weights of the T5."""
        return 0 if self.network is None else self.network.num_parameters()

    def arrays(self) -> Arrays:
        """The network's weights, tied ones once, and the codes."""
        if self.network is None:
            raise RuntimeError("This baseline has not been fitted.")
        weights = {name: value.detach().cpu().numpy() for name, value in self.network.named_parameters()}
        return {**{f"network.{name}": array for name, array in weights.items()}, "codes": self.codes}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up the weights and the codes."""
        self._take(arrays["codes"])
        self.network = T5ForConditionalGeneration(self.config)
        own = dict(self.network.named_parameters())
        if {f"network.{name}" for name in own} != arrays.keys() - {"codes"}:
            raise ValueError("A saved tiger does not hold the weights its settings ask for: fit and save it again.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(torch.from_numpy(arrays[f"network.{name}"]))
        self.network.to(default_device()).eval()
