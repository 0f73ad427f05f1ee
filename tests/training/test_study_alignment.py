"""The study of alignment on a log of its own: one starting model, trials, resuming, rows and gains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from higr_hf.alignment.factory import check_config, get_method
from higr_hf.evaluation import EvaluationResult, append_rows, make_row, paired_bootstrap, read_rows
from tests.training.workspace import COLUMNS, write_log
from training import align, study_alignment
from training._benchmark_systems import Workbench
from training.study_alignment import check_start, load_study

pytest.importorskip("trl")

QUIET = {"logging_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
HIGR = {
    "kind": "slates",
    "system": "higr",
    "tokenizer": "ids",
    "settings": {
        "model": {"hidden_size": 16, "intermediate_size": 32, "max_history": 10, "dropout": 0.0},
        "generation": {"num_beams": 4},
        "eval_users": 8,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.01,
        "diversity_embeddings": "collaborative",
        "eval_strategy": "no",
        "save_strategy": "no",
        **QUIET,
    },
}
STUDY: dict[str, Any] = {
    "benchmark": "benchmark.yaml",
    "datasets": ["own"],
    "settings": {"positives": "engaged", "max_steps": 2, "per_device_train_batch_size": 16, "eval_users": 8},
    "by_dataset": {"own": {"eval_steps": 2, "save_steps": 2, **QUIET}},
    "trials": [{"learning_rate": 0.0}, {"learning_rate": 0.02}],
    "variants": {
        "orpo-sum": {"method": "orpo-sum", "objectives": {"ranking": 1, "on_policy": 1}},
        "nll": {"method": "orpo-sum", "beta": 0.0},
    },
}


def write_plans(folder: Path, **changes: Any) -> Path:
    data = {
        "interactions": str(folder / "log.csv"),
        "items": str(folder / "items.csv"),
        "columns": COLUMNS,
        "view_rule": "rating >= 4",
        "negative_rule": "rating <= 2",
    }
    benchmark = {
        "datasets": {"own": {"data": data}},
        "systems": {"higr": HIGR, "ease": {"kind": "ease", "system": "ease"}},
        "tokenizers": {"ids": {"method": "rq-kmeans", "embeddings": "collaborative", "codebook_sizes": [8, 8, 8]}},
        "diversity_embeddings": "collaborative",
    }
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(benchmark))
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
    return folder / "study.yaml"


def run(folder: Path, *options: str) -> dict[str, dict[str, list[EvaluationResult]]]:
    places = {"plan": "study.yaml", "output_dir": "aligned", "starts_dir": "starts", "results": "results"}
    words = [word for name, place in places.items() for word in (f"--{name}", str(folder / place))]
    return study_alignment.main([*words, "--seeds", "[0]", "--document", "None", *options])


def test_variants_begin_alike_are_judged_once_and_taken_up_again(tmp_path, monkeypatch):
    write_log(tmp_path, num_users=48, noise=0.3)
    write_plans(tmp_path, judged_by={"own": "view_ndcg"})
    found = run(tmp_path, "--variants", "orpo-sum")["own"]
    assert list(found) == ["none", "orpo-sum"]
    rows = read_rows(tmp_path / "results" / "alignment.jsonl")
    assert [(row["dataset"], row["variant"]) for row in rows] == [
        ("own", "none"), ("own", "orpo-sum"), ("own-paired", "orpo-sum"),
    ]  # fmt: skip
    none, aligned, gain = (row["metrics"] for row in rows)
    assert none["start_ndcg@5"] == aligned["start_ndcg@5"] == none["ndcg@5"] == found["none"][0].metrics["ndcg@5"]
    assert {"diversity", "coverage", "held_out_negative_share"} <= aligned.keys()
    expected = paired_bootstrap(*(found[name][0].per_user["ndcg@5"] for name in ("orpo-sum", "none")))
    assert (gain["ndcg_gain@5"], gain["ndcg_p@5"]) == (expected.difference, expected.p_value)
    assert gain["ndcg_percent@5"] == pytest.approx(100 * (aligned["ndcg@5"] / none["ndcg@5"] - 1))
    assert gain["num_seeds"] == 1 and {"recall_percent@5", "view_ndcg_percent@5"} <= gain.keys()

    # Both trials are there, each whole, and nothing else is.
    units = sorted((tmp_path / "aligned" / "own" / "orpo-sum").iterdir())
    assert len(units) == 2
    for unit in units:
        assert (unit / "model").is_dir()
        pairs = json.loads((unit / "alignment.json").read_text())["preferences"]["pairs"]
        assert pairs.keys() == {"ranking", "on_policy"} and pairs["on_policy"] >= pairs["ranking"] > 0
    outcomes = [json.loads((unit / "unit.json").read_text()) for unit in units]
    assert {outcome["settings"]["metric_for_best_model"] for outcome in outcomes} == {"eval_view_ndcg@5"}
    scores = [outcome["validation"]["view_ndcg@5"] for outcome in outcomes]
    tested = [score for unit, score in zip(units, scores, strict=True) if (unit / "test").is_dir()]
    assert tested == [max(scores)], "the test split is read by the best trial alone"

    # Again, now from a directory that holds the same model: nothing is aligned, nothing is written.
    (trained,) = (tmp_path / "starts" / "own" / "higr").glob("*/model")
    shutil.copytree(trained, tmp_path / "mine" / "own-0")
    monkeypatch.setattr(align, "align", lambda *options: pytest.fail("aligned twice"))
    again = run(tmp_path, "--variants", "orpo-sum", "--start", str(tmp_path / "mine" / "{dataset}-{seed}"))["own"]
    np.testing.assert_array_equal(again["orpo-sum"][0].slates, found["orpo-sum"][0].slates)
    assert len(read_rows(tmp_path / "results" / "alignment.jsonl")) == 3
    with pytest.raises(SystemExit, match=r"no starting model .*own-7"):
        run(tmp_path, "--start", str(tmp_path / "mine" / "{dataset}-7"))


def test_rows_of_another_starting_model_are_refused(tmp_path):
    metrics = {"ndcg@5": 0.2, "start_ndcg@5": 0.1}
    row = make_row(study="alignment", dataset="own", system="higr", variant="dpo", metrics=metrics, seed=3, seconds=1)
    append_rows([row], tmp_path)
    for dataset, seed, value in (("own", 3, 0.1), ("own", 4, 0.3), ("other", 3, 0.3)):
        check_start(tmp_path, dataset, seed, "start_ndcg@5", value)
    with pytest.raises(SystemExit, match=r"own, seed 3 \(dpo\) that began with another model"):
        check_start(tmp_path, "own", 3, "start_ndcg@5", 0.3)


def test_committed_rows_share_their_starting_models():
    starts: dict[tuple, set[float]] = {}
    for row in read_rows(Path(study_alignment.__file__).parents[1] / "results" / "alignment.jsonl"):
        if not row["dataset"].endswith("-paired"):
            starts.setdefault((row["dataset"], row["seed"]), set()).add(row["metrics"]["start_ndcg@5"])
    assert all(len(values) == 1 for values in starts.values()), starts


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"datasets": ["other"]}, "no dataset 'other'"),
        ({"by_dataset": {"other": {}}}, "no dataset 'other'"),
        ({"judged_by": {"other": "recall"}}, "no dataset 'other'"),
        ({"system": "ease"}, "'ease' is no system"),
        ({"system": "sasrec"}, "'sasrec' is no system"),
        ({"variants": {"dpo": {"beta": 0.1}}}, "'dpo' has no method"),
        ({"variants": {"none": {"method": "dpo"}}}, "'none' is always there"),
        ({"trials": []}, "trials never"),
        ({"rates": [0.1]}, "unknown keys"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        load_study(write_plans(tmp_path, **changes), {})


def test_a_dataset_may_be_read_from_a_folder(tmp_path):
    path = write_plans(tmp_path)
    _, plan = load_study(path, {"own": "elsewhere"})
    assert plan.datasets["own"].data["local_path"] == "elsewhere"
    with pytest.raises(ValueError, match="no dataset 'other'"):
        load_study(path, {"other": "elsewhere"})


@pytest.mark.parametrize("name", ["study_alignment.yaml", "study_alignment_impressions.yaml"])
def test_every_committed_variant_has_options_that_its_method_takes(name, tmp_path):
    study, plan = load_study(study_alignment.PLAN.with_name(name), {})
    for dataset in study.datasets:
        bench = Workbench(plan, dataset, tmp_path)
        for variant in study.variants if dataset == study.datasets[0] else list(study.variants)[:1]:
            options = study.options(variant, dataset, len(study.trials) - 1)
            chosen, pairing, _, _, arguments = align.parse(bench.command(**options, output_dir=tmp_path, seed=0))
            arguments.__class__ = get_method(chosen.method).config
            check_config(chosen.method, arguments)
            assert pairing.settings(5).positives == "views"
