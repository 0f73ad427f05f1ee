"""What an evaluation returns: means, intervals, every user's values, the slates and the times."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..utils import atomic_directory, atomic_write_json
from .bootstrap import PairedDifference, paired_bootstrap

_SUMMARY = "evaluation.json"
_ARRAYS = "per_user.safetensors"


@dataclass
class EvaluationResult:
    """Metrics of one system on one split.

    Attributes:
        metrics: metric name -> mean over the users it exists for.
        intervals: metric name -> bootstrapped (low, high) of that mean.
        per_user: metric name -> float64 `[U]`, NaN where a user does not count.
        user_ids: U ids, in the order of every array.
        slates: int64 `[U, M]`, item indices, -1 for an empty or illegal slot.
        counts: `users`, `users_with_targets`, `users_with_views`, `unknown_targets`.
        timings: `seconds` in the recommender, `users_per_second`, `batch_ms_p50`, `batch_ms_p95`.
        primary_metric: the one that chooses between systems.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_user: dict[str, np.ndarray]
    user_ids: list[str]
    slates: np.ndarray
    counts: dict[str, int]
    timings: dict[str, float] = field(default_factory=dict)
    primary_metric: str = "ndcg@5"

    @property
    def primary_value(self) -> float:
        """The primary metric's mean."""
        return self.metrics[self.primary_metric]

    @property
    def known_metrics(self) -> dict[str, float]:
        """The metrics that some user has a value of: a slate of one item has no diversity."""
        return {name: value for name, value in self.metrics.items() if not np.isnan(value)}

    def compare(self, other: EvaluationResult, metric: str | None = None, **kwargs: Any) -> PairedDifference:
        """This system minus the other, user by user (see [`paired_bootstrap`]).

        Args:
            other: a result on the same users, in any order.
            metric: the primary one by default.
            kwargs: `level`, `num_resamples`, `seed`.

        Raises:
            ValueError: when the users differ, or the metric is not a per-user one.
        """
        metric = metric or self.primary_metric
        for result in (self, other):
            if metric not in result.per_user:
                raise ValueError(f"No per-user values of {metric!r}; there are {sorted(result.per_user)}.")
        if self.user_ids == other.user_ids:
            return paired_bootstrap(self.per_user[metric], other.per_user[metric], **kwargs)
        row = {user: index for index, user in enumerate(other.user_ids)}
        if len(row) != len(other.user_ids) or len(set(self.user_ids)) != len(self.user_ids):
            raise ValueError(
                "Users repeat within a result and stand in another order in the other: rows cannot be paired."
            )
        if row.keys() != set(self.user_ids):
            odd = sorted(row.keys() ^ set(self.user_ids))
            raise ValueError(f"The results are of different users ({len(odd)} differ, such as {odd[0]!r}).")
        order = [row[user] for user in self.user_ids]
        return paired_bootstrap(self.per_user[metric], other.per_user[metric][order], **kwargs)

    def save(self, directory: str | os.PathLike) -> Path:
        """Write `evaluation.json` and `per_user.safetensors`, both or neither."""
        summary = {
            "metrics": {name: None if np.isnan(value) else value for name, value in self.metrics.items()},
            "intervals": {k: None if np.isnan(v).any() else list(v) for k, v in self.intervals.items()},
            "counts": self.counts,
            "timings": self.timings,
            "primary_metric": self.primary_metric,
            "user_ids": self.user_ids,
        }
        arrays = {f"per_user.{name}": np.ascontiguousarray(values) for name, values in self.per_user.items()}
        with atomic_directory(directory) as folder:
            atomic_write_json(folder / _SUMMARY, summary)
            save_file({**arrays, "slates": np.ascontiguousarray(self.slates)}, folder / _ARRAYS)
        return Path(directory)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> EvaluationResult:
        """Read what [`EvaluationResult.save`] wrote.

        Raises:
            ValueError: for a missing, truncated or foreign file, which is named.
        """
        folder = Path(directory)
        try:
            summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
            arrays = load_file(folder / _ARRAYS)
            slates = arrays.pop("slates")
            per_user = {name.removeprefix("per_user."): values for name, values in arrays.items()}
            nan = float("nan")
            result = cls(
                metrics={name: nan if value is None else value for name, value in summary["metrics"].items()},
                intervals={k: (nan, nan) if v is None else tuple(v) for k, v in summary["intervals"].items()},
                per_user=per_user,
                user_ids=summary["user_ids"],
                slates=slates,
                counts=summary["counts"],
                timings=summary["timings"],
                primary_metric=summary["primary_metric"],
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no whole evaluation result ({error!r}): evaluate again.") from error
        if {len(values) for values in [slates, *per_user.values()]} != {len(result.user_ids)}:
            raise ValueError(f"{folder}: the arrays do not have one row for each of the {len(result.user_ids)} users.")
        return result
