"""Quality and speed of trained checkpoints: what the rows say, and what is refused."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import yaml

from higr_hf.evaluation import SlateEvaluator, metrics
from higr_hf.evaluation.results import read_rows
from tests.training.workspace import ROOT, write_checkpoint, write_log, write_tokenizer
from training import study_pareto

SETTINGS = {
    "flat beam": {"system": "onerec", "num_beams": 3},
    "flat beam, no cache": {"system": "onerec", "num_beams": 3, "use_cache": False},
    "plan-once": {"system": "higr", "slate_mode": "plan_once", "num_beams": 3},
    "first-plan, input-major": {"system": "higr", "slate_mode": "first_plan", "prepared": "input-major"},
}
RECIPES = ROOT / "training" / "recipes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A log, and two checkpoints for slates of six."""
    folder = tmp_path_factory.mktemp("pareto")
    log = write_log(folder, num_users=12)
    tokenizer = write_tokenizer(folder, log)
    for system in ("higr", "onerec"):
        write_checkpoint(
            folder / system, tokenizer, system, hidden_size=32, intermediate_size=64, max_history=10, slate_size=6
        )
    return folder


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch):
    small = functools.partial(study_pareto.measure_ceilings, size=64, megabytes=1, repeats=1)
    monkeypatch.setattr(study_pareto, "measure_ceilings", small)


def arguments(folder, results, **options):
    given = {
        "checkpoints": {system: str(folder / system) for system in ("higr", "onerec")},
        "settings": SETTINGS,
        "interactions": str(folder / "log.csv"),
        "items": str(folder / "items.csv"),
        "columns": {"user_id": "uid", "timestamp": "when"},
        "view_rule": "rating >= 4",
        "slate_size": 6,
        "diversity_embeddings": "none",
        "batches": [1, 2],
        "draws": 2,
        "budget": 0,
        "results": str(results),
        **options,
    }
    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    return [part for name, value in written.items() for part in (f"--{name}", value)]


def test_rows_hold_quality_and_speed_of_one_run(folder, tmp_path, monkeypatch, capsys):
    judged = {}

    class Kept(SlateEvaluator):
        def evaluate(self, recommend, desc):
            judged[desc] = (super().evaluate(recommend, desc), self.targets)
            return judged[desc][0]

    monkeypatch.setattr(study_pareto, "SlateEvaluator", Kept)
    options = arguments(folder, tmp_path, plot=str(tmp_path / "pareto.png"))
    rows = study_pareto.main(options)
    assert rows == read_rows(tmp_path / "pareto.jsonl")
    assert {row["dataset"] for row in rows} == {"log, width 32, 6 slots, history 10"}
    assert [(row["system"], row["variant"]) for row in rows] == [
        (setting["system"], name) for name, setting in SETTINGS.items()
    ]
    assert list(judged) == ["flat beam", "plan-once", "first-plan, input-major"], "the cache changes no slate"
    found = {row["variant"]: row["metrics"] for row in rows}
    flat, once = found["flat beam"], found["plan-once"]
    result, targets = judged["plan-once"]
    assert once["ndcg@6"] == pytest.approx(metrics.ndcg(result.slates, targets))
    assert once["ndcg@5"] == pytest.approx(metrics.ndcg(result.slates[:, :5], targets))
    assert once["ndcg_gain@5"] == pytest.approx(once["ndcg@5"] - flat["ndcg@5"])
    assert flat["ndcg_gain@5"] == 0 and flat["gain@1"] == flat["gain@2"] == 1
    assert found["flat beam, no cache"]["ndcg@5"] == flat["ndcg@5"]
    for values in found.values():
        assert values["same@1"] == values["same@2"] == 1, "what is timed is what was judged"
        assert values["gain_low@2"] <= values["gain@2"] <= values["gain_high@2"]
        assert values["slates_per_second@2"] == pytest.approx(2e3 / values["ms@2"])
        assert values["history@1"] == 10 and values["megabytes@1"] > 0
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")

    assert "items a prompt: least 10, median 10, most 10" in capsys.readouterr().out
    assert study_pareto.main(options) == rows and read_rows(tmp_path / "pareto.jsonl") == rows
    assert "done before" in capsys.readouterr().out


def test_one_setting_that_is_missing_measures_all_anew(folder, tmp_path):
    fast = {"batches": [1], "draws": 1}
    two = {name: SETTINGS[name] for name in ("flat beam", "plan-once")}
    study_pareto.main(arguments(folder, tmp_path, settings={"flat beam": SETTINGS["flat beam"]}, **fast))
    assert len(study_pareto.main(arguments(folder, tmp_path, settings=two, **fast))) == 2
    assert [row["variant"] for row in read_rows(tmp_path / "pareto.jsonl")] == ["flat beam", "flat beam", "plan-once"]


def test_a_setting_that_is_too_slow_is_not_asked_for_more(folder, tmp_path):
    one = {"flat beam": SETTINGS["flat beam"]}
    (row,) = study_pareto.main(arguments(folder, tmp_path, settings=one, draws=1, max_seconds=0))
    assert "ms@1" in row["metrics"] and "ms@2" not in row["metrics"]


def test_users_are_drawn_once_while_there_are_enough():
    options = study_pareto.ParetoArguments(draws=3)
    drawn = np.array(study_pareto._draw_users(7, 2, options))
    assert drawn.shape == (3, 2) and len(set(drawn.flatten())) == 6
    assert set(np.array(study_pareto._draw_users(4, 2, options)).flatten()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": {}}, "--checkpoints is missing"),
        ({"reference": "flat"}, "'flat' is no setting"),
        ({"settings": {"a": {"num_beams": 2}}}, "'a' needs a system"),
        ({"settings": {"a": {"system": "onerec", "slate_mode": "plan_once"}}}, "no setting 'slate_mode'"),
        ({"slate_size": 7}, "trained for slates of 6"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        study_pareto.main(arguments(folder, tmp_path, **options))


def test_the_recipes_fit_together(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(study_pareto, "_measure", lambda *given: asked.extend(given[2]) or [])
    own = arguments(folder, tmp_path, plot="")
    for name in ("settings", "batches", "draws", "budget"):
        place = own.index(f"--{name}")
        del own[place : place + 2]
    study_pareto.main(["--recipe", str(RECIPES / "study_pareto.yaml"), *own])
    assert len({decoding.name for decoding in asked}) == len(asked) >= 12
    assert {decoding.options["slate_mode"] for decoding in asked if decoding.system == "higr"} == {
        "sequential", "plan_once", "verified", "first_plan",
    }  # fmt: skip
    higr, onerec, study, ids = (
        yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("pareto_higr", "pareto_onerec", "study_pareto", "pareto_tokenizer")
    )
    assert study["checkpoints"] == {"higr": f"{higr['output_dir']}/model", "onerec": f"{onerec['output_dir']}/model"}
    assert higr["tokenizer"] == onerec["tokenizer"] == f"{ids['output_dir']}/tokenizer"
    assert {recipe["slate_size"] for recipe in (higr, onerec, study, ids)} == {10}
    budget = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "preset", "weight_decay")
    assert [higr[name] for name in budget] == [onerec[name] for name in budget]
