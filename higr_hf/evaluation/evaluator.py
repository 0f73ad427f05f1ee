"""SlateEvaluator: the leave-last-slate-out protocol on one split, for anything that recommends slates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from . import metrics
from .bootstrap import confidence_intervals
from .result import EvaluationResult

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, list[Any]]
Recommender = Callable[[Batch], np.ndarray]

_REQUIRED = ("user_id", "history_item_ids", "target_item_ids")
_NEGATIVES = {"negative_share": "history_negatives", "held_out_negative_share": "target_negatives"}


class SlateEvaluator:
    """Scores slates against the target slates of a split, over the full catalogue.

    The recommender gets the rows of a batch *without* their targets, as a dictionary of lists: the split's `user_id`
    and `history_*` columns, and what is added here: `history_indices` (int64 `[H]` a row, the catalogue's item
    indices, unknown items left out), `exclude_indices` (int64 `[E]` a row, items that must not be recommended) and,
    where the split has times, `request_timestamps` (seconds since 1970 UTC, when the first target event was). It
    returns int64 `[B, M]` (array or tensor), -1 for an empty or illegal slot.

    Metrics, M being the slate size: `hit@M`, `recall@M`, `ndcg@M` against all target items; `view_hit@M` ... against
    the effectively viewed ones, over the users that have any; `diversity` (with embeddings), `category_diversity`
    (with categories), `coverage`, `duplicates`, `validity`; the shares of slots with an item that the user disliked
    before (`negative_share`, where the split has `history_negatives`) or in what was held out
    (`held_out_negative_share`, where it has `target_negatives`), each over the users that have such items. A target
    item that is not in the catalogue stays a target that nobody can hit.

    Args:
        dataset: a validation or test split with `user_id`, `history_item_ids`, `target_item_ids` and, for the view
            metrics, `target_views`.
        item_ids: the N item ids of the catalogue; the place in it is the item index.
        slate_size: M. Slates that are longer are refused, shorter ones count as having empty slots.
        embeddings: float `[N, E]` for `diversity`. Take the same ones for every system that is compared.
        categories: N lists of labels for `category_diversity`.
        allowed: bool `[N]`, items that may be recommended; the others count as illegal.
        exclude_history: forbid items of the user's history.
        batch_size: users a call.
        primary_metric: what chooses between systems; `ndcg@M` by default.
        num_resamples: bootstrap samples of the intervals; 0 for none.
        seed: of the bootstrap.
        progress: show a progress bar.

    Raises:
        ValueError: for missing columns, a split without targets, or arrays that do not fit the catalogue.

    Example:
        >>> evaluator = SlateEvaluator(splits["validation"], tokenizer.item_ids, embeddings=vectors)
        >>> popular = np.arange(5)
        >>> result = evaluator.evaluate(lambda batch: np.tile(popular, (len(batch["user_id"]), 1)))
        >>> result.metrics["ndcg@5"], result.intervals["ndcg@5"]
    """

    greater_is_better = True

    def __init__(
        self,
        dataset: Dataset,
        item_ids: Sequence[str],
        *,
        slate_size: int = 5,
        embeddings: np.ndarray | None = None,
        categories: Sequence[Iterable[str]] | None = None,
        allowed: np.ndarray | None = None,
        exclude_history: bool = False,
        batch_size: int = 256,
        primary_metric: str | None = None,
        num_resamples: int = 1000,
        seed: int = 0,
        progress: bool = True,
    ):
        missing = [name for name in _REQUIRED if name not in dataset.column_names]
        if missing:
            raise ValueError(f"The split lacks the columns {missing}; it has {dataset.column_names}.")
        if slate_size < 1 or batch_size < 1:
            raise ValueError(f"slate_size and batch_size must be positive, got {slate_size} and {batch_size}.")
        self.num_items = len(item_ids)
        for name, table in (("embeddings", embeddings), ("categories", categories), ("allowed", allowed)):
            if table is not None and len(table) != self.num_items:
                raise ValueError(f"{name} has {len(table)} rows, the catalogue {self.num_items} items.")
        self.slate_size = slate_size
        self.embeddings = None if embeddings is None else np.asarray(embeddings)
        self.categories = None if categories is None else _multi_hot(categories)
        self.allowed = None if allowed is None else np.asarray(allowed, dtype=bool)
        self.exclude_history = exclude_history
        self.batch_size = batch_size
        self.primary_metric = primary_metric or f"ndcg@{slate_size}"
        self.num_resamples, self.seed, self.progress = num_resamples, seed, progress

        self._index = {item_id: row for row, item_id in enumerate(item_ids)}
        self._read_targets(dataset)
        self._times = None
        if "target_timestamps" in dataset.column_names:
            self._times = [min(times, default=0) for times in dataset["target_timestamps"]]
        # Nothing else of the target may reach the recommender.
        self._rows = dataset.remove_columns([name for name in dataset.column_names if name.startswith("target_")])
        self._histories = [self._known(items) for items in self._rows["history_item_ids"]]

    def _known(self, items: Iterable[str]) -> np.ndarray:
        return np.array([self._index[item] for item in items if item in self._index], dtype=np.int64)

    def _read_targets(self, dataset: Dataset) -> None:
        self.user_ids: list[str] = list(dataset["user_id"])
        targets = list(dataset["target_item_ids"])
        if not any(targets):
            raise ValueError("No row of the split has target items: evaluate a validation or test split, not train.")
        # Each unknown item gets an index behind the catalogue: it counts in |T| and no legal item equals it.
        unknown: dict[str, int] = {}
        for item in (item for row in targets for item in row if item not in self._index):
            unknown.setdefault(item, self.num_items + len(unknown))
        index = {**self._index, **unknown}
        self.targets = _padded([[index[item] for item in row] for row in targets])
        self.num_unknown_targets = len(unknown)
        self.view_targets = None
        if "target_views" in dataset.column_names:
            views = list(dataset["target_views"])
            for row, (seen, items) in enumerate(zip(views, targets, strict=True)):
                if len(seen) != len(items):
                    raise ValueError(f"Row {row}: {len(seen)} target_views for {len(items)} target_item_ids.")
            self.view_targets = metrics.keep_views(self.targets, _padded(views, fill=0))
        self.negatives = {
            name: _padded([self._known(items).tolist() for items in dataset[column]])
            for name, column in _NEGATIVES.items()
            if column in dataset.column_names
        }

    def evaluate(self, recommend: Recommender, desc: str = "Evaluating") -> EvaluationResult:
        """Ask the recommender for every user's slate and score the slates.

        Args:
            recommend: see the class.
            desc: what the progress bar says.

        Raises:
            ValueError: for slates of a wrong shape or dtype, and for an excluded item, naming the user.
        """
        slates, seconds = [], []
        for start in tqdm(range(0, len(self._rows), self.batch_size), desc=desc, disable=not self.progress):
            batch = self.rows(range(start, min(start + self.batch_size, len(self._rows))))
            began = time.perf_counter()
            answer = _as_numpy(recommend(batch))
            seconds.append(time.perf_counter() - began)
            slates.append(self._checked(answer, batch))
        total = sum(seconds)
        p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
        result = self.score(np.concatenate(slates))
        result.timings = {
            "seconds": total,
            "users_per_second": len(self._rows) / total if total > 0 else 0.0,
            "batch_ms_p50": float(p50),
            "batch_ms_p95": float(p95),
        }
        return result

    def rows(self, users: Sequence[int]) -> Batch:
        """What a recommender is given for some users, known by their row in the split."""
        batch = self._rows[users]
        histories = [self._histories[user] for user in users]
        nothing = np.empty(0, dtype=np.int64)
        excluded = [np.unique(items) if self.exclude_history else nothing for items in histories]
        times = {} if self._times is None else {"request_timestamps": [self._times[user] for user in users]}
        return {**batch, **times, "history_indices": histories, "exclude_indices": excluded}

    def _checked(self, slates: np.ndarray, batch: Batch) -> np.ndarray:
        users = batch["user_id"]
        if slates.ndim != 2 or len(slates) != len(users) or slates.shape[1] > self.slate_size:
            raise ValueError(
                f"The recommender returned shape {slates.shape} for {len(users)} users and slates of "
                f"{self.slate_size}: expected ({len(users)}, {self.slate_size})."
            )
        if not np.issubdtype(slates.dtype, np.integer):
            raise ValueError(f"The recommender returned {slates.dtype}: slates are integer item indices.")
        for user, slate, excluded in zip(users, slates, batch["exclude_indices"], strict=True):
            forbidden = np.intersect1d(slate, excluded)
            if forbidden.size:
                raise ValueError(
                    f"User {user!r} was recommended item index {forbidden[0]}, which `exclude_indices` forbids: "
                    "the recommender must leave those items out."
                )
        padded = np.full((len(slates), self.slate_size), metrics.PADDING, dtype=np.int64)
        padded[:, : slates.shape[1]] = slates
        return padded

    def score(self, slates: np.ndarray) -> EvaluationResult:
        """Metrics of finished slates, int64 `[U, M]`, one row for every row of the split."""
        if slates.shape != (len(self.user_ids), self.slate_size):
            raise ValueError(f"slates have shape {slates.shape}, expected {(len(self.user_ids), self.slate_size)}.")
        size, per_user = self.slate_size, {}
        # An index behind the catalogue is no item; left as it is, it could equal an unknown target's.
        slates = np.where((slates >= 0) & (slates < self.num_items), slates, metrics.PADDING)
        for prefix, targets in (("", self.targets), ("view_", self.view_targets)):
            if targets is not None:
                per_user[f"{prefix}hit@{size}"] = metrics.hit_per_user(slates, targets)
                per_user[f"{prefix}recall@{size}"] = metrics.recall_per_user(slates, targets)
                per_user[f"{prefix}ndcg@{size}"] = metrics.ndcg_per_user(slates, targets)
        if self.embeddings is not None:
            per_user["diversity"] = metrics.diversity_per_user(slates, self.embeddings)
        if self.categories is not None:
            per_user["category_diversity"] = metrics.category_diversity_per_user(slates, self.categories)
        per_user["duplicates"] = metrics.duplicates_per_user(slates)
        per_user["validity"] = metrics.validity_per_user(slates, self.num_items, self.allowed)
        for name, negatives in self.negatives.items():
            if (negatives >= 0).any():
                per_user[name] = metrics.negative_share_per_user(slates, negatives)

        means = {name: metrics.mean_over_users(values) for name, values in per_user.items()}
        means["coverage"] = metrics.coverage(slates, self.num_items)
        if self.primary_metric not in means:
            raise ValueError(
                f"primary_metric {self.primary_metric!r} is not measured here; there are {sorted(means)}."
            )
        counts = {
            "users": len(slates),
            "users_with_targets": int((self.targets >= 0).any(axis=1).sum()),
            "unknown_targets": self.num_unknown_targets,
        }
        if self.view_targets is not None:
            counts["users_with_views"] = int((self.view_targets >= 0).any(axis=1).sum())
        intervals = {}
        if self.num_resamples:
            intervals = confidence_intervals(per_user, num_resamples=self.num_resamples, seed=self.seed)
        return EvaluationResult(
            means, intervals, per_user, self.user_ids, slates, counts, primary_metric=self.primary_metric
        )

    def history_diversity(self) -> np.ndarray:
        """Intra-list diversity of every user's history, float64 `[U]`; what slate diversity is held against."""
        if self.embeddings is None:
            raise ValueError("Pass `embeddings` to SlateEvaluator: diversity is measured on them.")
        histories = _padded([items.tolist() for items in self._histories])
        chunk = max(1, 2**24 // max(1, histories.shape[1] * self.embeddings.shape[1]))
        return metrics.diversity_per_user(histories, self.embeddings, chunk_size=chunk)


def _as_numpy(slates: Any) -> np.ndarray:
    return np.asarray(slates.cpu() if hasattr(slates, "cpu") else slates)


def _padded(rows: Sequence[Sequence[int]], fill: int = metrics.PADDING) -> np.ndarray:
    array = np.full((len(rows), max((len(row) for row in rows), default=0)), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


def _multi_hot(categories: Sequence[Iterable[str]]) -> np.ndarray:
    column: dict[str, int] = {}
    pairs = [(row, column.setdefault(label, len(column))) for row, labels in enumerate(categories) for label in labels]
    table = np.zeros((len(categories), len(column)), dtype=bool)
    if pairs:
        table[tuple(np.array(pairs).T)] = True
    return table
