"""The slate metrics as an `evaluate` module: a thin wrapper around `higr_hf.evaluation.metrics`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from higr_hf.evaluation import metrics

_CITATION = """\
@article{pang2025higr,
  title = {{HiGR}: Efficient Generative Slate Recommendation via Hierarchical Planning and Multi-Objective Preference
           Alignment},
  author = {Pang, Yunsheng and others},
  journal = {arXiv preprint arXiv:2512.24787},
  year = {2025}
}
"""
_DESCRIPTION = """\
Hit@k, recall@k and NDCG@k (binary gains, repeated items count once) of recommended slates against target items, over
all targets and, with `views`, over the effectively viewed ones; and the slates' duplicate rate.
"""
_INPUTS = """
Args:
    predictions (`list[list[int]]`, or `list[list[str]]` with the configuration `item_ids`): slates, best item first.
        Item indices below 0 are empty slots.
    references (the same): target items of each user. A user without any does not count.
    views (`list[list[bool]]`, *optional*): for every reference whether it was effectively viewed.
    k (`int`, *optional*): cut the slates to their first k items; their longest length by default.
Returns:
    `dict[str, float]`: `hit@k`, `recall@k`, `ndcg@k`, `duplicates`; with `views` also `view_hit@k`, ...
Examples:
    >>> metric = evaluate.load("higr_hf/evaluation/slate_metrics")
    >>> metric.compute(predictions=[[3, 1]], references=[[1, 2]])["recall@2"]
    0.5
"""


class SlateMetrics(evaluate.Metric):
    """`evaluate.Metric` over item indices (default) or string item ids (`config_name="item_ids"`)."""

    def _info(self) -> evaluate.MetricInfo:
        kind = "string" if self.config_name == "item_ids" else "int64"
        items = datasets.Sequence(datasets.Value(kind))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": items, "references": items}),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[Any]],
        references: Sequence[Sequence[Any]],
        views: Sequence[Sequence[bool]] | None = None,
        k: int | None = None,
    ) -> dict[str, float]:
        size = k if k is not None else max((len(row) for row in predictions), default=0)
        if size < 1:
            raise ValueError(f"k is {size}: pass slates with at least one item, or a positive k.")
        numbers: dict[Hashable, int] = {}
        slates = _indices([row[:size] for row in predictions], numbers, width=size)
        targets = _indices(references, numbers)
        result = {"duplicates": metrics.duplicates(slates), **_ranking("", slates, targets, size)}
        if views is not None:
            lengths = [len(row) for row in references]
            if [len(row) for row in views] != lengths:
                raise ValueError("views need one value for every reference, row by row.")
            seen = np.zeros(targets.shape, dtype=bool)
            for row, flags in enumerate(views):
                seen[row, : len(flags)] = flags
            result.update(_ranking("view_", slates, metrics.keep_views(targets, seen), size))
        return result


def _indices(rows: Sequence[Sequence[Any]], numbers: dict[Hashable, int], width: int | None = None) -> np.ndarray:
    """Rows of items as one padded int64 array; string ids are numbered in the order they come."""
    width = width if width is not None else max((len(row) for row in rows), default=0)
    array = np.full((len(rows), width), metrics.PADDING, dtype=np.int64)
    for index, row in enumerate(rows):
        items = [numbers.setdefault(item, len(numbers)) if isinstance(item, str) else int(item) for item in row]
        array[index, : len(items)] = items
    return array


def _ranking(prefix: str, slates: np.ndarray, targets: np.ndarray, size: int) -> dict[str, float]:
    return {
        f"{prefix}hit@{size}": metrics.hit(slates, targets),
        f"{prefix}recall@{size}": metrics.recall(slates, targets),
        f"{prefix}ndcg@{size}": metrics.ndcg(slates, targets),
    }
