"""Histories and target slates: chronological leave-last-M-out, user by user (spec: leave-five-out).

For a user with n engaged events and a slate size M:

| split | history | target slate |
|---|---|---|
| `train` | the first n − 2M events, a whole training sequence | none: the `target_*` lists are empty |
| `validation` | the first n − 2M events | the next M |
| `test` | the first n − M events | the last M |

No event of a split's history is as late as any event of its target, and no training sequence holds an event that
validates or tests the same user.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .sequences import Sequences

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from .schema import InteractionLog

SHORT_USER_RULES = ("train", "drop")


def leave_last_out(
    log: InteractionLog,
    slate_size: int = 5,
    *,
    min_history: int = 1,
    short_users: str = "train",
    max_history: int | None = None,
) -> DatasetDict:
    """Split a log into train, validation and test by holding out each user's last two slates.

    Args:
        log: the interaction log; only its engaged events enter histories and targets.
        slate_size: M, events a target slate.
        min_history: engaged events that must stand before the validation slate. A user with fewer than
            2M + `min_history` engaged events is *short*.
        short_users: `train`: the whole sequence of a short user is one training row, and nothing of it is evaluated;
            `drop`: short users are left out.
        max_history: keep only the last so many events of validation and test histories; training rows stay whole.

    Returns:
        `DatasetDict` of `train`, `validation`, `test` with the columns `user_id`, `history_item_ids`,
        `history_timestamps` (int64 seconds), `history_feedback` (float32, only when the log has a feedback column),
        `history_views` (bool), `history_negatives` (item ids with negative feedback before the target, oldest first,
        only when the log has a negative rule) and the same five `target_` columns; `target_negatives` got theirs from
        the target's first event on, up to the engaged event that follows its last. `split_report` reads the counts.

    Raises:
        DataError: sizes below 1, or a log in which every user is short.

    Source: Pang et al., arXiv 2512.24787, the evaluation protocol.

    Example:
        >>> ds = leave_last_out(load_source("movielens-100k"), slate_size=5)
        >>> len(ds["test"][0]["target_item_ids"])
        5
    """
    check_sizes(slate_size=slate_size, min_history=min_history, max_history=max_history)
    if short_users not in SHORT_USER_RULES:
        raise DataError(f"short_users is {short_users!r}: use one of {list(SHORT_USER_RULES)}")
    sequences = Sequences(log)
    lengths = sequences.lengths
    eligible = lengths >= 2 * slate_size + min_history
    if not eligible.any():
        raise DataError(
            f"every user has fewer than 2 * {slate_size} + {min_history} engaged events "
            f"(the most is {lengths.max()}): a smaller slate_size, or a log with longer sequences"
        )
    cut = np.where(eligible, lengths - 2 * slate_size, lengths)
    in_train = eligible | (lengths > 0) if short_users == "train" else eligible
    report = {
        "protocol": "leave-last-out",
        "slate_size": slate_size,
        "min_history": min_history,
        "users_evaluated": int(eligible.sum()),
        "users_short": int(((lengths > 0) & ~eligible).sum()),
        "users_without_engagement": int((lengths == 0).sum()),
        "short_users": short_users,
    }

    def rows(users: np.ndarray, history_end: np.ndarray, target_size: int, keep: int | None) -> Dataset:
        start = np.zeros_like(history_end) if keep is None else np.maximum(history_end - keep, 0)
        target = np.stack([history_end, history_end + target_size], axis=1)
        return sequences.to_dataset(users, np.stack([start, history_end], axis=1), target, report)

    train_users, test_users = np.flatnonzero(in_train), np.flatnonzero(eligible)
    from datasets import DatasetDict

    return DatasetDict(
        train=rows(train_users, cut[train_users], 0, None),
        validation=rows(test_users, lengths[test_users] - 2 * slate_size, slate_size, max_history),
        test=rows(test_users, lengths[test_users] - slate_size, slate_size, max_history),
    )


def split_report(splits: DatasetDict) -> dict[str, Any]:
    """The protocol, sizes and counts that a split was made with.

    Example:
        >>> split_report(leave_last_out(log))["users_short"]
        0
    """
    try:
        return json.loads(splits["train"].info.description)
    except (KeyError, ValueError):
        raise DataError("these splits carry no report: make them with leave_last_out or basket_splits") from None


def check_sizes(**sizes: int | None) -> None:
    """Every size must be `None` or a whole number of at least 1."""
    for name, value in sizes.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise DataError(f"{name} is {value!r}: it must be a whole number of at least 1")
