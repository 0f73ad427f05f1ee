"""A tiny model with every kind of token, and its tokenizer."""

from __future__ import annotations

import pytest

from higr_hf import HiGRForSlateGeneration, HiGRTokenizer
from tests.model_tester import HiGRModelTester

Parts = tuple[HiGRForSlateGeneration, HiGRTokenizer]


def make_parts(**overrides) -> Parts:
    tester = HiGRModelTester()
    ids = [f"i{item}" for item in range(tester.num_items)]
    tokenizer = HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2)
    return tester.model(tokenizer_fingerprint=tokenizer.fingerprint, **overrides), tokenizer


@pytest.fixture
def parts() -> Parts:
    return make_parts()
