"""A running double of the Hub, a client in this process that talks to it, and directories to push."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import constants
from huggingface_hub.utils import _http

from higr_hf import CRQVAEConfig, CRQVAEModel, HiGRTokenizer, save_checkpoint
from higr_hf.cards import write_card, write_dataset_card
from higr_hf.item_categories import CATEGORIES_FILE
from tests.hub.server import HubServer, serve
from tests.model_tester import HiGRModelTester

REPORT = {
    "title": "A run",
    "systems": {
        "higr": {"metrics": {"ndcg@5": 0.25}, "intervals": {"ndcg@5": [0.2, 0.3]}, "primary_metric": "ndcg@5"},
        "popularity": {"metrics": {"ndcg@5": 0.125}},
    },
    "seed": 0,
    "settings": {"source": "toy", "licence": "CC BY 4.0"},
    "plots": {"Curves": "plots/training.png"},
}


def make_parts(root: Path, initializer_range: float = 0.4) -> Path:
    """`model/`, `tokenizer/`, `quantizer/`, `preferences/` and the report of a run, all tiny."""
    tester = HiGRModelTester()
    ids = [f"i{item}" for item in range(tester.num_items)]
    tokenizer = HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2)
    (root / "plots").mkdir(parents=True)
    (root / "plots" / "training.png").write_bytes(b"\x89PNG\r\n\x1a\n\0picture")
    categories = {CATEGORIES_FILE: json.dumps({"i1": ["Odd"]})}
    save_checkpoint(root / "model", tester.model(initializer_range=initializer_range), tokenizer, categories)
    tokenizer.save_pretrained(root / "tokenizer")
    sizes = list(tester.codebook_sizes)
    CRQVAEModel(
        CRQVAEConfig(input_size=4, latent_size=4, hidden_sizes=[4], codebook_sizes=sizes, autoencoder=True)
    ).save_pretrained(root / "quantizer")
    for part in ("model", "tokenizer", "quantizer"):
        write_card(root / part, REPORT, plots_from=root)
    pairs = {
        "prompt": [tokenizer.build_prompt(["i1"]), tokenizer.build_prompt([])],
        "chosen": [tokenizer.build_completion(["i2", "i3"]), tokenizer.build_completion(["i4"])],
        "rejected": [tokenizer.build_completion(["i3", "i2"]), tokenizer.build_completion(["i5"])],
        "objective": ["order", "interest"],
    }
    write_dataset_card(root / "preferences", Dataset.from_dict(pairs), source="toy", licence="CC BY 4.0")
    return root


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """Directories that no test changes."""
    return make_parts(tmp_path_factory.mktemp("parts") / "run")


@pytest.fixture
def run(parts, tmp_path) -> Path:
    """The same directories, to change."""
    return Path(shutil.copytree(parts, tmp_path / "run"))


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serve() as server:
        server.add_account("ann", "ann-writes")
        server.add_account("ann", "ann-reads", role="read")
        server.add_account("bob", "bob-writes")
        yield server


@pytest.fixture
def client(hub, tmp_path, monkeypatch) -> HubServer:
    """The double, with this process as its client: `huggingface_hub` reads its settings once, so they are replaced."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", "ann-writes")
    # Between its attempts the client waits for seconds.
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    return hub
