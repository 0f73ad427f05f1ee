from __future__ import annotations

import pytest

pytest.importorskip("trl")

from datasets import Dataset

from higr_hf import HiGRTokenizer, save_checkpoint
from tests.alignment.pairs import PAIRS, to_dataset
from tests.hub.conftest import client, hub  # noqa: F401 - fixtures
from tests.model_tester import HiGRModelTester


@pytest.fixture(scope="module")
def tokenizer() -> HiGRTokenizer:
    tester = HiGRModelTester()
    ids = [f"i{item}" for item in range(tester.num_items)]
    return HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2)


@pytest.fixture(scope="module", params=[False, True], ids=["generator", "catalog-prior"])
def checkpoint(request, tokenizer, tmp_path_factory) -> str:
    """A model without dropout, so that what a trainer computes in training mode can be compared."""
    model = HiGRModelTester().model(
        dropout=0.0, catalog_prior=request.param, tokenizer_fingerprint=tokenizer.fingerprint
    )
    return str(save_checkpoint(tmp_path_factory.mktemp("alignment") / "model", model, tokenizer))


@pytest.fixture(scope="module")
def pairs(tokenizer) -> Dataset:
    return to_dataset(PAIRS, tokenizer)
