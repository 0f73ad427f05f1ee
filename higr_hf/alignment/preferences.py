"""Slate preferences from logged feedback: chosen and rejected slates of users' training sequences.

The chosen slate y+ is a run of M engaged items, by descending feedback. There are three ways to a rejected slate y-
(HiGR, arXiv 2512.24787, the alignment section): `ranking` is a permutation of y+, `interest` replaces items by ones
the user disliked, `diversity` fills the slate with look-alikes of its first item. A fourth is ours: `on_policy` is
what the starting model recommends in place of y+.

Leak rule: everything comes from rows of the train split. A prompt holds the events before the slate's earliest event
and nothing after it. Negative feedback may be of any time up to the end of the training sequence, so also later than
the prompt: it labels a slate, it is no input. Nothing of the validation or test slates is ever read.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.encoding import FeatureEdges
from .pairs import (
    ALL_OBJECTIVES,
    DIVERSITY,
    INTEREST,
    NEGATIVE_CHOICES,
    OBJECTIVES,
    ON_POLICY,
    PERMUTATIONS,
    RANKING,
    NoPair,
    Window,
    cut_windows,
    reject_diversity,
    reject_interest,
    reject_ranking,
)
from .rendering import PreferenceError, _described, render

if TYPE_CHECKING:
    from datasets import Dataset

    from ..tokenization_higr import HiGRTokenizer

POSITIVES = ("engaged", "views")

_RECOMMENDED_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """What is paired with what.

    Args:
        slate_size: M.
        objectives: objective -> share of the slates that get a pair of it, 0 to 1; HiGR's three by default.
        share: share of the users who give pairs, drawn once (the paper takes 3 %).
        windows: slates a user, the newest first.
        positives: what may stand in a chosen slate: every `engaged` event, or effective `views` only.
        min_history: events that must stand before a slate.
        permutation: hardness of `ranking`: `random`, `swap` (hard) or `reverse` (easy).
        swaps: hardness of `interest`: items replaced at most, `None` for all.
        negatives: which negatives `interest` takes: `random`, or the ones most `similar` to what they replace.
        unseen_only: only take negatives that the history does not hold. A model that never recommends an item again
            learns little from rejecting one it cannot recommend; those outside the history come first in any case.
        skip_neighbours: hardness of `diversity`: nearest neighbours passed over.
        seed: of all draws.

    Raises:
        PreferenceError: for a value that cannot be used.
    """

    slate_size: int = 5
    objectives: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(OBJECTIVES, 1.0))
    share: float = 1.0
    windows: int = 1
    positives: str = "engaged"
    min_history: int = 1
    permutation: str = "random"
    swaps: int | None = None
    negatives: str = "random"
    unseen_only: bool = False
    skip_neighbours: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in self.objectives.items():
            if name not in ALL_OBJECTIVES:
                raise PreferenceError(f"there is no objective {name!r}: there are {list(ALL_OBJECTIVES)}")
            if not 0 <= value <= 1:
                raise PreferenceError(f"the share of objective {name!r} must lie between 0 and 1, got {value}")
        if not any(self.objectives.values()):
            raise PreferenceError(f"no objective has a share above 0: give one of {list(ALL_OBJECTIVES)} one")
        if not 0 < self.share <= 1:
            raise PreferenceError(f"share must lie above 0 and up to 1, got {self.share}")
        for name, lowest in (
            ("slate_size", 2),  # one item has no order and no neighbours
            ("windows", 1),
            ("min_history", 0),
            ("skip_neighbours", 0),
            ("swaps", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise PreferenceError(f"{name} must be at least {lowest}, got {value}")
        for name, known in (
            ("positives", POSITIVES),
            ("permutation", PERMUTATIONS),
            ("negatives", NEGATIVE_CHOICES),
        ):
            if getattr(self, name) not in known:
                raise PreferenceError(f"{name} must be one of {list(known)}, got {getattr(self, name)!r}")

    def needs_vectors(self) -> bool:
        """Whether item embeddings are needed."""
        return bool(self.objectives.get(DIVERSITY)) or (
            bool(self.objectives.get(INTEREST)) and self.negatives == "similar"
        )


def build_preferences(
    train: Dataset,
    tokenizer: HiGRTokenizer,
    settings: PreferenceSettings | None = None,
    *,
    embeddings: np.ndarray | None = None,
    edges: FeatureEdges | None = None,
    max_history: int | None = None,
    wish: int | None = None,
    recommend: Callable[[Mapping[str, Any]], np.ndarray] | None = None,
) -> Dataset:
    """Pair the slates of a train split.

    Args:
        train: the train split of `leave_last_out` or `basket_splits`. `history_feedback` orders a slate (without it,
            effective views come first), `history_negatives` gives the disliked items.
        tokenizer: whose items and texts are used.
        settings: see [`PreferenceSettings`].
        embeddings: float `[N, E]` in the tokenizer's item order; for `diversity` and for `similar` negatives.
        edges, max_history, wish: see [`render`]; those of the model that is aligned.
        recommend: for `on_policy`, the starting model as a `SlateRecommender` of M items.

    Returns:
        One row a pair: `user_id`, `objective`, `history_item_ids` (and `history_feedback`, `history_timestamps` where
        the split has them), `chosen_item_ids`, `rejected_item_ids`, `prompt`, `chosen`, `rejected`. Its description
        holds the settings, the counts of pairs, and per objective why users have none: see [`preference_report`].

    Raises:
        PreferenceError: for missing columns, embeddings that do not fit, or an objective that no user has a pair for.
        UnknownItemError: for an item that is not in the tokenizer's catalogue.

    Example:
        >>> pairs = build_preferences(splits["train"], tokenizer, embeddings=vectors)
        >>> preference_report(pairs)["pairs"]
        {'ranking': ..., 'interest': ..., 'diversity': ...}
    """
    from datasets import Dataset

    settings = settings or PreferenceSettings()
    wanted = [name for name in ALL_OBJECTIVES if settings.objectives.get(name)]
    _check_columns(train, settings, wanted)
    if ON_POLICY in wanted and recommend is None:
        raise PreferenceError("the objective 'on_policy' rejects what a model recommends: pass it as `recommend`")
    vectors = _unit_rows(embeddings, tokenizer) if settings.needs_vectors() else None
    builder = _Builder(settings, wanted, tokenizer, vectors)
    generator = np.random.default_rng(settings.seed)
    users = np.sort(generator.permutation(len(train))[: max(1, round(settings.share * len(train)))])
    for row in train.select(users):
        builder.add(row)
    if builder.waiting:
        builder.add_recommended(recommend)
    empty = [name for name in wanted if not builder.pairs[name]]
    if empty:
        reasons = ", ".join(f"{reason} ({count} users)" for reason, count in builder.reasons[empty[0]].most_common(3))
        raise PreferenceError(
            f"no user has a pair for the objective {empty[0]!r}: {reasons}. Give it the share 0, or take other "
            "positives, more windows or a log with such feedback"
        )
    dataset = Dataset.from_list(builder.rows)
    dataset = _described(
        dataset,
        {
            "settings": dataclasses.asdict(settings),
            "users": len(users),
            "pairs": dict(builder.pairs),
            "users_without_a_pair": {name: dict(builder.reasons[name]) for name in wanted},
            "users_without_any_pair": builder.without_any,
            "licence": train.info.license,
        },
    )
    return render(dataset, tokenizer, edges=edges, max_history=max_history, wish=wish)


class _Builder:
    """Collects rows, and the reasons why users have none."""

    def __init__(
        self, settings: PreferenceSettings, wanted: list[str], tokenizer: HiGRTokenizer, vectors: np.ndarray | None
    ) -> None:
        self.settings, self.wanted, self.tokenizer, self.vectors = settings, wanted, tokenizer, vectors
        self.active = np.asarray(tokenizer.active, dtype=bool)
        self.generator = np.random.default_rng([settings.seed, 1])
        self.rows: list[dict[str, Any]] = []
        self.pairs: Counter[str] = Counter()
        self.reasons: dict[str, Counter[str]] = {name: Counter() for name in wanted}
        self.without_any = 0
        self.waiting: list[tuple[Mapping[str, Any], Window, np.ndarray]] = []  # for a recommended slate

    def add(self, row: Mapping[str, Any]) -> None:
        """All pairs of one user."""
        settings = self.settings
        items = self.tokenizer.items_to_indices(row["history_item_ids"])
        views = np.asarray(row.get("history_views", [True] * len(items)), dtype=bool)
        feedback = np.asarray(row.get("history_feedback", views), dtype=np.float64)
        positive = self.active[items] & (views if settings.positives == "views" else True)
        windows = cut_windows(items, feedback, positive, settings.slate_size, settings.windows)
        windows = [window for window in windows if window.start >= settings.min_history]
        negatives = self.tokenizer.items_to_indices(row.get("history_negatives") or [], on_unknown="skip")
        negatives = negatives[(negatives >= 0) & self.active[negatives]]
        before = len(self.rows) + len(self.waiting)
        for name in self.wanted:
            reason = "too few events" if not windows else "left out by its share"
            found = False
            for window in windows:
                if self.generator.random() >= settings.objectives[name]:
                    continue
                if name == ON_POLICY:
                    self.waiting.append((row, window, items))
                    found = True
                    continue
                try:
                    rejected = self._reject(name, window, items[: window.start], negatives)
                except NoPair as error:
                    reason = str(error)
                    continue
                self._append(name, row, window, rejected)
                found = True
            if not found:
                self.reasons[name][reason] += 1
        self.without_any += len(self.rows) + len(self.waiting) == before

    def add_recommended(self, recommend: Callable[[Mapping[str, Any]], np.ndarray]) -> None:
        """Pairs against what a model recommends after the same history, many users at a time.

        An item that the user engaged with anywhere in the training sequence is no mistake and cannot be recommended.
        """
        for first in range(0, len(self.waiting), _RECOMMENDED_AT_ONCE):
            waiting = self.waiting[first : first + _RECOMMENDED_AT_ONCE]
            batch: dict[str, list] = {
                "history_indices": [items[: window.start] for _, window, items in waiting],
                "exclude_indices": [np.unique(items) for _, _, items in waiting],
            }
            for column in ("history_feedback", "history_timestamps"):
                if column in waiting[0][0]:
                    batch[column] = [row[column][: window.start] for row, window, _ in waiting]
            for (row, window, _), slate in zip(waiting, np.asarray(recommend(batch)), strict=True):
                if len(slate) != len(window.items) or (slate < 0).any():
                    raise PreferenceError(
                        f"user {row['user_id']!r}: `recommend` gave the slate {slate.tolist()}, expected "
                        f"{len(window.items)} items: give it the pairs' slate_size, and a catalogue that has as many"
                    )
                self._append(ON_POLICY, row, window, slate)

    def _reject(self, name: str, window: Window, history: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        settings = self.settings
        if name == RANKING:
            return reject_ranking(window, self.generator, settings.permutation)
        if name == DIVERSITY:
            return reject_diversity(window, history, self.vectors, self.active, settings.skip_neighbours)
        negatives = self.generator.permutation(negatives)
        seen = np.isin(negatives, history)
        wanted = negatives[~seen] if settings.unseen_only else np.concatenate([negatives[~seen], negatives[seen]])
        vectors = self.vectors if settings.negatives == "similar" else None
        return reject_interest(window, wanted, self.generator, swaps=settings.swaps, vectors=vectors)

    def _append(self, name: str, row: Mapping[str, Any], window: Window, rejected: np.ndarray) -> None:
        ids = self.tokenizer.item_ids
        pair = {"user_id": row["user_id"], "objective": name}
        for column in ("history_item_ids", "history_feedback", "history_timestamps"):
            if column in row:
                pair[column] = row[column][: window.start]
        pair["chosen_item_ids"] = [ids[item] for item in window.items]
        pair["rejected_item_ids"] = [ids[item] for item in rejected]
        self.rows.append(pair)
        self.pairs[name] += 1


def _check_columns(train: Dataset, settings: PreferenceSettings, wanted: list[str]) -> None:
    needed = {"user_id": "", "history_item_ids": ""}
    if settings.positives == "views":
        needed["history_views"] = " (positives='views')"
    if RANKING in wanted and "history_feedback" not in train.column_names:
        needed["history_views"] = " (the order of a slate, where there is no history_feedback)"
    if INTEREST in wanted:
        needed["history_negatives"] = " (the objective 'interest'): split a log with a negative_rule"
    for name, reason in needed.items():
        if name not in train.column_names:
            raise PreferenceError(f"the split lacks the column {name!r}{reason}; it has {train.column_names}")


def _unit_rows(embeddings: np.ndarray | None, tokenizer: HiGRTokenizer) -> np.ndarray:
    if embeddings is None:
        raise PreferenceError("the objective 'diversity' and similar negatives need item embeddings [N, E]")
    vectors = np.asarray(embeddings, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != tokenizer.num_items:
        raise PreferenceError(
            f"the embeddings have shape {list(vectors.shape)}, the tokenizer {tokenizer.num_items} items: give one "
            "row an item, in the order of tokenizer.item_ids"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise PreferenceError(f"the embedding of item {tokenizer.item_ids[bad[0]]!r} (row {bad[0]}) is not finite")
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
