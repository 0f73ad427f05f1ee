"""The few shapes that batches are padded to: few graphs are compiled, and all of them before the first request."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..configuration_higr import HiGRConfig
    from ..modeling_higr import HiGRForSlateGeneration


@dataclass(frozen=True)
class Shapes:
    """Sizes of batches.

    Attributes:
        rows: numbers of requests, ascending; the last is the largest batch.
        units: lengths of histories, ascending, in units: events and one more for `<bos>`.

    Raises:
        ValueError: for sizes that are missing, not positive or not ascending.

    Example:
        >>> shapes = Shapes(rows=(1, 8, 32), units=(64, 201))
        >>> shapes.rows_for(3), shapes.units_for(64), shapes.units_for(65)
        (8, 64, 201)
    """

    rows: tuple[int, ...]
    units: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("rows", "units"):
            sizes = getattr(self, name)
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"{name} must hold ascending sizes of at least 1; got {sizes}.")

    @classmethod
    def covering(cls, config: HiGRConfig, max_batch_size: int = 32) -> Shapes:
        """Few sizes that hold every history of a model, and batches of up to `max_batch_size`.

        Example:
            >>> Shapes.covering(HiGRConfig.from_preset("tiny", max_history=200), 32)
            Shapes(rows=(1, 8, 32), units=(51, 201))
        """
        longest = config.max_history + 1
        rows = {1, *(size for size in (8, 32, 128) if size < max_batch_size), max_batch_size}
        return cls(tuple(sorted(rows)), tuple(sorted({-(-longest // 4), longest})))

    def rows_for(self, count: int) -> int:
        """The smallest number of rows that holds so many requests."""
        return self._smallest("rows", count)

    def units_for(self, count: int) -> int:
        """The smallest length that holds so many units."""
        return self._smallest("units", count)

    def _smallest(self, name: str, count: int) -> int:
        sizes = getattr(self, name)
        index = bisect.bisect_left(sizes, count)
        if index == len(sizes):
            raise ValueError(f"{count} {name} fit none of the shapes {sizes}.")
        return sizes[index]


def compile_stages(model: HiGRForSlateGeneration, backend: str, shapes: Shapes) -> None:
    """Compile what decoding repeats, in place: the planner, and the item generators' step.

    A graph is made for every shape, slot and code (each sees one more of its own kind than the one before). Past that
    many, for slates longer than usual, the stages run as they are. The encoder is not compiled: appended events give
    it a new shape nearly every time.

    Args:
        model: the model.
        backend: of `torch.compile`.
        shapes: of batches.
    """
    # Each shape of the longest slate; dynamo's own limit is meant for shapes that nobody has counted.
    graphs = len(shapes.rows) * len(shapes.units) * max(model.config.slate_size, 2 * model.config.num_levels)
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, graphs)
    model.model.planner.compile(backend=backend, dynamic=False)
    for generator in model.model.generators:
        generator.step = torch.compile(generator.step, backend=backend, dynamic=False)


__all__ = ["Shapes", "compile_stages"]
