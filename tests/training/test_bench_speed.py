from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch

from higr_hf.evaluation.results import read_rows
from tests.training.workspace import ROOT
from training import bench_speed

SHAPES = "[{num_items: 40, codebook_size: 4, slate_size: 2, history: 3, num_beams: 2}]"


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch):
    small = functools.partial(bench_speed.measure_ceilings, size=64, megabytes=1, repeats=1)
    monkeypatch.setattr(bench_speed, "measure_ceilings", small)
    monkeypatch.setattr(bench_speed, "keep_freed_memory", lambda: False)


def test_rows_say_what_was_timed_and_are_not_measured_twice(tmp_path, capsys):
    options = [
        "--shapes", SHAPES, "--batches", "[1, 2]", "--systems", "plan-once,top M", "--min_repeats", "2",
        "--budget", "0.01", "--results", str(tmp_path), "--variants", "[float32, int8]",
    ]  # fmt: skip
    rows = bench_speed.main(options)
    assert rows == read_rows(tmp_path / "speed.jsonl")
    found = {(row["system"], row["variant"]): row["metrics"] for row in rows}
    assert set(found) == {
        ("onerec", "flat beam"), ("onerec", "flat beam, int8"), ("higr", "plan-once"), ("higr", "plan-once, int8"),
        ("sasrec", "top M of all items"),
    }  # fmt: skip
    flat, once = found["onerec", "flat beam"], found["higr", "plan-once"]
    assert flat["gain@1"] == flat["gain@2"] == 1
    assert once["gain@2"] == pytest.approx(flat["ms@2"] / once["ms@2"])
    flat8, once8 = found["onerec", "flat beam, int8"], found["higr", "plan-once, int8"]
    assert once8["gain_alike@2"] == pytest.approx(flat8["ms@2"] / once8["ms@2"]) and "gain_alike@2" not in once
    assert once["slates_per_second@2"] == pytest.approx(2e3 / once["ms@2"])
    assert once["times_floor@1"] > 0 and "times_floor@1" not in found["sasrec", "top M of all items"]
    assert bench_speed.main(options) == [] and "done before" in capsys.readouterr().out


def test_a_system_that_fails_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    asked = bench_speed.Bench.call

    def call(bench, system, batch):
        if system.variant == "plan-once" and batch == 2:
            raise RuntimeError("out of memory")
        return asked(bench, system, batch)

    monkeypatch.setattr(bench_speed.Bench, "call", call)
    options = ["--shapes", SHAPES, "--batches", "[1, 2]", "--systems", "plan-once,verified", "--min_repeats", "1",
               "--budget", "0", "--results", str(tmp_path)]  # fmt: skip
    rows = bench_speed.main(options)
    batches = {row["variant"]: {name for name in row["metrics"] if name.startswith("ms@")} for row in rows}
    assert batches == {"flat beam": {"ms@1", "ms@2"}, "plan-once": {"ms@1"}, "verified": {"ms@1", "ms@2"}}
    printed = capsys.readouterr().out
    assert "batch 2, plan-once: failed" in printed and "RuntimeError: out of memory" in printed
    assert "Traceback" in printed


def test_a_call_that_fails_while_all_take_turns_is_left_out(capsys):
    options = bench_speed.SpeedArguments(min_repeats=2, budget=0.0)
    calls = {("float32", "good"): lambda: None, ("float32", "bad"): lambda: 1 / 0}
    timings = bench_speed._timed(calls, options)
    assert [name for _, name in timings] == ["good"]
    assert len(timings["float32", "good"].seconds) == 2 and "ZeroDivisionError" in capsys.readouterr().out


def test_no_batch_begins_when_the_time_is_up(tmp_path, capsys):
    rows = bench_speed.main(
        ["--shapes", SHAPES, "--batches", "[1, 2]", "--systems", "plan-once", "--min_repeats", "1", "--budget", "0",
         "--wall", "0.000001", "--results", str(tmp_path)]
    )  # fmt: skip
    assert rows == [] and "no time left" in capsys.readouterr().out


def test_transformers_is_asked_for_small_batches_alone(tmp_path):
    options = ["--shapes", SHAPES, "--batches", "[1, 2]", "--systems", "Llama", "--leave_out", "beam",
               "--min_repeats", "1", "--budget", "0", "--results", str(tmp_path)]  # fmt: skip
    (_, llama) = bench_speed.main([*options, "--llama_batches", "{tiny: 1}"])
    assert llama["variant"] == "Llama, HF generate greedy"
    assert "ms@1" in llama["metrics"] and "ms@2" not in llama["metrics"]
    other = ["--seed", "1", "--llama_batches", "{tiny: 0}"]
    (flat,) = bench_speed.main([*options, *other])
    assert flat["variant"] == "flat beam" and bench_speed.main([*options, *other]) == []


