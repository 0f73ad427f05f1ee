"""The benchmark on a log of its own: trials, seeds, resuming, rows, and exact figures of the simplest systems."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from higr_hf.baselines import SASRecItemVectors
from higr_hf.baselines.base import baseline_class
from higr_hf.checkpoint import load_checkpoint
from higr_hf.evaluation import EvaluationResult, paired_bootstrap, read_rows
from higr_hf.evaluation.results import SYSTEMS
from tests.training.workspace import COLUMNS, write_log
from training import _benchmark_report, _benchmark_systems, align, benchmark, fit_item_item
from training._args import TrainerArguments, parse_recipe
from training._benchmark_plan import ALIGNED, DECODING, ITEM_ITEM, SLATES, SystemPlan, load_plan
from training._benchmark_systems import Workbench
from training._data import DataArguments
from training._model import ModelArguments, check_best_metric, generation_of

LOG = {"num_users": 40, "length": 18, "noise": 0.3}
EASE = {"kind": "ease", "system": "ease", "deterministic": True, "trials": [{"l2": 1.0}, {"l2": 20.0}, {"l2": 400.0}]}
ITEM_VECTORS = {
    "kind": "sasrec-item-vectors",
    "system": "sasrec",
    "variant": "HiGR's item vectors",
    "tokenizer": "ids",
    "settings": {"hidden_size": 16, "intermediate_size": 32, "blocks": 1, "max_history": 10, "batch_size": 16},
    "trials": [{"epochs": 1, "eval_every": 1}, {"epochs": 2, "eval_every": 1}, {"epochs": 3, "eval_every": 1}],
}
MIXTURE = {
    "kind": "mixture",
    "system": "sasrec",
    "variant": "+ EASE",
    "parts": ["sasrec", "ease"],
    "trials": [{"weight": 0.5}, {"weight": 1.0}, {"weight": 4.0}],
}


def plan(
    folder: Path, systems: dict[str, Any], name: str = "plan", protocol: dict | None = None, **options: Any
) -> Path:
    data = {
        "interactions": str(folder / "log.csv"),
        "items": str(folder / "items.csv"),
        "columns": COLUMNS,
        "view_rule": "rating >= 4",
    }
    tokenizers = {"ids": {"method": "rq-kmeans", "embeddings": "collaborative", "codebook_sizes": [8, 8, 8]}}
    content = {
        "datasets": {"own": {"data": data, **(protocol or {})}},
        "systems": systems,
        "tokenizers": tokenizers,
        "diversity_embeddings": "collaborative",
        **options,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_log(folder, **LOG)
    return folder


def run(folder: Path, path: Path, name: str = "units", **options: Any) -> dict[str, dict[str, list[EvaluationResult]]]:
    given = {"plan": path, "output_dir": folder / name, "results": folder / f"{name}-results", **options}
    given.setdefault("document", folder / "none.md")
    return benchmark.main([word for key, value in given.items() for word in (f"--{key}", str(value))])


@pytest.fixture(scope="module")
def finished(folder):
    """A whole benchmark of four systems, two seeds."""
    systems = {
        "popularity": {"kind": "popularity", "system": "popularity", "deterministic": True},
        "ease": EASE,
        "sasrec": ITEM_VECTORS,
        "mixed": MIXTURE,
    }
    path = plan(folder, systems)
    return path, run(folder, path, seeds="[0, 1]")["own"]


def test_a_row_a_system_and_seed_and_one_of_deterministic_systems(folder, finished):
    rows = read_rows(folder / "units-results" / "benchmark.jsonl")
    assert [(row["system"], row["variant"], row["seed"]) for row in rows] == [
        ("popularity", "none", 0),
        ("ease", "none", 0),
        ("sasrec", "HiGR's item vectors", 0),
        ("sasrec", "HiGR's item vectors", 1),
        ("sasrec", "+ EASE", 0),
        ("sasrec", "+ EASE", 1),
    ]
    assert {row["dataset"] for row in rows} == {"own"}
    for row in rows:
        assert {"ndcg@5", "recall@5", "view_ndcg@5", "diversity", "coverage", "validity"} <= set(row["metrics"])
        assert row["metrics"]["million_parameters"] > 0
        assert row["n_users"] == 40


def test_the_tuned_trial_is_the_best_on_validation(folder, finished):
    outcomes = [json.loads(path.read_text()) for path in (folder / "units" / "own" / "ease").glob("*/unit.json")]
    best = max(outcomes, key=lambda outcome: outcome["validation"]["ndcg@5"])
    chosen = [path for path in (folder / "units" / "own" / "ease").iterdir() if (path / "test").is_dir()]
    assert len(outcomes) == 3
    assert [json.loads((path / "unit.json").read_text())["settings"] for path in chosen] == [best["settings"]]


def test_a_system_may_be_tuned_by_another_metric(folder):
    ease = {"kind": "ease", "system": "ease", "deterministic": True, "settings": {"l2": 10.0}}
    rates = {"kind": "view-rate", "system": "popularity", "deterministic": True}
    trials = [{"weight": weight} for weight in (0.0, 0.2, 0.4)]
    mixed = {**MIXTURE, "parts": ["ease", "rates"], "deterministic": True, "trials": trials}
    taken = {}
    for metric in ("ndcg", "view_ndcg"):
        path = plan(folder, {"ease": ease, "rates": rates, "mixed": {**mixed, "chosen_by": metric}}, metric)
        run(folder, path, name=metric, only="mixed")
        units = list((folder / metric / "own" / "mixed").iterdir())
        outcomes = {unit: json.loads((unit / "unit.json").read_text()) for unit in units}
        (chosen,) = (unit for unit in units if (unit / "test").is_dir())
        assert chosen == max(units, key=lambda unit: outcomes[unit]["validation"][f"{metric}@5"])
        taken[metric] = outcomes[chosen]["settings"]["weight"]
    assert taken["ndcg"] < taken["view_ndcg"]


def test_popularity_and_ease_are_what_an_independent_count_gives(folder, finished):
    """Exact figures by dense NumPy, from the log's own file."""
    _, results = finished
    (folder / "again").mkdir()
    log = write_log(folder / "again", **LOG)
    index = {item: row for row, item in enumerate(log.item_ids)}
    events = log.interactions
    sequences = [[index[item] for item in rows["item_id"]] for _, rows in events.groupby("user_id", sort=False)]
    matrix = np.zeros((len(sequences), len(index)))
    for user, items in enumerate(sequences):
        matrix[user, items[:-10]] = 1
    counts = np.bincount([item for items in sequences for item in items[:-10]], minlength=len(index))
    chosen = next(path for path in (folder / "units" / "own" / "ease").iterdir() if (path / "test").is_dir())
    l2 = json.loads((chosen / "unit.json").read_text())["settings"]["l2"]
    inverse = np.linalg.inv(matrix.T @ matrix + l2 * np.eye(len(index)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    for name, scored in (
        ("popularity", lambda items: counts.astype(float)),
        ("ease", lambda items: np.isin(np.arange(len(index)), items) @ weights),
    ):
        gains = []
        for items in sequences:
            history, target = items[:-5], set(items[-5:])
            scores = scored(history)
            order = [item for item in np.argsort(-scores, kind="stable").tolist() if item not in history][:5]
            ideal = sum(1 / np.log2(place + 2) for place in range(len(target)))
            gains.append(sum(1 / np.log2(place + 2) for place, item in enumerate(order) if item in target) / ideal)
        assert results[name][0].metrics["ndcg@5"] == pytest.approx(np.mean(gains), abs=1e-9), name


def test_run_again_it_trains_nothing_and_adds_no_row(folder, finished, monkeypatch):
    path, first = finished
    monkeypatch.setattr(_benchmark_systems, "baseline_class", None)
    monkeypatch.setattr(benchmark, "fit_system", None)
    before = (folder / "units-results" / "benchmark.jsonl").read_text()
    again = run(folder, path, seeds="[0, 1]")["own"]
    assert (folder / "units-results" / "benchmark.jsonl").read_text() == before
    for name, results in first.items():
        for one, other in zip(results, again[name], strict=True):
            np.testing.assert_array_equal(one.slates, other.slates)


def test_a_killed_unit_is_trained_again_and_no_other(folder, finished, monkeypatch):
    path, _ = finished
    trained: list[str] = []
    fit = benchmark.fit_system

    def killed(bench, system, *rest):
        trained.append(system.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(bench, system, *rest)

    monkeypatch.setattr(benchmark, "fit_system", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, path, name="killed", only="ease")
    run(folder, path, name="killed", only="ease")
    assert trained == ["ease"] * 4  # the first, the killed one, and the two that were left
    assert len(read_rows(folder / "killed-results" / "benchmark.jsonl")) == 1


def test_units_are_fitted_apart_and_judged_by_a_run_that_finds_them(folder, finished, monkeypatch, capsys):
    path, _ = finished
    for trial in (0, 2):
        assert run(folder, path, name="apart", only="ease", fit_only=True, trials=f"[{trial}]") == {"own": {}}
    outcomes = [json.loads(file.read_text()) for file in (folder / "apart" / "own" / "ease").glob("*/unit.json")]
    assert sorted(outcome["settings"]["l2"] for outcome in outcomes) == [1.0, 400.0]
    assert not (folder / "apart-results").exists() and not list((folder / "apart").rglob("test"))
    with pytest.raises(SystemExit, match="--trials 3: ease has 3 trials on own, from 0 on"):
        run(folder, path, name="apart", only="ease", fit_only=True, trials="[3]")
    with pytest.raises(SystemExit):
        run(folder, path, name="apart", only="ease", trials="[0]")
    assert "--trials goes with --fit_only" in capsys.readouterr().err
    run(folder, path, name="apart", only="ease", fit_only=True)
    monkeypatch.setattr(benchmark, "fit_system", None)
    for file in (folder / "apart" / "own" / "ease").glob("*/unit.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "machine": "the one with a GPU"}))
    run(folder, path, name="apart", only="ease")
    (row,) = read_rows(folder / "apart-results" / "benchmark.jsonl")
    assert row["machine"] == "the one with a GPU", "where its seconds were taken"


def test_a_killed_network_goes_on_inside_its_unit(folder, monkeypatch):
    path = plan(folder, {"sasrec": {**ITEM_VECTORS, "trials": [{"epochs": 3, "eval_every": 1}]}}, "network")
    loss, steps = SASRecItemVectors._loss, []

    def counted(self, batch):
        steps.append(1)
        if len(steps) == dies_at:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(SASRecItemVectors, "_loss", counted)
    dies_at = None
    run(folder, path, name="network-whole", seeds="[0]")
    whole = len(steps)
    dies_at, steps[:] = whole, []  # in the last step of the last epoch
    with pytest.raises(KeyboardInterrupt):
        run(folder, path, name="network", seeds="[0]")
    dies_at, steps[:] = None, []
    run(folder, path, name="network", seeds="[0]")
    assert 0 < len(steps) < whole / 2, "the epoch that was not judged yet"
    rows = [read_rows(folder / f"{name}-results" / "benchmark.jsonl")[0] for name in ("network-whole", "network")]
    assert rows[0]["metrics"] == rows[1]["metrics"]


def test_another_setting_is_another_unit(folder, finished):
    changed = plan(folder, {"ease": {**EASE, "trials": [{"l2": 3.0}]}}, "changed")
    run(folder, changed)
    assert len(list((folder / "units" / "own" / "ease").iterdir())) == 4
    # The same system under another protocol, too.
    run(folder, plan(folder, {"ease": {**EASE, "trials": [{"l2": 3.0}]}}, "allowed", {"exclude_history": False}))
    assert len(list((folder / "units" / "own" / "ease").iterdir())) == 5


def test_a_dataset_may_ask_for_another_protocol(folder):
    """Leave one out, ranked at ten, the history allowed, one trial, and not every system."""
    protocol = {"list_size": 10, "exclude_history": False, "num_trials": 1, "systems": ["ease", "elsewhere"]}
    popularity = {"kind": "popularity", "system": "popularity", "deterministic": True}
    elsewhere = {**EASE, "datasets": []}
    path = plan(folder, {"popularity": popularity, "ease": EASE, "elsewhere": elsewhere}, "literature", protocol)
    content = yaml.safe_load(path.read_text())
    content["datasets"]["own"]["data"]["slate_size"] = 1
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    results = run(folder, path, name="literature")["own"]
    assert list(results) == ["ease"]
    assert {"hit@10", "ndcg@10"} <= set(results["ease"][0].metrics)
    assert results["ease"][0].metrics["hit@10"] == results["ease"][0].metrics["recall@10"], "one target a user"
    assert len(list((folder / "literature" / "own" / "ease").iterdir())) == 1


def test_networks_trained_on_a_dataset_are_judged_under_another_protocol(folder, monkeypatch):
    """Histories allowed in place of excluded: the same network, and what is tuned without training tuned anew."""
    path = plan(folder, {"ease": EASE, "sasrec": ITEM_VECTORS, "mixed": MIXTURE}, "again")
    content = yaml.safe_load(path.read_text())
    own = content["datasets"]["own"]
    content["datasets"]["repeats"] = {**own, "exclude_history": False, "trained_on": "own"}
    content["datasets"]["own"]["network_trials"] = content["datasets"]["repeats"]["network_trials"] = 1
    content["systems"]["sasrec"]["trained_once"] = True
    content["systems"]["sasrec"]["by_dataset"] = {"own": {"dropout": 0.1}, "repeats": {"dropout": 0.5}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    asked = []
    fitted = benchmark.fit_system

    def fit(bench, system, *rest):
        asked.append((bench.name, system.name))
        return fitted(bench, system, *rest)

    monkeypatch.setattr(benchmark, "fit_system", fit)
    results = run(folder, path, name="again", seeds="[0]", only="ease,sasrec,mixed", datasets="repeats")["repeats"]
    assert {name for dataset, name in asked if dataset == "repeats"} == {"ease", "mixed"}
    assert [name for dataset, name in asked if dataset == "own"] == ["sasrec"], "one trial of the network"
    root = folder / "again"
    (taken,) = (unit for unit in (root / "repeats" / "sasrec").iterdir() if (unit / "test").is_dir())
    outcome = json.loads((taken / "unit.json").read_text())
    assert outcome["settings"]["dropout"] == 0.1, "the settings are those it was trained with"
    (source,) = outcome["settings"]["parts"]
    trained = json.loads((root / "own" / "sasrec" / source / "unit.json").read_text())
    assert outcome["seconds"] == trained["seconds"]
    assert outcome["validation"]["ndcg@5"] != trained["validation"]["ndcg@5"]
    # Judged here by hand: the network's slates with nothing excluded.
    bench = Workbench(load_plan(path), "repeats", root)
    model = SASRecItemVectors.from_pretrained(root / "own" / "sasrec" / source / "model")
    by_hand = bench.evaluator("test", 64).evaluate(lambda batch: model(batch, 5))
    assert results["sasrec"][0].metrics["ndcg@5"] == pytest.approx(by_hand.metrics["ndcg@5"])


def test_slates_of_one_item_have_no_diversity_and_are_kept(folder):
    run(folder, plan(folder, {"ease": EASE}, "single", {"list_size": 1}), name="single")
    (row,) = read_rows(folder / "single-results" / "benchmark.jsonl")
    assert 0 < row["metrics"]["ndcg@1"] <= 1
    assert "diversity" not in row["metrics"] and row["metrics"]["validity"] == 1


@pytest.mark.slow
def test_slate_models_join_in_where_one_event_is_held_out_and_a_list_is_ranked(folder):
    higr = {
        "kind": "slates",
        "system": "higr",
        "tokenizer": "ids",
        "settings": {
            "model": {"hidden_size": 16, "intermediate_size": 32, "max_history": 10, "catalog_prior": True},
            "generation": {"slate_mode": "first_plan", "num_beams": 8},
            "diversity_embeddings": "collaborative",
            "max_steps": 4,
            "per_device_train_batch_size": 16,
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_ndcg@6",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    tables = {"decays": [3, 0], "neighbours": 7, "slate_size": 3}
    settings = {"tables": tables, "scales": [5, 1], "generation": {"slate_mode": "first_plan", "num_beams": 8}}
    joined = {"kind": "item-item", "system": "higr", "variant": "tables", "parts": ["higr"], "settings": settings}
    path = plan(folder, {"higr": higr, "tables": joined}, "single-out", {"list_size": 6})
    content = yaml.safe_load(path.read_text())
    content["datasets"]["own"]["data"]["slate_size"] = 1
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    results = run(folder, path, name="single-out", seeds="[0]")["own"]
    for name in ("higr", "tables"):
        (result,) = results[name]
        assert result.slates.shape[1] == 6
        assert result.metrics["hit@6"] == result.metrics["recall@6"], "one target a user"
    (unit,) = (folder / "single-out" / "own" / "higr").iterdir()
    assert load_checkpoint(unit / "model")[0].config.slate_size == 1
    assert results["tables"][0].metrics["ndcg@6"] > results["higr"][0].metrics["ndcg@6"]
    bench = Workbench(load_plan(path), "own", folder / "single-out")
    told = fit_item_item.fit_item_item(bench.data[1]["train"], bench.item_ids, **tables)
    (unit,) = (folder / "single-out" / "own" / "tables").iterdir()
    weights = load_checkpoint(unit / "model")[0].model.item_item.weights
    np.testing.assert_array_equal(weights.numpy(), told.weights)  # of the next three


@pytest.mark.slow
def test_slate_models_are_trained_by_their_own_script_and_compared_user_by_user(folder):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_history": 10, "dense_head": False}
    common = {
        "generation": {"num_beams": 4},
        "diversity_embeddings": "collaborative",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    onerec, higr = (
        {
            "kind": "slates",
            "system": system,
            "variant": "tiny",
            "tokenizer": "ids",
            "settings": {**common, "architecture": system, "model": {**sizes, **more}},
        }
        for system, more in (("onerec", {}), ("higr", {"catalog_prior": True}))
    )
    tables = {
        "kind": "item-item",
        "system": "higr",
        "variant": "tables",
        "parts": ["higr"],
        "settings": {
            "tables": {"decays": [3, 0], "neighbours": 7},
            "trends": {"days": 1, "scale": 0.5},
            "generation": {"num_beams": 4},
        },
        "trials": [{"scales": [5, 1]}, {"scales": [20, 2]}],
    }
    otherwise = {
        "kind": "decoding",
        "system": "higr",
        "variant": "first-plan",
        "parts": ["tables"],
        "settings": {"generation": {"slate_mode": "first_plan", "num_beams": 4}},
    }
    aligned = {
        "kind": "aligned",
        "system": "onerec",
        "variant": "DPO",
        "parts": ["onerec"],
        "settings": {
            **common,
            "method": "dpo",
            "objectives": {"on_policy": 1},
            "max_steps": 2,
            "learning_rate": 0.01,
            "eval_share": 0.1,
            "eval_users": 10,
            "eval_on_start": True,
            "load_best_model_at_end": False,
        },
    }
    popularity = {"kind": "popularity", "system": "popularity", "deterministic": True}
    document, layout = folder / "BENCHMARK.md", folder / "higr-results" / "tables.yaml"
    plots = "![NDCG](docs/plots/benchmark_own.png) ![sizes](docs/plots/scaling_own.png)"
    document.write_text(f"{plots}\n\n<!-- table:own -->\n<!-- /table -->\n")
    layout.parent.mkdir()
    layout.write_text(
        yaml.safe_dump({"own": {"study": "benchmark", "metrics": ["ndcg@5"], "where": {"dataset": "own"}}})
    )
    systems = {
        "popularity": popularity,
        "onerec": onerec,
        "aligned": aligned,
        "higr": higr,
        "tables": tables,
        "otherwise": otherwise,
    }
    path = plan(folder, systems, "higr")
    results = run(folder, path, name="higr", seeds="[0]", document=document)["own"]
    rows = read_rows(folder / "higr-results" / "benchmark.jsonl")
    losses = {(row["system"], row["variant"]): row["metrics"].get("validation_loss") for row in rows[:6]}
    assert all(0 < losses[system, "tiny"] < 10 for system in ("onerec", "higr"))
    assert losses["popularity", "none"] is losses["higr", "first-plan"] is None
    paired = [row for row in rows if row["dataset"] == "own-paired"]
    named = [(row["system"], row["variant"]) for row in paired]
    assert named == [
        (system, f"{variant} (HiGR: {ours})")
        for ours in ("tiny", "tables")
        for system, variant in (("popularity", "none"), ("onerec", "tiny"), ("onerec", "DPO"))
    ]
    values = [results[name][0].per_user["ndcg@5"] for name in ("higr", "popularity")]
    expected = paired_bootstrap(*values)
    assert paired[0]["metrics"]["ndcg_gain@5"] == pytest.approx(expected.difference)
    assert paired[0]["metrics"]["ndcg_p@5"] == pytest.approx(expected.p_value)
    numbers = {row["variant"]: 1e6 * row["metrics"]["million_parameters"] for row in rows if row["system"] == "higr"}
    for unit in (folder / "higr" / "own" / "tables").iterdir():
        model = load_checkpoint(unit / "model")[0]
        assert (model.config.trend_days, model.config.trend_scale) == (1, 0.5)
        counted = model.model.item_item.weights.numel() + model.model.trends.events.numel()
        assert numbers["tables"] == pytest.approx(numbers["tiny"] + counted)
    assert "| higr | tiny |" in document.read_text()
    assert "| higr | first-plan |" in document.read_text()
    starts, ends = (
        load_checkpoint(next((folder / "higr" / "own" / name).iterdir()) / "model")[0]
        for name in ("onerec", "aligned")
    )
    assert type(ends) is type(starts) and ends.num_parameters() == starts.num_parameters()
    moved = {name for name, weight in ends.state_dict().items() if not weight.equal(starts.state_dict()[name])}
    assert moved and "model.item_codes" not in moved
    assert not np.array_equal(results["otherwise"][0].per_user["ndcg@5"], results["tables"][0].per_user["ndcg@5"])
    assert len(list((folder / "higr" / "own" / "tables").glob("*/model/item_categories.json"))) == 2, (
        "as the model had"
    )
    for plot in ("benchmark_own.png", "scaling_own.png"):
        assert (folder / "docs" / "plots" / plot).is_file()
    run(folder, path, name="higr", seeds="[0]", document=document)
    assert len(read_rows(folder / "higr-results" / "benchmark.jsonl")) == len(rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"systems": {"ease": {**EASE, "tirals": []}}}, "unknown keys"),
        ({"systems": {"ease": {**EASE, "kind": "eaze"}}}, "no baseline of the kind 'eaze'"),
        ({"systems": {"ease": {**EASE, "system": "linear"}}}, "its system is 'linear'"),
        ({"systems": {"mixed": MIXTURE}}, "its part 'sasrec' does not stand before it"),
        ({"systems": {"ease": EASE, "m": {**MIXTURE, "parts": ["ease"]}}}, "has 2 `parts`, not 1"),
        ({"systems": {"s": {**ITEM_VECTORS, "tokenizer": "other"}}}, "no tokenizer 'other'"),
        ({"systems": {"ease": EASE, "s": {**ITEM_VECTORS, "trials": [{}, {}]}}}, "same number of trials"),
        ({"systems": {"ease": EASE}, "sead": 1}, "unknown keys"),
        ({"systems": {"ease": EASE}, "reference": "higr"}, "its reference 'higr' is no system"),
        ({"systems": {"ease": EASE}, "protocol": {"num_trials": 0}}, "must be at least 1"),
        ({"systems": {"ease": EASE}, "protocol": {"systems": ["higr"]}}, "no system 'higr'"),
        ({"systems": {"ease": {**EASE, "datasets": ["other"]}}}, "no dataset 'other'"),
        ({"systems": {"ease": EASE}, "protocol": {"trained_on": "other"}}, "trained_on 'other' is no dataset"),
        ({"systems": {"ease": EASE}, "protocol": {"network_trials": 0}}, "must be at least 1"),
        ({"systems": {"ease": EASE}, "protocol": {"trained_on": "own"}}, "networks of its own"),
    ],
)
def test_a_plan_that_cannot_be_run_or_is_unfair_is_refused(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        load_plan(plan(tmp_path, **change))


def test_names_that_are_not_in_the_plan(folder, finished):
    with pytest.raises(SystemExit, match="no 'eese'; there are popularity, ease, sasrec, mixed"):
        run(folder, finished[0], only="eese")


def test_every_system_is_compared_with_the_reference_of_a_plan_that_has_one(folder, finished):
    _, earlier = finished
    systems = {"popularity": {"kind": "popularity", "system": "popularity", "deterministic": True}, "ease": EASE}
    run(folder, plan(folder, systems, "reference", reference="ease"), name="reference")
    paired = [row for row in read_rows(folder / "reference-results" / "benchmark.jsonl") if "paired" in row["dataset"]]
    assert [(row["system"], row["variant"]) for row in paired] == [("popularity", "none")]
    theirs, ours = (earlier[name][0].per_user["recall@5"] for name in ("popularity", "ease"))
    assert paired[0]["metrics"]["recall_gain@5"] == pytest.approx(np.mean(theirs - ours))
    # Without the reference among the systems that are run there is nothing to compare.
    run(folder, folder / "reference.yaml", name="lonely", only="popularity")
    assert len(read_rows(folder / "lonely-results" / "benchmark.jsonl")) == 1


def test_a_scaling_plot_has_a_point_a_size_the_mean_over_its_seeds():
    latest = {
        ("higr", "large", 0): {"million_parameters": 2.0, "ndcg@5": 0.3, "validation_loss": 1.0},
        ("higr", "large", 1): {"million_parameters": 2.0, "ndcg@5": 0.5, "validation_loss": 2.0},
        ("higr", "small", 0): {"million_parameters": 0.5, "ndcg@5": 0.1},
        ("ease", "none", 0): {"million_parameters": 9.0, "ndcg@5": 0.2},
    }
    sizes = _benchmark_report.by_size(latest, "ndcg@5")
    assert sizes == {"higr": [(0.5, 0.1), (2.0, pytest.approx(0.4))], "ease": [(9.0, 0.2)]}
    assert _benchmark_report.by_size(latest, "validation_loss") == {"higr": [(2.0, 1.5)]}


def test_a_trial_changes_the_keys_of_a_mapping_that_it_names():
    system = SystemPlan(
        "ease",
        "ease",
        "ease",
        settings={"model": {"dropout": 0.2, "max_history": 50}, "rate": 1},
        by_dataset={"own": {"model": {"max_history": 200}, "rate": {"one": 2}}},
        trials=[{"model": {"dropout": 0.1}}],
    )
    assert system.settings_of("own", 0) == {"model": {"dropout": 0.1, "max_history": 200}, "rate": {"one": 2}}
    assert system.settings_of("other", 0)["model"] == {"dropout": 0.1, "max_history": 50}


def test_the_committed_plan_is_whole():
    chosen = load_plan(benchmark.PLAN)
    assert {system.system for system in chosen.systems.values()} == set(SYSTEMS)
    for system in chosen.systems.values():
        assert len(chosen.trials(system, "movielens-1m")) == min(2, len(system.trials))
    histories = [
        chosen.systems["higr"].settings_of("complete-journey", trial)["model"]["max_history"] for trial in range(4)
    ]
    assert histories == [200] * 4, "a trial undoes nothing of its data set's settings"


COMMITTED = {path: load_plan(path) for path in (benchmark.PLAN, benchmark.PLAN.with_name("benchmark_ablations.yaml"))}


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, chosen in COMMITTED.items() for name in chosen.systems]
)
def test_every_committed_trial_has_settings_that_its_system_takes(path, name, tmp_path):
    chosen = COMMITTED[path]
    system = chosen.systems[name]
    for dataset in (dataset for dataset in chosen.datasets if name in chosen.measured(dataset)):
        for trial in range(len(system.trials)):
            settings = system.settings_of(dataset, trial)
            if system.kind == SLATES:
                words = Workbench(chosen, dataset, tmp_path).command(**settings, output_dir=tmp_path, seed=0)
                _, options, _ = parse_recipe((DataArguments, ModelArguments, TrainerArguments), words)
                options.settings()
            elif system.kind == ITEM_ITEM:
                words = Workbench(chosen, dataset, tmp_path).command(tables=settings["tables"], model="m")
                options, _ = parse_recipe((fit_item_item.ItemItemArguments, DataArguments), words)
                assert set(json.loads(options.tables)) <= set(
                    inspect.signature(fit_item_item.fit_item_item).parameters
                )
                scales = fit_item_item.scale_lists("scales", [settings["scales"]])[0]
                assert len(scales) == len(settings["tables"]["decays"])
                assert set(settings.get("trends", {})) <= fit_item_item.TREND_SETTINGS
            elif system.kind == ALIGNED:
                words = Workbench(chosen, dataset, tmp_path).command(
                    **settings, model="m", output_dir=tmp_path, seed=0
                )
                _, pairing, judging, data, arguments = align.parse(words)
                pairing.settings(data.slate_size)
                check_best_metric(arguments, data.slate_size, judging.patience)
            elif system.kind == DECODING:
                generation_of(json.dumps(settings["generation"]))
            elif system.kind != "mixture":
                options = {"codebook_sizes": [4]} if system.tokenizer else {}
                baseline_class(system.kind)(["a", "b"], **settings, **options)
