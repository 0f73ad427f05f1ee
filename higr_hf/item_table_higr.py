"""The item table: which item id has which semantic ID, as arrays in memory and as two files beside the vocabulary."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT = "higr-item-table-1"
SIDS_FILE = "item_sids.safetensors"
ITEMS_FILE = "items.json"


class UnknownItemError(ValueError, LookupError):
    """An item id or item index that the catalogue does not hold."""


class ItemTable:
    """N items in a fixed order: string id, semantic ID, optional title and whether the item is still offered.

    The semantic IDs (SIDs) are unique: collisions are resolved before a table is made. A row never moves, so an item
    index stays valid for the life of the table; [`ItemTable.remove`] only marks rows.

    Args:
        item_ids (`Sequence[str]`): N distinct, non-empty ids.
        codes (`np.ndarray`): integers `[N, L]`, `0 <= codes[:, l] < codebook_sizes[l]`, every row distinct.
        codebook_sizes (`Sequence[int]`): codes a level, K_0 .. K_{L-1}.
        titles (`Sequence[str | None]`, *optional*): N titles for people to read.
        active (`np.ndarray`, *optional*): bool `[N]`, False for removed items; all True by default.
        version (`int`): how many times items were added or removed.

    Raises:
        ValueError: for anything that breaks the lines above; the message names the row.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        codes: np.ndarray,
        codebook_sizes: Sequence[int],
        titles: Sequence[str | None] | None = None,
        active: np.ndarray | None = None,
        version: int = 0,
    ):
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        self.item_ids = list(item_ids)
        self.titles = None if titles is None else [title or "" for title in titles]
        self.version = int(version)
        if not self.item_ids:
            raise ValueError("The catalogue has no items: pass at least one item id with its codes.")
        self.codes = self._checked_codes(codes)
        if self.titles is not None and len(self.titles) != len(self.item_ids):
            raise ValueError(f"{len(self.titles)} titles for {len(self.item_ids)} items: pass one title an item.")
        self.active = np.ones(len(self.item_ids), dtype=bool) if active is None else np.array(active, dtype=bool)
        if self.active.shape != (len(self.item_ids),):
            raise ValueError(f"`active` has shape {self.active.shape}, expected ({len(self.item_ids)},).")
        self._index = self._checked_index()
        self._level_keys, self._leaf_items = self._build_prefix_index()

    def __len__(self) -> int:
        return len(self.item_ids)

    def _checked_codes(self, codes: np.ndarray) -> np.ndarray:
        codes = np.asarray(codes)
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"codes must be integers, got dtype {codes.dtype}.")
        expected = (len(self.item_ids), len(self.codebook_sizes))
        if codes.shape != expected:
            raise ValueError(f"codes have shape {codes.shape}, expected [items, levels] = {expected}.")
        illegal = (codes < 0) | (codes >= np.array(self.codebook_sizes))
        if illegal.any():
            row, level = (int(i) for i in np.argwhere(illegal)[0])
            raise ValueError(
                f"Item {self.item_ids[row]!r} (row {row}) has code {codes[row, level]} at level {level}, "
                f"whose codebook holds 0..{self.codebook_sizes[level] - 1}."
            )
        return np.ascontiguousarray(codes, dtype=np.int64)

    def _checked_index(self) -> dict[str, int]:
        for row, item_id in enumerate(self.item_ids):
            if not isinstance(item_id, str) or not item_id:
                raise ValueError(f"item_ids[{row}] is {item_id!r}: item ids are non-empty strings, use str().")
        index = dict(zip(self.item_ids, range(len(self.item_ids)), strict=True))
        if len(index) != len(self.item_ids):
            first: dict[str, int] = {}
            for row, item_id in enumerate(self.item_ids):
                if first.setdefault(item_id, row) != row:
                    raise ValueError(f"Item id {item_id!r} stands in rows {first[item_id]} and {row}: ids are unique.")
        return index

    def _build_prefix_index(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Sorted `prefix * K + code` keys a level.

        A key never exceeds N * K, where one number for a whole SID would overflow int64 at eight levels of 1024 codes.
        """
        prefix = np.zeros(len(self), dtype=np.int64)
        level_keys = []
        for level, size in enumerate(self.codebook_sizes):
            keys, prefix = np.unique(prefix * size + self.codes[:, level], return_inverse=True)
            level_keys.append(keys)
        if len(level_keys[-1]) < len(self):
            order = np.argsort(prefix, kind="stable")
            at = int(np.flatnonzero(prefix[order[1:]] == prefix[order[:-1]])[0])
            first, second = int(order[at]), int(order[at + 1])
            raise ValueError(
                f"Items {self.item_ids[first]!r} (row {first}) and {self.item_ids[second]!r} (row {second}) share the "
                f"semantic ID {self.codes[first].tolist()}: resolve collisions before the table is made."
            )
        leaf_items = np.empty(len(self), dtype=np.int64)
        leaf_items[prefix] = np.arange(len(self))
        return level_keys, leaf_items

    def indices_of(self, items: Sequence[str | int], on_unknown: str = "error") -> np.ndarray:
        """Item indices int64 `[n]` of string ids or indices; -1 for an unknown one if `on_unknown="skip"`."""
        if on_unknown not in ("error", "skip"):
            raise ValueError(f"on_unknown must be 'error' or 'skip', got {on_unknown!r}.")
        if isinstance(items, str):
            raise ValueError(f"Expected a list of items, got the string {items!r}: wrap it in a list.")
        found = np.empty(len(items), dtype=np.int64)
        for position, item in enumerate(items):
            if isinstance(item, str):
                found[position] = self._index.get(item, -1)
            elif isinstance(item, (int, np.integer)) and not isinstance(item, bool):
                found[position] = item if 0 <= item < len(self) else -1
            else:
                raise ValueError(f"Item {item!r} (position {position}) is neither a string id nor an integer index.")
            if found[position] < 0 and on_unknown == "error":
                kind = "id" if isinstance(item, str) else "index"
                raise UnknownItemError(
                    f"Unknown item {kind} {item!r} (position {position}): the catalogue holds {len(self)} items. "
                    "Pass on_unknown='skip' to leave unknown items out, or add the item with `add_items`."
                )
        return found

    def lookup(self, codes: np.ndarray) -> np.ndarray:
        """Item indices int64 `[n]` of the SIDs `codes` `[n, L]`; -1 where no item has that SID."""
        codes = np.asarray(codes, dtype=np.int64).reshape(-1, len(self.codebook_sizes))
        prefix = np.zeros(len(codes), dtype=np.int64)
        known = ((codes >= 0) & (codes < np.array(self.codebook_sizes))).all(axis=1)
        for level, (size, keys) in enumerate(zip(self.codebook_sizes, self._level_keys, strict=True)):
            wanted = prefix * size + codes[:, level]
            prefix = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known &= keys[prefix] == wanted
        return np.where(known, self._leaf_items[prefix], -1)

    def extended(
        self, item_ids: Sequence[str], codes: np.ndarray, titles: Sequence[str | None] | None = None
    ) -> ItemTable:
        """A new table with more rows at the end; the rows of this one keep their index and SID."""
        item_ids = list(item_ids)
        codes = np.asarray(codes)
        expected = (len(item_ids), len(self.codebook_sizes))
        if codes.shape != expected:
            raise ValueError(f"codes of new items have shape {codes.shape}, expected [items, levels] = {expected}.")
        for item_id in item_ids:
            if item_id in self._index:
                raise ValueError(
                    f"Item {item_id!r} is in the catalogue already (row {self._index[item_id]}) and keeps its "
                    "semantic ID; a removed item comes back with `restore_items`."
                )
        if titles is not None and len(titles) != len(item_ids):
            raise ValueError(f"{len(titles)} titles for {len(item_ids)} new items: pass one title an item.")
        all_titles = None
        if titles is not None or self.titles is not None:
            all_titles = (self.titles or [""] * len(self)) + list(titles or [""] * len(item_ids))
        return ItemTable(
            self.item_ids + item_ids,
            np.concatenate([self.codes, codes]),
            self.codebook_sizes,
            titles=all_titles,
            active=np.concatenate([self.active, np.ones(len(item_ids), dtype=bool)]),
            version=self.version + 1,
        )

    def set_active(self, indices: np.ndarray, value: bool) -> None:
        """Mark rows as offered or removed; ids and SIDs stay, so that histories still read."""
        active = self.active.copy()
        active[indices] = value
        if not active.any():
            raise ValueError("This would remove every item: a catalogue keeps at least one active item.")
        self.active = active
        self.version += 1

    def digest(self) -> bytes:
        """SHA-256 over ids, SIDs and removed marks: what a model's catalogue depends on. Titles are not part of it."""
        digest = hashlib.sha256(json.dumps(self.item_ids).encode("ascii"))
        digest.update(self.codes.astype("<i8", copy=False).tobytes())
        digest.update(self.active.tobytes())
        return digest.digest()

    def save(self, sids_file: str | os.PathLike, items_file: str | os.PathLike, fingerprint: str) -> None:
        """Write both files; `fingerprint` ties them together and to the vocabulary they were made for."""
        # One key: the library writes several in random order, and equal tables should be equal files.
        metadata = {FORMAT: json.dumps({"fingerprint": fingerprint, "version": self.version})}
        save_file({"codes": self.codes, "active": self.active}, str(sids_file), metadata=metadata)
        content = {"format": FORMAT, "fingerprint": fingerprint, "item_ids": self.item_ids, "titles": self.titles}
        with open(items_file, "w", encoding="utf-8") as stream:
            json.dump(content, stream)

    @classmethod
    def load(
        cls,
        sids_file: str | os.PathLike,
        items_file: str | os.PathLike,
        codebook_sizes: Sequence[int],
        fingerprint: str | None = None,
    ) -> ItemTable:
        """Read what [`ItemTable.save`] wrote; sizes are compared with the file before anything is allocated.

        Raises:
            ValueError: for a truncated, corrupt or foreign file, or two files of different saves.
        """
        ids, titles, items_fingerprint = _read_items(items_file)
        arrays, metadata = _read_sids(sids_file, num_items=len(ids), num_levels=len(codebook_sizes))
        prints = {"tokenizer_config.json": fingerprint, items_file: items_fingerprint}
        for name, other in prints.items():
            if other is not None and other != metadata.get("fingerprint"):
                raise ValueError(
                    f"{sids_file} does not belong to {name}: they carry different fingerprints, as after an "
                    "interrupted save or a mixed copy. Save the tokenizer again, or restore one whole version."
                )
        try:
            version = int(metadata.get("version", 0))
            return cls(ids, arrays["codes"], codebook_sizes, titles, arrays["active"], version)
        except ValueError as error:
            raise ValueError(f"The item table in {sids_file} and {items_file} is inconsistent: {error}") from error


def _read_items(path: str | os.PathLike) -> tuple[list[str], list[str] | None, str | None]:
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}): save or download the tokenizer again.") from error
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or not isinstance(content.get("item_ids"), list)
    ):
        raise ValueError(f"{path} is not an item list of format {FORMAT!r}.")
    titles = content.get("titles")
    if titles is not None and not isinstance(titles, list):
        raise ValueError(f"{path}: `titles` must be a list or null, got {type(titles).__name__}.")
    return content["item_ids"], titles, content.get("fingerprint")


def _read_sids(
    path: str | os.PathLike, num_items: int, num_levels: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    expected = {"codes": ("I64", [num_items, num_levels]), "active": ("BOOL", [num_items])}
    try:
        # Opening maps the file and checks the header against the file's length; no tensor is read before its shape is.
        with safe_open(str(path), framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            if not isinstance(metadata, dict):
                raise ValueError(f"{path} is not an item table of format {FORMAT!r}.")
            for name, (dtype, shape) in expected.items():
                if name not in file.keys():  # noqa: SIM118 - not a dict
                    raise ValueError(f"{path} has no tensor {name!r}: it was not written by this tokenizer.")
                view = file.get_slice(name)
                if (view.get_dtype(), list(view.get_shape())) != (dtype, shape):
                    raise ValueError(
                        f"{path}: tensor {name!r} is {view.get_dtype()} {view.get_shape()}, expected {dtype} {shape} "
                        "by the item ids and the codebook sizes beside it."
                    )
            return {name: file.get_tensor(name) for name in expected}, metadata
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}): save or download the tokenizer again.") from error
