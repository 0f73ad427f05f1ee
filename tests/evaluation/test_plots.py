"""Plots read the right numbers and write a real picture."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from higr_hf.evaluation import plots
from higr_hf.evaluation.plots import (
    best_tradeoffs,
    code_usage,
    plot_code_usage,
    plot_diversity,
    plot_growth,
    plot_learning,
    plot_scores,
    plot_tradeoff,
    plot_training,
    training_series,
)

LOG = [
    {"step": 1, "loss": 3.0, "epoch": 0.5},
    {"step": 2, "loss": 2.0, "learning_rate": 0.1},
    {"step": 2, "eval_loss": 2.5, "eval_ndcg@5": 0.1, "eval_runtime": 9.0},
    {"step": 2, "train_runtime": 9.0, "train_loss": 2.5},
]
PNG = b"\x89PNG\r\n\x1a\n"
GROWTH = {"history": {"higr": [(50, 1.0), (200, 3.0)]}, "preset": {"higr": [("tiny", 1.0), ("small", 9.0)]}}
POINTS = {"flat beam": (9.0, 0.2), "flat greedy": (4.0, 0.1), "plan-once": (1.0, 0.2), "sequential": (2.0, 0.3)}
SYSTEMS = {"flat beam": "onerec", "flat greedy": "onerec", "plan-once": "higr", "sequential": "higr"}


def test_series_are_the_losses_and_the_metrics():
    expected = {"loss": [(1, 3.0), (2, 2.0)], "eval_loss": [(2, 2.5)], "eval_ndcg@5": [(2, 0.1)]}
    assert training_series(LOG) == expected


def test_code_usage_by_hand():
    usage = code_usage(np.array([[0, 1], [0, 2], [1, 1]]), [3, 4])
    assert [counts.tolist() for counts in usage] == [[2, 1, 0], [0, 2, 1, 0]]
    with pytest.raises(ValueError, match=r"expected \[items, 1\]"):
        code_usage(np.zeros((2, 2), dtype=int), [3])


def test_the_best_tradeoffs_are_beaten_by_nobody():
    assert best_tradeoffs(POINTS) == ["plan-once", "sequential"]
    assert best_tradeoffs({"a": (1.0, 0.1), "b": (1.0, 0.2), "c": (1.0, 0.2), "d": (0.5, 0.05)}) == ["d", "b"]


def test_labels_stand_apart(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.text import Text

    seen = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: seen.append(figure))
    close = {f"setting {number}": (1 + number / 100, 0.2) for number in range(8)}
    plot_tradeoff({"all": close}, tmp_path, cost="ms", value="NDCG@5", groups=dict.fromkeys(close, "higr"))
    boxes = [Text.get_window_extent(text) for text in seen[0].axes[0].texts]
    assert [text.get_text() for text in seen[0].axes[0].texts] == list(close)
    assert not any(box.count_overlaps(boxes[:place]) for place, box in enumerate(boxes))


def test_sizes_that_are_alike_share_a_label(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    seen = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: seen.append(figure))
    lines = {"higr": [(0.0913, 2.07), (0.2199, 2.02), (1.7766, 1.97)], "onerec": [(0.091, 2.87), (0.2188, 2.34)]}
    plot_growth([{"million parameters": lines}], ["loss"], tmp_path)
    figure = seen[0]
    figure.canvas.draw()
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert [label.get_text() for label in labels] == ["0.091", "0.22", "1.8"]
    boxes = [label.get_window_extent() for label in labels]
    assert not any(box.count_overlaps(boxes[:place]) for place, box in enumerate(boxes))


def test_pictures_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    files = [
        plot_training(LOG, tmp_path / "a.png", metric="ndcg@5"),
        plot_training(LOG[:2], tmp_path / "b.png"),
        plot_code_usage(np.array([[0, 1], [1, 0]]), [2, 2], tmp_path / "c.png"),
        plot_diversity(np.array([0.1, 0.2, np.nan]), np.array([0.3, np.nan, 0.1]), tmp_path / "d.png"),
        plot_scores({"higr": [0.1, 0.2], "ease": [0.1]}, tmp_path / "e.png", "ndcg@5"),
        plot_growth([GROWTH, GROWTH], ["ms", "megabytes"], tmp_path / "f.png"),
        plot_learning({"higr": [(1.0, 0.1), (9.0, 0.2)]}, tmp_path / "g.png", metric="ndcg@5", goals=[0.15]),
        plot_tradeoff({"batch 1": POINTS}, tmp_path / "h.png", cost="ms", value="NDCG@5", groups=SYSTEMS),
    ]
    assert all(file.read_bytes().startswith(PNG) for file in files)
    assert plot_code_usage(np.array([[0]]), [1], tmp_path / "e.svg").read_text().startswith("<?xml")


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(ValueError, match="no `loss`"):
        plot_training([{"step": 1}], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"no 'eval_recall@5'"):
        plot_training(LOG, tmp_path / "a.png", metric="recall@5")
    with pytest.raises(ValueError, match="No user"):
        plot_diversity(np.array([np.nan]), np.array([1.0]), tmp_path / "a.png")
    with pytest.raises(ValueError, match="all rows the same things"):
        plot_growth([GROWTH, {}], ["ms", "megabytes"], tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one point"):
        plot_learning({"higr": []}, tmp_path / "a.png", metric="ndcg@5")
    with pytest.raises(ValueError, match="at least one point"):
        plot_tradeoff({"batch 1": {}}, tmp_path / "a.png", cost="ms", value="NDCG@5", groups={})
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"higr_hf\[plots\]"):
        plot_code_usage(np.array([[0]]), [1], tmp_path / "a.png")
