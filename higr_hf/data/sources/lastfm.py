"""Last.fm 1K: every play of nearly a thousand listeners, 2005 to 2009."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from ..errors import DataError
from ..schema import InteractionLog, LogInfo, read_log
from .archives import open_member
from .fetch import download
from .places import first_available

_ARCHIVE = "lastfm-dataset-1K.tar.gz"
_URLS = {
    "mtg.upf.edu": f"https://mtg.upf.edu/static/datasets/last.fm/{_ARCHIVE}",
    "zenodo.org": f"https://zenodo.org/records/6090214/files/{_ARCHIVE}",
}
_PLAYS = "userid-timestamp-artid-artname-traid-traname.tsv"
_COLUMNS = ["user_id", "timestamp", "artist_id", "artist", "track_id", "track"]

_INFO = LogInfo(
    name="lastfm-1k",
    licence="non-commercial use, distributed with permission of Last.fm",
    citation="Oscar Celma. 2010. Music Recommendation and Discovery in the Long Tail. Springer.",
    homepage="http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html",
    description=(
        "19 million plays, most of them of a track or an artist the listener played before: see drop_repeats and "
        "k_core. A play carries no feedback."
    ),
)


def load(name: str, *, folder: Path, local_path: Path | None = None, level: str = "artist") -> InteractionLog:
    """The log of all plays; `local_path` is the archive or the table of plays itself.

    Args:
        name, folder, local_path: see `load_source`.
        level: what an item is: `artist` (about 177 thousand) or `track` (more than a million).
    """
    if level not in ("artist", "track"):
        raise DataError(f"level is {level!r}: use 'artist' or 'track'")
    if local_path is None:
        places = [
            (site, _ARCHIVE, None, lambda path, url=url: download(url, path, max_bytes=1 << 30))
            for site, url in _URLS.items()
        ]
        _, local_path = first_available(folder, places)
    if local_path.is_dir():
        local_path = local_path / _PLAYS
    if local_path.suffix == ".tsv":
        plays = _read(str(local_path), local_path)
    else:
        with open_member(local_path, f"lastfm-dataset-1K/{_PLAYS}", max_bytes=1 << 32) as content:
            plays = _read(content, local_path)
    events, items = _items(plays, level)
    return read_log(events, items, info=_INFO)


def _read(source: object, path: Path) -> pd.DataFrame:
    options = {
        # Names hold quote characters, and a few rows a stray tab: neither may swallow the rows around it.
        "parse_options": pa.csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=lambda row: "skip"),
        "read_options": pa.csv.ReadOptions(column_names=_COLUMNS),
        "convert_options": pa.csv.ConvertOptions(
            column_types=dict.fromkeys(_COLUMNS, pa.string()) | {"timestamp": pa.timestamp("s", tz="UTC")},
            strings_can_be_null=False,
        ),
    }
    try:
        return pa.csv.read_csv(source, **options).to_pandas()
    except pa.ArrowException as error:
        raise DataError(f"{path} is not the table of plays ({_PLAYS}): {error}") from error


def _items(plays: pd.DataFrame, level: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events and items. Where MusicBrainz has no id, the names are the id."""
    artist_key = plays["artist_id"].where(plays["artist_id"] != "", "name:" + plays["artist"])
    if level == "artist":
        key = artist_key
    else:
        named = "name:" + plays["artist"] + "/" + plays["track"]
        key = plays["track_id"].where(plays["track_id"] != "", named)
    events = pd.DataFrame({"user_id": plays["user_id"], "item_id": key, "timestamp": plays["timestamp"]})
    first = ~key.duplicated()
    title = plays["artist"] if level == "artist" else plays["track"] + " by " + plays["artist"]
    items = pd.DataFrame({"item_id": key[first], "title": title[first], "text": title[first]})
    if level == "track":
        items["categories"] = [[name] for name in plays["artist"][first]]
    return events, items.reset_index(drop=True)
