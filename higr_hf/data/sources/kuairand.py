"""KuaiRand-Pure: short-video exposures with many kinds of feedback."""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError
from ..readers import read_table
from ..schema import InteractionLog, LogInfo, read_log
from ..validation import rename
from .archives import open_member
from .fetch import download
from .places import first_available

logger = logging.getLogger(__name__)

_URL = "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz"
_ARCHIVE = "KuaiRand-Pure.tar.gz"
_FOLDER = "KuaiRand-Pure/data"
_LOGS = ("log_standard_4_08_to_4_21_pure", "log_standard_4_22_to_5_08_pure")
_VIDEOS = "video_features_basic_pure"
_EXPOSURES, _HISTORY = "exposures", "history_before_0425"
_REQUIRED = (
    "user_id",
    "video_id",
    "time_ms",
    "is_click",
    "is_like",
    "is_hate",
    "long_view",
    "play_time_ms",
    "duration_ms",
)
_EXTRA = ("tab", "is_follow", "is_comment", "is_forward")

_INFO = LogInfo(
    name="kuairand-pure",
    licence="CC BY-SA 4.0",
    citation="""Chongming Gao, Shijun Li, Yuan Zhang, Jiawei Chen, Biao Li, Wenqiang Lei, Peng Jiang, Xiangnan He.
2022. KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos. CIKM 2022.
https://doi.org/10.1145/3511808.3557624""",
    homepage="https://kuairand.com",
    description=(
        "Exposed videos; clicked, liked or long-watched ones are engaged, the others are kept as exposed_only. The "
        "log has no request id: a target slate of leave_last_out is a run of consecutive engagements, not a "
        "list that was shown together. There are no titles; texts are made of the videos' features."
    ),
    feedback="watch_ratio",
    engaged_rule="click or long_view or like",
    view_rule="long_view or like",
    negative_rule="dislike or exposed_only or watch_ratio < 0.1 and not long_view and not like",
)

_IMPRESSIONS_INFO = dataclasses.replace(
    _INFO,
    description=(
        "Exposed videos, all of which stand in histories and targets; liked or long-watched ones are effective views. "
        "The log has no request id: a target slate of leave_last_out is a run of consecutive exposures, not a list "
        "that was shown together. There are no titles; texts are made of the videos' features."
    ),
    feedback="engagement",
    engaged_rule=None,
    negative_rule="dislike or not long_view and not like",
)

Tables = Callable[[str], "pd.DataFrame | None"]


def load(
    name: str,
    *,
    folder: Path,
    local_path: Path | None = None,
    earlier_history: bool = True,
    impressions: bool = False,
) -> InteractionLog:
    """The log of both standard periods.

    Args:
        name, folder: given by `load_source`.
        local_path: a folder with the public CSV files (or the same tables as parquet), or with one table of exposures
            `exposures` and, optionally, `history_before_0425`, the users' last videos of before.
        earlier_history: put those watched long at the start of the histories (with `impressions`: all). Their own
            times are unknown: each carries the time of the user's last exposure of that period, and
            `history_position` their order.
        impressions: every exposure enters histories and targets, engaged or not; what was liked or watched long is the
            effective view, and a short view negative feedback: of the earlier exposures nothing else is known.
            Feedback is `engagement`: 0 watched shortly or disliked, 1 watched long, 2 liked. A model then learns
            what is shown, and alignment what is worth showing.
    """
    if local_path is None:
        _, archive = first_available(
            folder, [("zenodo.org", _ARCHIVE, None, lambda path: download(_URL, path, max_bytes=1 << 29))]
        )
        tables = _archive_tables(archive)
    else:
        tables = _folder_tables(local_path)
    exposures = [table for table in map(tables, (*_LOGS, _EXPOSURES)) if table is not None]
    videos = tables(_VIDEOS)
    if not exposures or videos is None:
        raise DataError(f"{local_path or archive} holds no exposures ({_LOGS[0]} ... or {_EXPOSURES}) or no {_VIDEOS}")
    events = pd.concat([_events(table) for table in exposures], ignore_index=True)
    history = tables(_HISTORY) if earlier_history else None
    if history is not None:
        events = pd.concat([_earlier(history, events, impressions), events], ignore_index=True)
    if impressions:
        engagement = events["long_view"].mask(events["like"] == 1, 2).mask(events["dislike"] == 1, 0)
        events = events.assign(exposed_only=0, engagement=engagement)
    return read_log(events, _videos(videos), time_unit="ms", info=_IMPRESSIONS_INFO if impressions else _INFO)


