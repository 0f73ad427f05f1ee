"""A tiny model with its tokenizer, and the plain path that every answer is held against."""

from __future__ import annotations

from typing import Any

import pytest

from higr_hf import HiGRTokenizer, SlateRecommendationPipeline
from tests.model_tester import HiGRModelTester


def tokenizer_of(tester: HiGRModelTester) -> HiGRTokenizer:
    """A tokenizer with titles over the tester's catalogue."""
    ids = [f"i{item}" for item in range(tester.num_items)]
    titles = [f"Film {item}" for item in range(tester.num_items)]
    return HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2, titles=titles)


def with_features(**overrides: Any) -> dict[str, Any]:
    """Settings of a model that cuts raw feedback and time gaps itself."""
    return {"feedback_edges": [2.0, 4.0], "time_edges": [60.0], **overrides}


def same_slates(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    """Two slates agree item for item, and in their scores up to the rounding of sums."""
    assert [place["item_id"] for place in one] == [place["item_id"] for place in two]
    assert [place["score"] for place in one] == pytest.approx([place["score"] for place in two], abs=1e-4)


@pytest.fixture(scope="session")
def small() -> tuple:
    """Model, tokenizer and the plain pipeline."""
    tester = HiGRModelTester()
    model, tokenizer = tester.model(**with_features()), tokenizer_of(tester)
    return model, tokenizer, SlateRecommendationPipeline(model, tokenizer, device="cpu")
