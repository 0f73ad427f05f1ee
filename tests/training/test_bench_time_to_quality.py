"""Time to quality on a log of its own, with two systems that need no other environment."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from higr_hf.baselines.early_stopping import Judgement
from higr_hf.evaluation.results import read_rows
from tests.training.workspace import COLUMNS, ROOT, write_log
from training import bench_time_to_quality
from training.bench_time_to_quality import Curve

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="seconds of the processor are measured without a GPU"
)

PLAN = {
    "tokenizers": {"ids": {"method": "rq-kmeans", "embeddings": "collaborative", "codebook_sizes": [8, 8, 8]}},
    "diversity_embeddings": "collaborative",
    "systems": {
        "ease": {"kind": "ease", "system": "ease", "deterministic": True},
        "vectors": {
            "kind": "sasrec-item-vectors",
            "system": "sasrec",
            "tokenizer": "ids",
            "settings": {"hidden_size": 16, "intermediate_size": 32, "blocks": 1, "max_history": 8, "batch_size": 16},
            "trials": [{"epochs": 4, "eval_every": 2}, {"epochs": 99}],
        },
        "higr": {
            "kind": "slates",
            "system": "higr",
            "tokenizer": "ids",
            "settings": {
                "model": {"hidden_size": 16, "intermediate_size": 32, "max_history": 8},
                "generation": {"num_beams": 4},
                "diversity_embeddings": "collaborative",
                "eval_users": 3,
                "num_train_epochs": 2,
                "learning_rate": 0.01,
                "per_device_train_batch_size": 16,
                "eval_strategy": "epoch",
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": True,
            },
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("time-to-quality")
    write_log(folder, num_users=32, length=18)
    data = {"interactions": str(folder / "log.csv"), "items": str(folder / "items.csv"), "columns": COLUMNS}
    (folder / "plan.yaml").write_text(yaml.safe_dump({"datasets": {"own": {"data": data}}, **PLAN}, sort_keys=False))
    return folder


def run(folder, **options):
    given = {
        "plan": folder / "plan.yaml",
        "datasets": "own",
        "systems": "vectors,higr",
        "reference": "vectors",
        "output_dir": folder / "runs",
        "results": folder / "results",
        **options,
    }
    return bench_time_to_quality.main([word for name, value in given.items() for word in (f"--{name}", str(value))])


@pytest.fixture(scope="module")
def measured(folder):
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        fit = bench_time_to_quality.fit_system

        def fitting(bench, system, *rest):
            trained = fit(bench, system, *rest)
            evaluator = bench.evaluator("validation", trained.batch_size)
            kept.append((system.name, evaluator.evaluate(trained.recommend).primary_value))
            return trained

        patch.setattr(bench_time_to_quality, "fit_system", fitting)
        rows = run(folder, plots=folder / "plots")
    return rows, dict(kept)


def curve(folder, name):
    content = json.loads((folder / "runs" / "own" / f"{name}-seed0.json").read_text())
    return content, [Judgement(*row) for row in content["history"]]


def test_a_row_a_system_with_seconds_of_three_kinds(folder, measured):
    rows, _ = measured
    assert rows == read_rows(folder / "results" / "time-to-quality.jsonl")
    assert [(row["system"], row["dataset"], row["n_users"]) for row in rows] == [
        ("sasrec", "own", 32), ("higr", "own", 32),
    ]  # fmt: skip
    for row, name in zip(rows, ("vectors", "higr"), strict=True):
        content, history = curve(folder, name)
        found = row["metrics"]
        assert found["ndcg@5"] == max(entry.score for entry in history)
        assert found["judgements"] == len(history) == 2
        assert found["training_seconds"] == history[-1].training_seconds > history[0].training_seconds > 0
        assert found["judging_seconds"] == history[-1].judging_seconds > 0
        assert found["tokenizer_seconds"] == content["tokenizer_seconds"] > 0
    first = curve(folder, "vectors")[1]
    reached = next(entry.training_seconds for entry in first if entry.score == rows[0]["metrics"]["ndcg@5"])
    assert rows[0]["metrics"]["seconds_to@100"] == reached
    assert (folder / "plots" / "time_to_quality_own.png").is_file()
    assert not list((folder / "runs" / "own").glob("*.work"))


def test_both_are_judged_on_every_validation_user_as_the_benchmark_judges(folder, measured):
    _, judged = measured
    (_, vectors), (_, higr) = (curve(folder, name) for name in ("vectors", "higr"))
    assert [entry.epoch for entry in vectors] == [2, 4] and [entry.epoch for entry in higr] == [1, 2]
    assert judged["vectors"] == pytest.approx(max(entry.score for entry in vectors), abs=1e-9)
    assert judged["higr"] == pytest.approx(higr[-1].score, abs=1e-9), "not on the plan's three users"


def test_what_was_measured_is_not_measured_again_unless_its_settings_change(folder, measured, monkeypatch):
    asked = []

    def fitting(bench, system, settings, *rest):
        asked.append((system.name, settings["epochs"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_time_to_quality, "fit_system", fitting)
    again = run(folder)
    assert [row["metrics"] for row in again] == [row["metrics"] for row in measured[0]] and not asked
    with pytest.raises(KeyboardInterrupt):
        run(folder, changes="{own: {vectors: {epochs: 6}}}")
    assert asked == [("vectors", 6)]


def test_a_goal_that_is_never_reached_has_no_seconds(folder, measured):
    rows = run(folder, goals="[1, 100000]")
    for row, name in zip(rows, ("vectors", "higr"), strict=True):
        assert "seconds_to@100000" not in row["metrics"]
        best = rows[0]["metrics"]["ndcg@5"]
        expected = next((e.training_seconds for e in curve(folder, name)[1] if e.score >= best / 100), None)
        assert row["metrics"].get("seconds_to@1") == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"systems": "vectors,ease"}, "ease is not trained step by step"),
        ({"systems": "higr"}, "--reference vectors is none of --systems higr"),
        ({"goals": "[92.5]"}, "whole numbers of percent"),
        ({"changes": "{own: {sasrec: {}}}"}, "--changes has no setting 'sasrec'"),
        ({"systems": "vectors", "changes": "{own: {vectors: {epochs: 0}}}"}, "epochs must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder, tmp_path, options, said):
    with pytest.raises((SystemExit, ValueError), match=said):
        run(folder, **{"output_dir": tmp_path, **options})


def test_a_gpu_is_refused(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit, match="nothing of a GPU"):
        run(folder)


def test_the_recipe_is_one(monkeypatch, tmp_path):
    asked = []

    def measuring(bench, system, changes, seed):
        asked.append((bench.name, system.name, system.settings_of(bench.name, 0), changes, seed))
        return Curve({}, [Judgement(1, 0.1, 10.0, 1.0)], 0.0, 11.0)

    monkeypatch.setattr(bench_time_to_quality, "measure", measuring)
    monkeypatch.setattr(bench_time_to_quality, "_row", lambda *_: {})
    monkeypatch.setattr(bench_time_to_quality, "append_rows", lambda *_: [])
    recipe = ROOT / "training/recipes/bench_time_to_quality.yaml"
    options = ["--output_dir", str(tmp_path), "--plots", "", "--datasets", "movielens-100k,movielens-1m"]
    bench_time_to_quality.main(["--recipe", str(recipe), *options])
    assert [(dataset, system) for dataset, system, *_ in asked] == [
        (dataset, system) for dataset in ("movielens-100k", "movielens-1m") for system in ("sasrec", "higr")
    ]
    for _, _, settings, changes, seed in asked:
        assert set(changes) <= set(settings), "only what the plan sets is changed"
        assert seed == 0
