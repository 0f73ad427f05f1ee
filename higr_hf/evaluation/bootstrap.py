"""How sure a mean over users is, and whether two systems differ: bootstrap over users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


def _resampled_means(values: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Means float64 `[R, K]` of the columns of `values` `[U, K]` over R samples of users; NaN cells do not count."""
    rng = np.random.default_rng(seed)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    means = np.empty((num_resamples, values.shape[1]))
    for sample in range(num_resamples):
        # How often each user is drawn: two matrix products instead of gathering every column.
        weights = np.bincount(rng.integers(0, len(values), len(values)), minlength=len(values)).astype(np.float64)
        count = weights @ known
        means[sample] = np.where(count > 0, (weights @ filled) / np.maximum(count, 1), np.nan)
    return means


def confidence_intervals(
    per_user: Mapping[str, np.ndarray], *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the means over users.

    Args:
        per_user: metric name -> float `[U]`, NaN where a user does not count.
        level: coverage of the interval.
        num_resamples: bootstrap samples; all metrics share them.
        seed: of the resampling.

    Returns:
        Metric name -> (low, high); NaN for a metric no user counts for.
    """
    if not per_user:
        return {}
    values = np.stack([np.asarray(column, dtype=np.float64) for column in per_user.values()], axis=1)
    if len(values) == 0:
        return dict.fromkeys(per_user, (float("nan"), float("nan")))
    means = _resampled_means(values, num_resamples, seed)
    tail = (1 - level) / 2
    intervals = {}
    for column, name in enumerate(per_user):
        known = means[:, column][~np.isnan(means[:, column])]
        low, high = np.quantile(known, [tail, 1 - tail]) if known.size else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two systems' means over the same users.

    Attributes:
        difference: mean of first - second.
        low, high: its percentile interval.
        p_value: two-sided, from the share of samples in which the sign is the other one.
        num_users: users that count for both systems.
    """

    difference: float
    low: float
    high: float
    p_value: float
    num_users: int

    def __str__(self) -> str:
        return (
            f"{self.difference:+.4f} (interval {self.low:+.4f} to {self.high:+.4f}, p = {self.p_value:.3f}, "
            f"{self.num_users} users)"
        )


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> PairedDifference:
    """Compare two systems user by user.

    Args:
        first, second: float `[U]` of one metric, the same users in the same order; users with a NaN are left out.

    Raises:
        ValueError: for arrays of unequal length, or no user that counts for both.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"A paired comparison needs two arrays [users], got {first.shape} and {second.shape}.")
    difference = first - second
    difference = difference[~np.isnan(difference)]
    if not difference.size:
        raise ValueError("No user has a value under both systems: nothing can be compared.")
    means = _resampled_means(difference[:, None], num_resamples, seed)[:, 0]
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    # +1: a finite number of samples never shows a probability of zero.
    one_sided = (min((means <= 0).sum(), (means >= 0).sum()) + 1) / (num_resamples + 1)
    p_value = min(1.0, 2 * float(one_sided))
    return PairedDifference(float(difference.mean()), float(low), float(high), p_value, len(difference))
