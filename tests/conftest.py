"""Settings every test needs, and the tiny model most of them use."""

from __future__ import annotations

import os

# Before torch starts: several busy OpenMP threads on few cores are far slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.model_tester import HiGRModelTester

torch.set_num_threads(1)
settings.register_profile(
    "higr", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("higr")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tester() -> HiGRModelTester:
    return HiGRModelTester()
