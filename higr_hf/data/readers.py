"""Whatever holds a table (a frame, a file, a folder, a Hub dataset) as one pandas frame."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from .errors import DataError

_HUB_ID = re.compile(r"^(hf://datasets/)?(?P<id>[\w-][\w.-]*/[\w.-]+)$")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_table(data: Any, *, split: str = "train", name: str | None = None) -> pd.DataFrame:
    """Read `data` into a pandas frame with a fresh 0..n-1 index.

    Args:
        data: a pandas or polars frame, a `pyarrow.Table`, a `datasets.Dataset`, a path to `.csv`, `.tsv` (also
            compressed) or `.parquet`, a folder of such files (read in name order), or a Hub dataset id `owner/name`.
            Only the last one uses the network, and only when no file of that name exists.
        split: which split of a Hub dataset or `DatasetDict` is read.
        name: configuration name of a Hub dataset.

    Raises:
        DataError: no such file, an empty folder, an unknown type, or a file that cannot be parsed (it is named).

    Example:
        >>> read_table(pd.DataFrame({"user_id": ["u"], "item_id": ["i"]}, index=[7])).index.tolist()
        [0]
    """
    if isinstance(data, (str, Path)):
        frame = _read_path(data, split, name)
    elif isinstance(data, pd.DataFrame):
        frame = data
    elif isinstance(data, dict):  # DatasetDict
        if split not in data:
            raise DataError(f"no split {split!r} among {sorted(data)}: pass split=... or one split")
        return read_table(data[split], split=split)
    elif isinstance(data, pa.Table):
        frame = data.to_pandas()
    elif hasattr(data, "collect_schema") and hasattr(data, "collect"):  # a polars LazyFrame
        frame = data.collect().to_arrow().to_pandas()
    elif hasattr(data, "to_arrow"):  # a polars DataFrame
        frame = data.to_arrow().to_pandas()
    elif hasattr(data, "to_pandas"):  # a datasets.Dataset
        frame = data.to_pandas()
    else:
        raise DataError(
            f"cannot read a table from {type(data).__name__}: pass a pandas or polars frame, a datasets.Dataset, a "
            "path to csv or parquet, or a Hub dataset id"
        )
    return frame.reset_index(drop=True)


def _read_path(data: str | Path, split: str, name: str | None) -> pd.DataFrame:
    path = Path(data)
    if path.is_file():
        return _read_file(path)
    if path.is_dir():
        files = sorted(child for child in path.iterdir() if _kind(child) is not None)
        if not files:
            raise DataError(f"the folder {path} holds no .parquet, .csv or .tsv file")
        frames = [_read_file(child) for child in files]
        for child, frame in zip(files, frames, strict=True):
            if list(frame.columns) != list(frames[0].columns):
                raise DataError(f"{child} has the columns {list(frame.columns)}, {files[0]} {list(frames[0].columns)}")
        return pd.concat(frames, ignore_index=True)
    hub = _HUB_ID.match(str(data)) if isinstance(data, str) and _kind(path) is None else None
    if hub is None:
        raise DataError(f"{data}: no such file or folder")
    from datasets import load_dataset  # a heavy import, and the only branch that reaches the network

    return load_dataset(hub["id"], name, split=split).to_pandas()


def _kind(path: Path) -> str | None:
    for suffix in reversed(path.suffixes):
        if suffix == ".parquet" or suffix in _SEPARATORS:
            return suffix
        if suffix not in (".gz", ".bz2", ".xz", ".zip", ".zst"):
            return None
    return None


def _read_file(path: Path) -> pd.DataFrame:
    kind = _kind(path)
    if kind is None:
        raise DataError(f"{path}: only .csv, .tsv and .parquet files are read (csv and tsv also compressed)")
    try:
        if kind == ".parquet":
            return pd.read_parquet(path)
        with warnings.catch_warnings():
            # Left to itself pandas takes the first column of a row with a field too many for the index, silently.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, sep=_SEPARATORS[kind], index_col=False)
    except (pd.errors.ParserWarning, ValueError, OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as {kind[1:]}: {error}") from error
