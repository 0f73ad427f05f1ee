"""How a model's slates are decoded and judged on a split: the same for a run that trains and one that aligns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .evaluation import EvaluationResult, SlateEvaluator
from .recommender import SlateRecommender

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from .modeling_higr import HiGRForSlateGeneration
    from .tokenization_higr import HiGRTokenizer


@dataclass(frozen=True, kw_only=True)
class SlateJudge:
    """Judges models on rows with held-out slates.

    Args:
        splits: split name -> its rows.
        tokenizer: the models'.
        slate_size: M.
        generation: how slates are decoded, arguments of `generate`.
        wish: feedback level asked for.
        exclude_history: whether items of the history may not be recommended again.
        embeddings: float `[N, E]` in the tokenizer's item order, for the diversity of slates.
        seed: of the draw of users and of the bootstrap.

    Example:
        >>> judge = SlateJudge(splits=splits, tokenizer=tokenizer, slate_size=5)
        >>> judge.evaluate(model, "validation", num_resamples=0).metrics["ndcg@5"]
    """

    splits: DatasetDict | Mapping[str, Dataset]
    tokenizer: HiGRTokenizer
    slate_size: int
    generation: Mapping[str, Any] = field(default_factory=dict)
    wish: int | None = None
    exclude_history: bool = True
    embeddings: np.ndarray | None = None
    seed: int = 0

    def recommender(self, model: HiGRForSlateGeneration, **changes: Any) -> SlateRecommender:
        """A model decoding as the settings say but for `changes` to [`SlateRecommender`]."""
        fields = {"slate_size": self.slate_size, "wish": self.wish, "generation": self.generation}
        return SlateRecommender(model, self.tokenizer, **{**fields, **changes})

    def evaluator(self, split: str | Dataset, **options: Any) -> SlateEvaluator:
        """The evaluator of a split by name, or of rows of one; `options` are of [`SlateEvaluator`]."""
        return SlateEvaluator(
            self.splits[split] if isinstance(split, str) else split,
            self.tokenizer.item_ids,
            slate_size=self.slate_size,
            embeddings=self.embeddings,
            exclude_history=self.exclude_history,
            **{"seed": self.seed, **options},
        )

    def evaluate(self, model: HiGRForSlateGeneration, split: str, **options: Any) -> EvaluationResult:
        """Judge a model's slates on a whole split."""
        return self.evaluator(split, **options).evaluate(self.recommender(model), desc=f"Decoding {split} slates")

    def watched_users(self, number: int | None) -> list[int]:
        """Rows of the validation split that judge a model while it trains: so many, drawn once; all for `None`."""
        total = len(self.splits["validation"])
        if number is None or number >= total:
            return list(range(total))
        return np.sort(np.random.default_rng(self.seed).choice(total, number, replace=False)).tolist()
