"""Trained checkpoints, decoded in several ways for the same users."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint import CheckpointError, load_checkpoint
from ..recommender import SlateRecommender
from .systems import check_preparation, prepare

if TYPE_CHECKING:
    from ..modeling_higr import HiGRForSlateGeneration
    from ..tokenization_higr import HiGRTokenizer


@dataclass(frozen=True)
class Decoding:
    """One way of decoding with one checkpoint.

    Attributes:
        name: what tells it from others.
        system: which checkpoint, `higr` or `onerec`.
        options: arguments of `generate`.
        prepared: as in [`Bench`], what is done to the model first.
    """

    name: str
    system: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prepared: str = "float32"

    @property
    def slates_of(self) -> tuple:
        """Equal for decodings that give the same slates: keeping keys and values or not changes none."""
        options = {name: value for name, value in self.options.items() if name != "use_cache"}
        return self.system, self.prepared, tuple(sorted(options.items()))


class TrainedBench:
    """Checkpoints with one tokenizer, as recommenders and as calls to be timed.

    Args:
        checkpoints: system -> directory with model and tokenizer.
        slate_size: M.
        device: where.

    Attributes:
        tokenizer: the checkpoints'.

    Raises:
        CheckpointError: for checkpoints that name items by different semantic IDs: their quality and their speed would
            not compare.

    Example:
        >>> bench = TrainedBench({"higr": "runs/quickstart/model"}, slate_size=5)
        >>> once = Decoding("plan-once", "higr", {"slate_mode": "plan_once", "num_beams": 10})
        >>> bench.call(once, [evaluator.rows([0, 1])])().shape
        (2, 5)
        >>> evaluator.evaluate(bench.recommender(once)).metrics["ndcg@5"]
    """

    def __init__(self, checkpoints: Mapping[str, str | os.PathLike], slate_size: int, device: str = "cpu") -> None:
        self.checkpoints, self.slate_size, self.device = dict(checkpoints), slate_size, device
        self._models: dict[tuple[str, str], HiGRForSlateGeneration] = {}
        self.tokenizer: HiGRTokenizer | None = None
        for system, place in self.checkpoints.items():
            model, tokenizer = load_checkpoint(place)
            self.tokenizer = self.tokenizer or tokenizer
            if tokenizer.fingerprint != self.tokenizer.fingerprint:
                raise CheckpointError(
                    f"{place} has another tokenizer than {next(iter(self.checkpoints.values()))}: compare checkpoints "
                    "that were trained with one."
                )
            self._models[system, "float32"] = prepare(model, "float32", device)

    def model(self, system: str, prepared: str = "float32") -> HiGRForSlateGeneration:
        """The model of a checkpoint; prepared otherwise than float32 when it is first asked for so.

        Raises:
            ValueError: for a system without checkpoint, and for an unknown preparation.
        """
        check_preparation(prepared)
        if system not in self.checkpoints:
            raise ValueError(f"There is no checkpoint of {system!r}; there are {sorted(self.checkpoints)}.")
        if (system, prepared) not in self._models:
            model, _ = load_checkpoint(self.checkpoints[system])
            self._models[system, prepared] = prepare(model, prepared, self.device)
        return self._models[system, prepared]

    def recommender(self, decoding: Decoding) -> SlateRecommender:
        """Model and way of decoding, as [`SlateEvaluator`] takes them."""
        model = self.model(decoding.system, decoding.prepared)
        return SlateRecommender(model, self.tokenizer, self.slate_size, generation=decoding.options)

    def call(self, decoding: Decoding, batches: Sequence[Mapping[str, Any]]) -> Callable[[], np.ndarray]:
        """What is timed: `generate` alone, for each batch in turn and then the first again.

        Args:
            decoding: how.
            batches: rows of users as [`SlateEvaluator.rows`] gives them; read and tokenised now.

        Returns:
            A call that returns slates int64 `[B, M]`.
        """
        recommender = self.recommender(decoding)
        inputs = itertools.cycle([recommender.inputs(batch) for batch in batches])
        return lambda: recommender.model.generate(**next(inputs)).slates.cpu().numpy()


__all__ = ["Decoding", "TrainedBench"]
