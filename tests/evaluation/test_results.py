"""Result rows: checked before they are written, none lost, none half-written."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest

from higr_hf.evaluation import results
from higr_hf.evaluation.results import append_rows, make_row, read_rows, validate_row
from higr_hf.utils import atomic


def row(**changes):
    base = {"study": "benchmark", "dataset": "toy", "system": "higr", "metrics": {"ndcg@5": 0.5}, "seed": 0}
    return make_row(**{**base, "seconds": 1.23456, "n_users": 3, "command": "make toy", **changes})


def test_rows_are_filled_in_and_read_back(tmp_path):
    first, second = row(metrics={"ndcg@5": 0.5, "view_hit@5": float("nan")}), row(study="speed", n_users=None)
    assert first["metrics"] == {"ndcg@5": 0.5} and first["seconds"] == 1.235 and first["variant"] == "none"
    assert "torch" in first["versions"] and "thread" in first["machine"]
    files = append_rows([first, second, first], tmp_path / "results")
    assert [file.name for file in files] == ["benchmark.jsonl", "speed.jsonl"]
    append_rows([row(seed=1)], tmp_path / "results")
    assert read_rows(files[0]) == [first, first, row(seed=1)] and read_rows(files[1]) == [second]
    assert read_rows(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "bert"}, "system is 'bert', expected one of higr"),
        ({"study": "misc"}, "study is 'misc'"),
        ({"metrics": {}}, "metrics is empty"),
        ({"metrics": {"NDCG": 1.0}}, "'NDCG' is no metric name"),
        ({"metrics": {"ndcg@5": float("inf")}}, "finite number"),
        ({"metrics": {"ndcg@5": True}}, "finite number"),
        ({"seed": 0.5}, "seed is 0.5, expected int"),
        ({"seed": True}, "seed is True"),
        ({"seconds": -1}, "negative"),
        ({"user": "me"}, r"unknown \['user'\]"),
    ],
)
def test_rows_that_do_not_hold_are_refused(tmp_path, change, message):
    bad = {**row(), **change}
    with pytest.raises(ValueError, match=rf"row 1: .*{message}"):
        append_rows([row(), bad], tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is written when one row is wrong"


def test_a_missing_field_is_named():
    bad = copy.deepcopy(row())
    del bad["commit"]
    with pytest.raises(ValueError, match=r"missing \['commit'\]"):
        validate_row(bad)
    with pytest.raises(ValueError, match="expected an object"):
        validate_row([])


def test_a_broken_line_is_named(tmp_path):
    file = append_rows([row()], tmp_path)[0]
    file.write_text(file.read_text() + '{"study": "bench')
    with pytest.raises(ValueError, match=r"benchmark.jsonl:2: not a JSON object"):
        append_rows([row()], tmp_path)


def test_a_full_disk_keeps_the_rows(tmp_path, monkeypatch):
    file = append_rows([row()], tmp_path)[0]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_rows([row(seed=1)], tmp_path)
    assert len(read_rows(file)) == 1 and [path.name for path in tmp_path.iterdir()] == ["benchmark.jsonl"]


def test_rows_appended_at_the_same_time_all_arrive(tmp_path):
    rows = [row(seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: append_rows([one], tmp_path), rows))
    assert sorted(one["seed"] for one in read_rows(tmp_path / "benchmark.jsonl")) == list(range(12))


def test_the_command_is_what_a_person_types(monkeypatch):
    monkeypatch.setattr(results.sys, "orig_argv", ["/somewhere/bin/python3", "-m", "training.evaluate", "a b"])
    assert results.current_command() == "python3 -m training.evaluate 'a b'"
    assert row(command=None)["command"] == "python3 -m training.evaluate 'a b'"
