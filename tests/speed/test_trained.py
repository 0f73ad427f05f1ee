"""Trained checkpoints are timed on the code that judges them, and on the code that `bench_speed` times."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from higr_hf.baselines.onerec import search
from higr_hf.checkpoint import CheckpointError
from higr_hf.speed.systems import Bench, Shape
from higr_hf.speed.trained import Decoding, TrainedBench
from tests.training.workspace import write_checkpoint, write_log, write_tokenizer

FLAT = {"num_beams": 3}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "max_history": 10, "slate_size": 3, "dense_head": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    log = write_log(folder, num_users=4)
    tokenizer = write_tokenizer(folder, log)
    for system in ("higr", "onerec"):
        write_checkpoint(folder / system, tokenizer, system, **SIZES)
    other = write_tokenizer(folder / "other", log, shift=1)
    write_checkpoint(folder / "other" / "onerec", other, "onerec", **SIZES)
    return folder


@pytest.fixture(scope="module")
def bench(folder):
    return TrainedBench({"higr": folder / "higr", "onerec": folder / "onerec"}, slate_size=3)


def users(*histories):
    """Rows as the evaluator gives them, no item of the history allowed again."""
    rows = [np.array(items) for items in histories]
    return {"history_indices": rows, "exclude_indices": rows}


def test_calls_go_through_the_batches_and_give_the_recommenders_slates(bench):
    batches = [users([1, 2, 3], [7]), users([40, 41], list(range(20, 35)))]  # one longer than a prompt may be
    for decoding in (
        Decoding("flat", "onerec", FLAT),
        Decoding("once", "higr", {"slate_mode": "plan_once", "num_beams": 3}),
    ):
        call, recommend = bench.call(decoding, batches), bench.recommender(decoding)
        expected = [recommend(batch).tolist() for batch in batches]
        assert [call().tolist() for _ in range(3)] == [*expected, expected[0]]
        assert all(len(set(slate)) == 3 for slates in expected for slate in slates)
        assert not set(expected[1][1]) & set(range(20, 35))


def test_the_flat_beam_is_the_one_that_bench_speed_times(bench, monkeypatch):
    caches, made = [], search.BeamCache
    monkeypatch.setattr(search, "BeamCache", lambda *sizes: caches.append(sizes) or made(*sizes))
    batches = [users([1, 2, 3], [7])]
    kept = bench.call(Decoding("flat", "onerec", FLAT), batches)()
    assert len(caches) == 1, "keys and values are kept unless a setting says otherwise"
    anew = bench.call(Decoding("flat, no cache", "onerec", {**FLAT, "use_cache": False}), batches)()
    assert len(caches) == 1 and kept.tolist() == anew.tolist()
    timed = Bench(Shape(num_items=40, codebook_size=4)).model("onerec")
    assert type(timed) is type(bench.model("onerec"))


def test_only_the_cache_leaves_slates_as_they_are():
    flat = Decoding("flat", "onerec", FLAT)
    assert flat.slates_of == Decoding("anew", "onerec", {"use_cache": False, **FLAT}).slates_of
    others = [
        Decoding("wider", "onerec", {"num_beams": 4}),
        Decoding("int8", "onerec", FLAT, "int8"),
        Decoding("higr", "higr", FLAT),
    ]
    assert flat.slates_of not in [other.slates_of for other in others]


def test_preparations_are_loaded_beside_the_model(bench):
    plain, turned = (bench.model("higr", prepared) for prepared in ("float32", "input-major"))
    assert bench.model("higr") is plain and bench.model("higr", "input-major") is turned
    weights = [model.model.planner.proj.weight for model in (plain, turned)]
    assert torch.equal(*weights) and weights[0].stride() != weights[1].stride()


def test_what_does_not_compare_is_refused(folder, bench):
    with pytest.raises(CheckpointError, match="another tokenizer than"):
        TrainedBench({"higr": folder / "higr", "onerec": folder / "other" / "onerec"}, slate_size=3)
    with pytest.raises(ValueError, match="no checkpoint of 'tiger'"):
        bench.model("tiger")
    with pytest.raises(ValueError, match="prepared must be one of"):
        bench.model("higr", "float8")