def _archive_tables(archive: Path) -> Tables:
    def table(name: str) -> pd.DataFrame | None:
        if name in (_EXPOSURES, _HISTORY):
            return None
        with open_member(archive, f"{_FOLDER}/{name}.csv", max_bytes=1 << 30) as content:
            return pd.read_csv(io.BufferedReader(content))

    return table


def _folder_tables(path: Path) -> Tables:
    base = path / "data" if (path / "data").is_dir() else path

    def table(name: str) -> pd.DataFrame | None:
        for suffix in (".parquet", ".csv"):
            file = base / f"{name}{suffix}"
            if file.is_file():
                return read_table(file)
        return None

    return table


def _events(table: pd.DataFrame) -> pd.DataFrame:
    table = rename(table, None, _REQUIRED, "kuairand-pure log")
    # A duration of zero is a missing one (1.6 % of the exposures); the ratio is then unknown, not infinite.
    duration = table["duration_ms"].where(table["duration_ms"] > 0)
    ignored = (table["is_click"] == 0) & (table["is_like"] == 0) & (table["long_view"] == 0)
    return pd.DataFrame(
        {
            "user_id": table["user_id"],
            "item_id": table["video_id"],
            "timestamp": table["time_ms"],
            "watch_ratio": table["play_time_ms"] / duration,
            "click": table["is_click"],
            "like": table["is_like"],
            "dislike": table["is_hate"],
            "exposed_only": ignored.astype(np.int64),
            "long_view": table["long_view"],
            **{name: table[name] for name in _EXTRA if name in table.columns},
        }
    )


def _earlier(history: pd.DataFrame, events: pd.DataFrame, impressions: bool) -> pd.DataFrame:
    """The videos of the period before the exposures: the long-watched ones, or all that were exposed."""
    shown = "exposed_last50" if impressions else "long_watched_last50"
    history = rename(history, None, ("user", "last_time_ms", "long_watched_last50", "liked_last50", shown), _HISTORY)
    # Never after the first exposure of the same user: rows of equal time keep their order, and these come first.
    first = events.groupby("user_id")["timestamp"].min()
    time = np.fmin(history["last_time_ms"], history["user"].map(first)).astype(np.int64)
    liked, watched = ([set(items) for items in history[name]] for name in ("liked_last50", "long_watched_last50"))
    rows = [
        (user, item, when, int(item in likes), int(item in long), position)
        for user, when, items, likes, long in zip(history["user"], time, history[shown], liked, watched, strict=True)
        for position, item in enumerate(items)
    ]
    earlier = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "like", "long_view", "history_position"])
    # What else happened is unknown, but that a long-watched video had been clicked.
    return earlier.assign(click=earlier["long_view"].where(earlier["long_view"] == 1), exposed_only=0)


def _videos(table: pd.DataFrame) -> pd.DataFrame:
    table = rename(table, {"item_id": "video_id"}, ("item_id", "tag"), _VIDEOS)
    tags = [
        [f"tag {tag.strip()}" for tag in value.split(",") if tag.strip()] if isinstance(value, str) else []
        for value in table["tag"].map(
            lambda value: value if pd.isna(value) or isinstance(value, str) else f"{value:g}"
        )
    ]
    words = [f"{', '.join(names) or 'no tag'}" for names in tags]
    text = pd.Series(words, index=table.index)
    for column, label in (
        ("author_id", "author"),
        ("music_id", "music"),
        ("upload_type", "upload"),
        ("video_type", "type"),
    ):
        if column in table.columns:
            text = text + f"; {label} " + table[column].astype("str")
    if "video_duration" in table.columns:
        seconds = (table["video_duration"] / 1000).round()
        text = text + ("; " + seconds.astype("Int64").astype("str") + " seconds").where(seconds.notna(), "")
    title = "video " + table["item_id"].astype("str")
    return table.drop(columns=["tag"]).assign(title=title, text=text, categories=tags)
