"""Which items count as similar in the contrastive loss: cosine neighbours, and items that occur together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.sparse as sp

_BLOCK = 1024


def _check_table(table: np.ndarray, num_items: int) -> None:
    if table.ndim != 2 or table.shape[0] != num_items:
        raise ValueError(f"positives must have the shape [{num_items}, P], got {list(table.shape)}.")
    if not np.issubdtype(table.dtype, np.integer) or (table.size and (table.min() < -1 or table.max() >= num_items)):
        raise ValueError(f"positives must hold item indices 0..{num_items - 1}, and -1 where a row has no more.")


def cosine_neighbours(
    embeddings: np.ndarray, *, threshold: float = 0.8, max_neighbours: int = 10, min_neighbours: int = 0
) -> np.ndarray:
    """The items whose embeddings point the same way.

    Args:
        embeddings (float `[N, E]`): of all items; need not be the vectors that are quantised.
        threshold (`float`): least cosine.
        max_neighbours (`int`): P, the nearest ones are kept.
        min_neighbours (`int`): as many nearest neighbours are kept whatever their cosine, so that no item is left out
            of the contrastive loss only because it stands apart.

    Returns:
        int64 `[N, P]` item indices, nearest first, -1 where there are no more; never the item itself.

    Example:

    ```python
    >>> import numpy as np
    >>> cosine_neighbours(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), max_neighbours=2).tolist()
    [[1, -1], [0, -1], [-1, -1]]

    ```
    """
    count = len(embeddings)
    width = min(max_neighbours, count - 1)
    table = np.full((count, max_neighbours), -1, dtype=np.int64)
    if width < 1:
        return table
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = (embeddings / np.where(norms > 0, norms, 1)).astype(np.float32)
    for start in range(0, count, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, count))
        cosines = unit[rows] @ unit.T
        cosines[np.arange(len(rows)), rows] = -np.inf
        top = np.argpartition(-cosines, width - 1, axis=1)[:, :width]
        values = np.take_along_axis(cosines, top, axis=1)
        # Ties go to the lower item index, so that the table does not depend on how a sort breaks them.
        order = np.lexsort((top, -values), axis=1)
        top, values = np.take_along_axis(top, order, axis=1), np.take_along_axis(values, order, axis=1)
        keep = (values >= threshold) | (np.arange(width) < min_neighbours)
        table[rows, :width] = np.where(keep, top, -1)
    return table


def cooccurrence_neighbours(
    histories: Iterable[Sequence[str]],
    item_index: Mapping[str, int],
    *,
    window: int = 5,
    min_count: int = 3,
    max_neighbours: int = 10,
) -> np.ndarray:
    """The items that users take shortly before or after, from the training part of a log.

    Pairs at most `window` events apart are counted and scaled to n_ij / sqrt(n_i n_j), which keeps the popular items
    from being everyone's neighbour.

    Args:
        histories: item ids of one user (or basket) each, oldest first; ids outside `item_index` are passed over.
        item_index: item id → item index 0..N-1.
        window (`int`): how many events apart a pair may be.
        min_count (`int`): pairs seen less often are chance and dropped.
        max_neighbours (`int`): P.

    Returns:
        int64 `[N, P]` item indices, strongest first, -1 where there are no more.
    """
    count = len(item_index)
    sequences = [np.array([item_index[i] for i in h if i in item_index], dtype=np.int64) for h in histories]
    left, right = [], []
    for gap in range(1, window + 1):
        for sequence in sequences:
            left.append(sequence[:-gap] if len(sequence) > gap else sequence[:0])
            right.append(sequence[gap:])
    rows = np.concatenate(left) if left else np.empty(0, dtype=np.int64)
    columns = np.concatenate(right) if right else np.empty(0, dtype=np.int64)
    once = sp.coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count)).tocsr()
    counts = (once + once.T).tolil()
    counts.setdiag(0)
    counts = counts.tocoo()
    keep = counts.data >= min_count
    rows, columns, data = counts.coords[0][keep], counts.coords[1][keep], counts.data[keep]
    events = np.bincount(np.concatenate(sequences), minlength=count) if sequences else np.zeros(count)
    scores = data / np.sqrt(events[rows] * events[columns])
    order = np.lexsort((columns, -scores, rows))
    rows, columns = rows[order], columns[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    table = np.full((count, max_neighbours), -1, dtype=np.int64)
    first = rank < max_neighbours
    table[rows[first], rank[first]] = columns[first]
    return table


def merge_positives(*tables: np.ndarray) -> np.ndarray:
    """Several tables of positives side by side; an item that stands in two is drawn twice as often.

    Args:
        *tables (int64 `[N, P_i]`): as the functions above return them.

    Returns:
        int64 `[N, ΣP_i]`.
    """
    if not tables:
        raise ValueError("merge_positives needs at least one table.")
    for table in tables:
        _check_table(table, len(tables[0]))
    return np.concatenate(tables, axis=1)
