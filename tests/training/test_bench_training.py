from __future__ import annotations

import functools

import pytest

from higr_hf.evaluation.results import read_rows
from tests.training.workspace import ROOT
from training import bench_training

SHAPE = "{batch: 2, num_items: 40, codebook_size: 4, slate_size: 2, history: 4, num_starts: 3, num_windows: 1}"


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch):
    small = functools.partial(bench_training.measure_ceilings, size=64, megabytes=1, repeats=1)
    monkeypatch.setattr(bench_training, "measure_ceilings", small)
    monkeypatch.setattr(bench_training, "keep_freed_memory", lambda: False)


def test_rows_say_what_was_timed(tmp_path):
    options = ["--shapes", f"[{SHAPE}]", "--dtypes", "[float32, bfloat16]", "--min_repeats", "1", "--budget", "0"]
    rows = bench_training.main([*options, "--results", str(tmp_path)])
    assert rows == read_rows(tmp_path / "speed.jsonl")
    found = {(row["system"], row["variant"]): row["metrics"] for row in rows}
    assert set(found) == {
        (system, f"{name}{dtype}")
        for dtype in ("", ", bfloat16")
        for system, name in (("onerec", "flat"), ("higr", "slates"), ("higr", "slates, catalogue prior"))
    }
    flat, higr = found["onerec", "flat"], found["higr", "slates"]
    assert flat["gain"] == 1 and higr["gain"] == pytest.approx(flat["ms"] / higr["ms"])
    assert higr["sequences_per_second"] == pytest.approx(2e3 / higr["ms"])
    seconds = higr["ms"] / 1e3
    share = higr["gigaflop"] / seconds / higr["machine_gflops"]
    assert higr["ceiling_share"] == pytest.approx(share) and 0 < higr["collate_share"] < 1


def test_the_recipe_is_one(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(bench_training, "_measure", lambda bench, dtype, *_: seen.append((bench.shape, dtype)) or [])
    recipe = str(ROOT / "training/recipes/bench_training.yaml")
    bench_training.main(["--recipe", recipe, "--results", str(tmp_path)])
    assert [(shape.preset, dtype) for shape, dtype in seen] == [
        ("tiny", "float32"), ("small", "float32"), ("base", "float32"),
    ]  # fmt: skip


def test_what_cannot_be_measured_is_refused(capsys):
    with pytest.raises(SystemExit, match="no setting 'slots'"):
        bench_training.main(["--shapes", "[{slots: 3}]"])
    with pytest.raises(SystemExit):
        bench_training.main(["--dtypes", "[float8]"])
    assert "--dtypes must be of" in capsys.readouterr().err
