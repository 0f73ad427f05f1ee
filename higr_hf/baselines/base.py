"""The interface of every baseline: fit on a split, recommend slates for histories, save and load without pickle."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..utils import atomic_directory, atomic_write_json
from .early_stopping import Judgement
from .ranking import top_items

if TYPE_CHECKING:
    from datasets import Dataset
    from typing_extensions import Self

_CONFIG = "baseline.json"
_ARRAYS = "baseline.safetensors"
_KINDS: dict[str, type[Baseline]] = {}

Arrays = dict[str, np.ndarray]


class Baseline(ABC):
    """A recommender over a catalogue of N items, known by their index.

    A subclass gives its `kind`, keeps what it was made with in `settings` (JSON-able keyword arguments of its
    constructor), and turns what it has learned into arrays and back.

    Args:
        item_ids: the catalogue; the place in it is the item index.
        **settings: what the subclass was made with.

    Attributes:
        kind: name of the class in saved directories and recipes.
        reads_time: whether `recommend` takes `times`, when each slate is asked for.
        history: how it was judged while `fit` trained it; empty for a system that is not, and for a loaded one.
        checkpoint: file in which `fit` keeps a network after every judgement, and from which it goes on where it was
            killed; set it before `fit`. Closed forms begin anew.
    """

    kind: ClassVar[str] = ""
    reads_time: ClassVar[bool] = False
    history: Sequence[Judgement] = ()
    checkpoint: Path | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            _KINDS[cls.kind] = cls

    def __init__(self, item_ids: Sequence[str], **settings: Any) -> None:
        self.item_ids = list(item_ids)
        self.settings = settings

    @property
    def num_items(self) -> int:
        """N, the size of the catalogue."""
        return len(self.item_ids)

    @abstractmethod
    def fit(self, train: Dataset, validation: Dataset | None = None) -> Self:
        """Learn from the training split.

        Args:
            train: the `train` split of `leave_last_out` or `basket_splits`.
            validation: the validation split, for systems that stop when it no longer improves.
        """

    @abstractmethod
    def recommend(
        self, histories: Sequence[np.ndarray], slate_size: int, exclude: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        """Slates for users.

        Args:
            histories: item indices each user had, oldest first.
            slate_size: M.
            exclude: item indices each user may not get; nothing is excluded by default, not even the history.

        Returns:
            int64 `[U, M]` item indices, -1 where a user has nothing left.
        """

    @abstractmethod
    def num_parameters(self) -> int:
        """Learned numbers that a recommendation is computed from."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """What was learned, by name."""

    @abstractmethod
    def load_arrays(self, arrays: Arrays) -> None:
        """Take up what [`Baseline.arrays`] gave."""

    def __call__(self, batch: Mapping[str, Any], slate_size: int = 5) -> np.ndarray:
        """Slates for a batch of [`SlateEvaluator`]."""
        when = {"times": batch.get("request_timestamps")} if self.reads_time else {}
        return self.recommend(batch["history_indices"], slate_size, batch["exclude_indices"], **when)

    def save_pretrained(self, directory: str | os.PathLike) -> Path:
        """Write `baseline.json` and `baseline.safetensors`, both or neither."""
        config = {"kind": self.kind, "settings": self.settings, "item_ids": self.item_ids}
        with atomic_directory(directory) as folder:
            atomic_write_json(folder / _CONFIG, config)
            save_file({name: np.ascontiguousarray(values) for name, values in self.arrays().items()}, folder / _ARRAYS)
        return Path(directory)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> Self:
        """Load what [`Baseline.save_pretrained`] wrote; `Baseline.from_pretrained` loads any kind.

        Raises:
            ValueError: for a directory that is missing, cut, or of another kind.

        Example:
            >>> path = Popularity(log.item_ids).fit(splits["train"]).save_pretrained("runs/popularity")
            >>> type(Baseline.from_pretrained(path)).__name__
            'Popularity'
        """
        folder = Path(directory)
        try:
            config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            arrays = load_file(folder / _ARRAYS)
            kind, settings, item_ids = config["kind"], config["settings"], config["item_ids"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no whole baseline ({error!r}): fit and save it again.") from error
        if kind not in _KINDS or not issubclass(_KINDS[kind], cls):
            raise ValueError(f"{folder} holds a baseline of the kind {kind!r}, which is no {cls.__name__}.")
        baseline = _KINDS[kind](item_ids, **settings)
        baseline.load_arrays(arrays)
        return baseline


class ScoringBaseline(Baseline):
    """A baseline that scores every item for a history; a slate is the M best."""

    block_size: ClassVar[int] = 1024
    """Users scored at once: a block is `[block_size, N]` floats."""

    @abstractmethod
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores float32 `[U, N]` of all items for each history, -inf for items that cannot be scored."""

    def score_blocks(
        self, histories: Sequence[np.ndarray], times: Sequence[int] | None = None
    ) -> Iterator[np.ndarray]:
        """The same for many users, `block_size` rows at a time; `times` are for baselines that read them."""
        for start in range(0, len(histories), self.block_size):
            yield self.scores(histories[start : start + self.block_size])

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        slate_size: int,
        exclude: Sequence[Sequence[int]] | None = None,
        times: Sequence[int] | None = None,
    ) -> np.ndarray:
        """The M best-scored items that are not excluded; see [`Baseline.recommend`].

        Args:
            histories, slate_size, exclude: as there.
            times: when each slate is asked for, in seconds since 1970 UTC, for baselines that read it; now by default.
        """
        if exclude is not None and len(exclude) != len(histories):
            raise ValueError(f"{len(exclude)} lists of excluded items for {len(histories)} histories: one a user.")
        slates, row = [np.empty((0, slate_size), dtype=np.int64)], 0
        if times is not None and len(times) != len(histories):
            raise ValueError(f"{len(times)} times for {len(histories)} histories: one a user.")
        for block in self.score_blocks(histories, times):
            forbidden = None if exclude is None else exclude[row : row + len(block)]
            slates.append(top_items(block, slate_size, forbidden))
            row += len(block)
        return np.concatenate(slates)


def baseline_class(kind: str) -> type[Baseline]:
    """The class of a kind.

    Raises:
        ValueError: for a kind that does not exist.

    Example:
        >>> baseline_class("ease").__name__
        'EASE'
    """
    if kind not in _KINDS:
        raise ValueError(f"There is no baseline of the kind {kind!r}; there are {sorted(_KINDS)}.")
    return _KINDS[kind]


def check_rows(baseline: Baseline, arrays: Arrays, **shapes: tuple[int, ...]) -> None:
    """Loaded arrays must have the names and shapes that the baseline's settings ask for.

    Raises:
        ValueError: naming the array that differs.
    """
    for name, shape in shapes.items():
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise ValueError(f"A saved {baseline.kind} has {name} of shape {found}, expected {shape}: save it again.")
