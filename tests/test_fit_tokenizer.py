"""The tokenizer script: what it writes, loads by itself and belongs together; what it refuses, it says in one line."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from training import fit_tokenizer, study_tokenizers

FAST = ["--fit", "{epochs: 3, warmup_epochs: 1}", "--config", "{hidden_sizes: [8], latent_size: 4}"]


@pytest.fixture
def data(tmp_path):
    """A log of 12 users on 20 items, and an embedding file."""
    draw = np.random.default_rng(0)
    rows = [(f"u{user}", f"i{item}", step) for user in range(12) for step, item in enumerate(draw.permutation(20))]
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(tmp_path / "log.csv", index=False)
    items = [(f"i{item}", f"Item {item}", f"Item {item}. Kind {item % 3}") for item in range(20)]
    pd.DataFrame(items, columns=["item_id", "title", "text"]).to_csv(tmp_path / "items.csv", index=False)
    np.save(tmp_path / "vectors.npy", draw.normal(size=(20, 6)).astype(np.float32))
    return [
        *("--interactions", str(tmp_path / "log.csv"), "--items", str(tmp_path / "items.csv")),
        *("--embeddings", str(tmp_path / "vectors.npy"), "--output_dir", str(tmp_path / "out")),
        *("--codebook_sizes", "[4, 4, 4]"),
    ]


@pytest.mark.parametrize("method", ["crq-vae", "rq-kmeans"])
def test_the_directory_is_whole(method, data, tmp_path):
    options = FAST if method == "crq-vae" else []
    metrics = fit_tokenizer.main([*data, *options, "--method", method, "--feedback_edges", "[2.5, 3.5]"])
    output = tmp_path / "out"
    assert {path.name for path in output.iterdir()} == {"tokenizer", "quantizer", "tokenizer_report.json"}
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    quantizer = AutoModel.from_pretrained(output / "quantizer")
    assert tokenizer.num_items == 20 and tokenizer.num_feedback_levels == 3
    raw = quantizer.encode(torch.from_numpy(np.load(tmp_path / "vectors.npy"))).numpy()
    moved = (raw != tokenizer.codes).any(axis=1).mean()
    assert moved == pytest.approx(metrics["moved"])
    report = json.loads((output / "tokenizer_report.json").read_text())
    assert report["num_items"] == 20 and report["metrics"]["collision"] == metrics["collision"]
    assert report["arguments"]["method"] == method and report["environment"]["versions"]


def test_a_recipe_stands_under_the_command_line(data, tmp_path):
    (tmp_path / "recipe.yaml").write_text("method: rq-kmeans\ncodebook_sizes: [5, 5]\nseed: 3\n")
    fit_tokenizer.main([*data[:-2], "--recipe", str(tmp_path / "recipe.yaml"), "--seed", "4"])
    report = json.loads((tmp_path / "out" / "tokenizer_report.json").read_text())
    assert report["codebook_sizes"] == [5, 5] and report["arguments"]["seed"] == 4


def test_random_embeddings_are_drawn_by_the_seed(data, tmp_path):
    """The control whose ids say nothing of an item."""
    codes = []
    for seed in (0, 0, 1):
        fit_tokenizer.main([*data, "--embeddings", "random", "--method", "rq-kmeans", "--seed", str(seed)])
        codes.append(AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer").codes)
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (np.asarray(codes[0]) != np.asarray(codes[2])).any()


def test_unknown_settings_are_named(data):
    with pytest.raises(SystemExit, match="epoch"):
        fit_tokenizer.main([*data, "--fit", "{epoch: 3}"])
    with pytest.raises(SystemExit, match="likes"):
        fit_tokenizer.main([*data, "--positives", "embedding+likes"])


def test_a_failed_fit_leaves_the_tokenizer_before_it_alone(data, tmp_path):
    fit_tokenizer.main([*data, "--method", "rq-kmeans"])
    before = (tmp_path / "out" / "tokenizer" / "item_sids.safetensors").read_bytes()
    with pytest.raises(ValueError, match="do not fit"):
        fit_tokenizer.main([*data, "--method", "rq-kmeans", "--codebook_sizes", "[2, 2, 2]"])
    assert (tmp_path / "out" / "tokenizer" / "item_sids.safetensors").read_bytes() == before


def test_bounds_of_the_study_by_hand():
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], dtype=np.float32)
    bounds = study_tokenizers.bounds_of(x, [["a"], ["a", "b"], ["c"], []])
    # One of four embeddings is a repetition; the pairs are (0,1) and (1,0), which share a, and (2,0), which do not.
    assert bounds == {"collision_floor": pytest.approx(1 / 4), "neighbour_consistency": pytest.approx(2 / 3)}
