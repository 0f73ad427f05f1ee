"""The serving benchmark at its smallest: a real server process, two ways of asking, and the same slates."""

from __future__ import annotations

import pytest

from higr_hf.evaluation.results import read_rows
from training.bench_serving import main


@pytest.mark.slow
def test_rows_of_both_workloads_agree(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = main(
        ["--shape", "{num_items: 60, codebook_size: 4, history: 8, num_beams: 2, slate_size: 2}",
         "--clients", "[1, 2]", "--users", "2", "--seconds", "0.1", "--results", str(tmp_path)]
    )  # fmt: skip
    assert rows == read_rows(tmp_path / "serving.jsonl")
    assert [row["variant"] for row in rows] == ["batched, history sent", "batched, user kept"]
    for row in rows:
        assert 0 < row["metrics"]["p50_ms@2"] <= row["metrics"]["p99_ms@2"]
        assert row["metrics"]["refused@1"] == 0 and row["metrics"]["batch@1"] == 1
    assert rows[1]["metrics"]["compared"] >= 3  # each client asks once at least
    assert rows[1]["metrics"]["same"] == rows[1]["metrics"]["compared"]
