"""The studies of joined items and of precision, from a log to result rows."""

from __future__ import annotations

import numpy as np
import pytest

from higr_hf.evaluation.results import read_rows
from tests.training.workspace import write_checkpoint, write_log, write_recipe, write_tokenizer
from training import study_cold_items, study_precision


@pytest.mark.slow
def test_joined_items_are_measured_apart(tmp_path):
    log = write_log(tmp_path)
    topics = np.array([int(item[1:]) % 4 for item in log.item_ids])
    vectors = np.eye(4)[topics] + 0.3 * np.random.default_rng(0).normal(size=(len(topics), 4))
    np.save(tmp_path / "vectors.npy", vectors)
    options = write_recipe(tmp_path)
    recipe, foreign = tmp_path / "recipe.yaml", ("tokenizer:", "eval_users:", "diversity_embeddings:")
    kept = [line for line in recipe.read_text().splitlines() if not line.startswith(foreign)]
    recipe.write_text("\n".join(kept) + "\n")
    results = study_cold_items.main(
        [
            *options, "--embeddings", str(tmp_path / "vectors.npy"), "--codebook_sizes", "[4, 8, 8]",
            "--cold_share", "0.25", "--results", str(tmp_path), "--num_train_epochs", "1",
        ]
    )  # fmt: skip
    assert len(results) == 9
    rows = read_rows(tmp_path / "benchmark.jsonl")
    assert [row["metrics"] for row in rows] == list(results.values())
    shares = {name: metrics["cold_share"] for name, metrics in results.items()}
    assert shares["higr: cold targets, joined after training, only they allowed"] == 1
    assert shares["higr: warm targets, joined after training, last slot theirs"] >= 0.2
    assert shares["popularity: warm targets, counted without them"] == 0
    chance = results["higr: cold targets, joined after training, only they allowed"]["chance_recall@5"]
    assert chance == pytest.approx(5 / round(0.25 * len(topics)))
    assert all(metrics["validity"] == 1 and metrics["duplicates"] == 0 for metrics in results.values())
    # A user counts where they have a target of the kind.
    counts = {row["variant"]: row["n_users"] for row in rows if row["system"] == "popularity"}
    assert 0 < counts["cold targets, counted without them"] < 64 >= counts["warm targets, counted without them"] > 0


def test_what_nobody_knows_yet_cannot_be_embedded(capsys):
    with pytest.raises(SystemExit):
        study_cold_items.main(["--embeddings", "both"])
    assert "before anybody meets an item" in capsys.readouterr().err


def test_precisions_are_measured_on_one_model(tmp_path):
    log = write_log(tmp_path)
    tokenizer = write_tokenizer(tmp_path, log)
    write_checkpoint(tmp_path / "model", tokenizer, max_history=20)
    results = study_precision.main(
        [
            "--model", str(tmp_path / "model"), "--interactions", str(tmp_path / "log.csv"),
            "--items", str(tmp_path / "items.csv"), "--columns", "{user_id: uid, timestamp: when}",
            "--generation", "{slate_mode: first_plan}", "--results", str(tmp_path),
        ]
    )  # fmt: skip
    assert list(results) == ["float32", "bfloat16", "int8 weights", "int8 products"]
    assert results["float32"]["same_items"] == 1 and results["int8 weights"]["same_items"] > 0.5
    assert results["int8 products"]["same_items"] > 0.5
    sizes = [metrics["megabytes"] for metrics in results.values()]
    assert sizes[0] > 1.9 * sizes[1] > 1.9 * 1.6 * sizes[2]
    assert len(read_rows(tmp_path / "benchmark.jsonl")) == 4
