"""Batches: many slates out of every training sequence, and prompts for decoding."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..layout_higr import SlateQueries
from .encoding import EncodedSequence, TokenLayout


@dataclass
class SlateCollator:
    """Turns training sequences into tokens and slate queries.

    Every history position is the start of a slate: the planner sees the events before it and is asked for the item
    after it. At `num_windows` random positions the rest of the slate is asked for too, each slot knowing the items of
    the slots before it, as at decoding.

    With `whole_lists` the slates are the sequences' real lists (receipts, requests): an item is asked for from the
    events before its list, as at decoding, not from those before itself, and the rest of its slate are other items of
    its list, in random order, because a list's order says nothing.

    Args:
        layout: the tokenizer's token layout.
        slate_size: M.
        max_history: longer sequences are cut to a random run of at most this many events (+ one slate), drawn so that
            every event of a sequence is as likely to be in it as any other, the first and the newest too.
        num_starts: positions a sequence asked for their next item; `None` for all of them.
        num_windows: positions asked for a whole slate.
        shuffle: probability that a window's items stand in random order, so that a slot learns any of the coming
            items (slates are sets to the metric; a log's order inside a session is often arbitrary).
        plan_once_rate: probability that a window is planned without feeding its items back, which trains the
            `plan_once` decoding mode.
        slot_dropout: probability that a single fed-back item is withheld in the other windows.
        wish_rate: probability that a query is told the feedback level its target received, so that decoding can ask
            for one. Needs feedback in the sequences.
        feature_dropout: probability that a whole sequence goes without its feature tokens, so that prompts without
            them work too.
        whole_lists: slates are the sequences' lists. `shuffle` has no part in it, and the shorter a list, the fewer
            slots are asked for.
        last_slate_only: ask for the last slate of every sequence and nothing else, for evaluation.
        seed: of all draws, which depend on it, the epoch and the batch's own rows alone: on no worker, process or
            batch before, so that a resumed run draws what the whole run would have drawn.

    Inputs: a list of [`EncodedSequence`]. Output: `input_ids` and `attention_mask` `[B, T]` and `slate_queries`
    `[B, Q, 6]` (int64), for [`HiGRForSlateGeneration`].
    """

    layout: TokenLayout
    slate_size: int = 5
    max_history: int = 200
    num_starts: int | None = None
    num_windows: int = 4
    shuffle: float = 0.0
    plan_once_rate: float = 0.0
    slot_dropout: float = 0.0
    wish_rate: float = 0.0
    feature_dropout: float = 0.0
    whole_lists: bool = False
    last_slate_only: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.epoch = 0

    def for_evaluation(self) -> SlateCollator:
        """The same, for sequences that end in their target slate, and without any randomness."""
        return replace(
            self,
            shuffle=0.0,
            plan_once_rate=0.0,
            slot_dropout=0.0,
            wish_rate=0.0,
            feature_dropout=0.0,
            last_slate_only=True,
        )

    def set_epoch(self, epoch: int) -> None:
        """Draw differently from here on."""
        self.epoch = epoch

    def num_runs(self, length: int) -> int:
        """How often a sequence of so many events has to be drawn for each of them to be drawn about once."""
        longest = self.max_history + self.slate_size
        return 1 if length <= longest else round((length + longest - 1) / longest)

    def num_targets(self, length: int) -> int:
        """How many items a sequence of so many events is asked for, at most (with lists of M items or more)."""
        starts = min(length, self.max_history + self.slate_size, self.num_starts or length)
        return starts + min(starts, self.num_windows) * (self.slate_size - 1)

    def __call__(self, rows: Sequence[EncodedSequence]) -> dict[str, torch.Tensor]:
        """Collate a batch of sequences."""
        content = zlib.crc32(b"".join(np.ascontiguousarray(row.items).tobytes() for row in rows))
        generator = np.random.default_rng((self.seed, self.epoch, content))
        tokens, queries = [], []
        for row in rows:
            row = self._crop(row, generator)
            queries.append(self._queries(row, generator))
            if self.feature_dropout and generator.random() < self.feature_dropout:
                nothing = np.full(len(row), -1)
                row = replace(row, feedback=nothing, time=nothing)
            tokens.append(np.concatenate([[self.layout.bos], self.layout.tokens(row)]))
        input_ids = _pad(tokens, self.layout.pad)
        packed = _pad(queries, 0)
        packed[..., QUERY["window"]] = np.where(packed[..., QUERY["context"]] > 0, packed[..., QUERY["window"]], -1)
        packed[..., QUERY["target"]] = np.where(packed[..., QUERY["context"]] > 0, packed[..., QUERY["target"]], -1)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy((input_ids != self.layout.pad).astype(np.int64)),
            "slate_queries": torch.from_numpy(packed),
        }

    def _crop(self, row: EncodedSequence, generator: np.random.Generator) -> EncodedSequence:
        longest = self.max_history + self.slate_size
        if len(row) <= longest:
            return row
        # A run may reach over either end of the sequence and is then shorter: of runs that lie inside, hardly any
        # would hold the newest events, which are those that decoding sees.
        start = len(row) - longest if self.last_slate_only else int(generator.integers(1 - longest, len(row)))
        return row[max(start, 0) : start + longest]

    def _queries(self, row: EncodedSequence, generator: np.random.Generator) -> np.ndarray:
        """int64 `[Q, 6]` in the order of `SlateQueries.FIELDS`. Unit 0 is `<bos>`, unit i the i-th event."""
        length, size = len(row), self.slate_size
        begins, ends = row.list_bounds()
        starts = np.arange(1, length + 1)
        if self.last_slate_only:
            first = int(begins[-1]) if self.whole_lists and length else max(length - size, 0)
            starts = starts[first:][:1]
        elif self.num_starts is not None and self.num_starts < length:
            starts = np.sort(generator.choice(starts, self.num_starts, replace=False))
        count = len(starts)
        slot = np.arange(size)
        target = starts[:, None] + slot
        inside = target <= length
        context = starts
        if self.whole_lists:
            context = begins[starts - 1] + 1
            inside = target - starts[:, None] < (ends - begins)[starts - 1, None]
            if not self.last_slate_only:
                target = self._list_targets(starts, begins, ends, generator)
        # Random order inside a window: real slots keep their places before the ones past the sequence's end.
        elif self.shuffle:
            noise = generator.random((count, size)) * (generator.random((count, 1)) < self.shuffle)
            order = np.argsort(np.where(inside, noise, 2.0), axis=1, kind="stable")
            target = np.take_along_axis(target, order, axis=1)
        whole = np.zeros(count, dtype=bool)
        if self.num_windows and count:
            whole[generator.choice(count, min(self.num_windows, count), replace=False)] = True
        asked = inside & (whole[:, None] | (slot == 0))
        previous = np.concatenate([np.full((count, 1), -1), target[:, :-1]], axis=1)
        blind = generator.random((count, 1)) < self.plan_once_rate
        withheld = generator.random((count, size)) < self.slot_dropout
        previous = np.where(blind | withheld, -1, previous)
        wish = np.zeros_like(target)
        if self.wish_rate:
            level = row.feedback[np.clip(target - 1, 0, length - 1)]
            told = (generator.random((count, 1)) < self.wish_rate) & (level >= 0)
            wish = np.where(told, level + self.layout.feature_offset, 0)
        wide = (context[:, None], slot, starts[:, None])
        context, slot, window = (np.broadcast_to(field, target.shape) for field in wide)
        fields = (context, slot, window, previous, target, wish)
        return np.stack([field[asked] for field in fields], axis=-1)

    def _list_targets(
        self, starts: np.ndarray, begins: np.ndarray, ends: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Each start's own event, then others of its list in random order; int64 `[starts, M]` units.

        Slots behind a list's last item hold anything.
        """
        first, size = begins[starts - 1], (ends - begins)[starts - 1]
        # M - 1 of the list's other places without one twice: the smallest of random keys.
        place = np.arange(max(int(size.max(initial=1)), self.slate_size))
        keys = np.where(place < size[:, None], generator.random((len(starts), len(place))), 2.0)
        keys[np.arange(len(starts)), starts - 1 - first] = -1.0
        return first[:, None] + 1 + np.argsort(keys, axis=1, kind="stable")[:, : self.slate_size]


QUERY = {name: position for position, name in enumerate(SlateQueries.FIELDS)}


@dataclass
class PromptCollator:
    """Turns histories into left-padded prompts for `generate`.

    Args:
        layout: the tokenizer's token layout.
        max_history: only the newest so many events are kept.
        wish: feedback level to ask for, `None` for none.
    """

    layout: TokenLayout
    max_history: int = 200
    wish: int | None = None

    def __call__(self, rows: Sequence[EncodedSequence]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, int64 `[B, T]`."""
        prompts = [self.layout.prompt(row[max(len(row) - self.max_history, 0) :], self.wish) for row in rows]
        input_ids = _pad(prompts, self.layout.pad, left=True)
        mask = (input_ids != self.layout.pad).astype(np.int64)
        return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}


def _pad(rows: Sequence[np.ndarray], value: int, left: bool = False) -> np.ndarray:
    """Stack arrays of different lengths, int64 `[B, longest, ...]`."""
    longest = max((len(row) for row in rows), default=0)
    padded = np.full((len(rows), longest, *rows[0].shape[1:]), value, dtype=np.int64)
    for number, row in enumerate(rows):
        if left:
            padded[number, longest - len(row) :] = row
        else:
            padded[number, : len(row)] = row
    return padded
