"""The report says what it was given: figures, times, commands, versions, slates."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from higr_hf.evaluation import EvaluationResult
from higr_hf.evaluation.report import Report, SlateExample


def result() -> EvaluationResult:
    return EvaluationResult(
        metrics={"ndcg@5": 0.25, "view_ndcg@5": math.nan},
        intervals={"ndcg@5": (0.2, 0.3), "view_ndcg@5": (math.nan, math.nan)},
        per_user={"ndcg@5": np.array([0.0, 0.5])},
        user_ids=["u", "v"],
        slates=np.zeros((2, 5), dtype=np.int64),
        counts={"users": 2},
        timings={"seconds": 1.0},
    )


def report() -> Report:
    example = SlateExample("u", [f"Old {i}" for i in range(12)], ["Alien", "Up | Down"], ["Alien", "Jaws"])
    return Report(
        "A run",
        {"higr": result(), "popularity": {"ndcg@5": 0.125, "coverage": 0.5}},
        seed=3,
        seconds={"fit": 1.25, "train": 60.0},
        commands=["make quickstart"],
        settings={"dataset": "toy"},
        plots={"Curves": "training.png"},
        examples=[example],
        notes=["A note."],
    )


def test_the_metrics_table_by_hand():
    assert report().metrics_table() == (
        "| metric      | higr   | popularity |\n"
        "| ----------- | -----: | ---------: |\n"
        "| ndcg@5      | 0.2500 | 0.1250     |\n"
        "| view_ndcg@5 | –      | –          |\n"
        "| coverage    | –      | 0.5000     |\n"
    )


def test_both_files_are_written_and_hold_everything(tmp_path):
    report().save(tmp_path / "run")
    content = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert content["systems"]["higr"]["metrics"] == {"ndcg@5": 0.25, "view_ndcg@5": None}
    assert content["systems"]["higr"]["intervals"] == {"ndcg@5": [0.2, 0.3], "view_ndcg@5": None}
    assert content["systems"]["popularity"] == {"metrics": {"ndcg@5": 0.125, "coverage": 0.5}}
    assert content["seconds"] == {"fit": 1.25, "train": 60.0} and content["seed"] == 3
    assert content["commands"] == ["make quickstart"] and content["versions"]["torch"] and content["machine"]
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    for piece in (
        "# A run\n\nA note.",
        "- higr: ndcg@5 0.2500 (0.2000 to 0.3000)",
        "![Curves](training.png)",
        "| history (last 10 of 12) | slate",
        "| Old 2                   | Alien ✓    | Alien",
        "Up \\| Down",
        "| total | 61.2",
        "```bash\nmake quickstart\n```",
        "Seed 3; ",
        "| dataset | toy",
    ):
        assert piece in text, piece
    assert "Old 1 " not in text


def test_a_report_without_a_system_is_refused():
    with pytest.raises(ValueError, match="at least one system"):
        Report("Empty", {}, seed=0)
