"""The `evaluate` module loads from its path without a network and agrees with the plain functions."""

from __future__ import annotations

from pathlib import Path

import evaluate
import numpy as np
import pytest

from higr_hf.evaluation import metrics

PATH = Path(metrics.__file__).parent / "slate_metrics"
SLATES = [[3, 1, 3], [5, 6]]
TARGETS = [[1, 3], [7]]


@pytest.fixture
def load(monkeypatch, tmp_path):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a network connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    return lambda *args: evaluate.load(str(PATH), *args, cache_dir=str(tmp_path))


def test_it_agrees_with_the_plain_functions(load):
    result = load().compute(predictions=SLATES, references=TARGETS)
    slates, targets = np.array([[3, 1, 3], [5, 6, -1]]), np.array([[1, 3], [7, -1]])
    assert result["hit@3"] == metrics.hit(slates, targets) == 0.5
    assert result["recall@3"] == metrics.recall(slates, targets) == 0.5
    assert result["ndcg@3"] == metrics.ndcg(slates, targets) == 0.5
    assert result["duplicates"] == pytest.approx(1 / 6)


def test_string_ids_views_and_a_cut(load):
    names = [[["a", "b", "c"]], [["b", "c"]]]
    result = load("item_ids").compute(predictions=names[0], references=names[1], views=[[False, True]], k=2)
    assert result["recall@2"] == 0.5 and result["view_recall@2"] == 0.0 and result["view_hit@2"] == 0.0


def test_batches_add_up(load):
    metric = load()
    for slate, target in zip(SLATES, TARGETS, strict=True):
        metric.add_batch(predictions=[slate], references=[target])
    assert metric.compute(k=3)["hit@3"] == 0.5


def test_views_of_another_length_are_refused(load):
    with pytest.raises(ValueError, match="views need one value"):
        load().compute(predictions=SLATES, references=TARGETS, views=[[True], [True]])