def test_a_gpu_has_a_file_of_its_own_and_ceilings_by_number_format(monkeypatch):
    asked = []
    monkeypatch.setattr(
        bench_speed,
        "measure_ceilings",
        lambda device, dtype: asked.append((device, dtype)) or bench_speed.Ceilings(1, 1),
    )
    bfloat16 = SimpleNamespace(dtype=torch.bfloat16)
    runs = {("float32", "x"): (SimpleNamespace(dtype=torch.float32), None), ("bfloat16", "x"): (bfloat16, None)}
    options = bench_speed.SpeedArguments(device="cuda")
    assert bench_speed._study(options) == "speed-cuda"
    assert set(bench_speed._ceilings(runs, options)) == {torch.float32, torch.bfloat16}
    assert asked == [("cuda", torch.float32), ("cuda", torch.bfloat16)]
    on_cpu = bench_speed._ceilings(runs, bench_speed.SpeedArguments())
    assert set(on_cpu) == {torch.float32} and bench_speed._own(on_cpu, bfloat16) is on_cpu[torch.float32]


def test_a_system_that_is_too_slow_is_not_asked_for_more(tmp_path):
    rows = bench_speed.main(
        ["--shapes", SHAPES, "--batches", "[1, 2]", "--systems", "plan-once", "--min_repeats", "1", "--budget", "0",
         "--max_seconds", "0", "--results", str(tmp_path)]
    )  # fmt: skip
    assert all("ms@1" in row["metrics"] and "ms@2" not in row["metrics"] for row in rows)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("bench_speed", 9), ("bench_speed_prepared", 2), ("bench_speed_base", 1), ("bench_speed_cuda", 2)],
)
def test_the_recipes_are_some(name, shapes, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(bench_speed, "_measure", lambda shape, *rest: seen.append(str(shape)) or [])
    monkeypatch.setattr(bench_speed, "Bench", lambda *given: SimpleNamespace(supports=lambda system: True))
    recipe = ["--recipe", str(ROOT / f"training/recipes/{name}.yaml"), "--results", str(tmp_path)]
    bench_speed.main(recipe)
    assert len(set(seen)) == len(seen) == shapes
    bench_speed.main([*recipe, "--quick", "true"])
    assert seen[shapes:] == seen[:1]


def test_growth_changes_one_thing_at_a_time(tmp_path):
    options = [
        "--shapes", SHAPES, "--growth", "{slate_size: [1, 2], num_beams: [2, 3]}", "--batches", "[2]",
        "--min_repeats", "1", "--budget", "0", "--results", str(tmp_path), "--plot", str(tmp_path / "growth.png"),
    ]  # fmt: skip
    rows = bench_speed.main(options)
    assert rows == read_rows(tmp_path / "speed-growth.jsonl") and not (tmp_path / "speed.jsonl").exists()
    assert {row["variant"] for row in rows} == {"flat beam", "sequential", "plan-once"}
    assert len({row["dataset"] for row in rows}) == 3, "the middle is measured once"
    assert all(row["metrics"]["ms@2"] > 0 and row["metrics"]["megabytes@2"] > 0 for row in rows)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert bench_speed.main(options) == []


def test_the_recipe_of_growth_is_one(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(bench_speed, "_measure", lambda shape, *rest: seen.append(shape) or [])
    monkeypatch.setattr(bench_speed, "plot_growth", lambda *given: None)
    monkeypatch.setattr(bench_speed, "Bench", lambda *given: SimpleNamespace(supports=lambda system: True))
    recipe = str(ROOT / "training/recipes/bench_speed_growth.yaml")
    bench_speed.main(["--recipe", recipe, "--results", str(tmp_path)])
    assert len(set(seen)) == len(seen) == 12


def test_an_unknown_part_of_a_shape_is_refused():
    with pytest.raises(SystemExit, match="no setting 'slots'"):
        bench_speed.main(["--shapes", "[{slots: 3}]"])
    with pytest.raises(SystemExit, match="no setting 'slots'"):
        bench_speed.main(["--growth", "{slots: [3]}"])
