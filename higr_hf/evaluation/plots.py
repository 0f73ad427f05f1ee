"""Pictures of runs and comparisons. They need matplotlib (`pip install higr_hf[plots]`) and no display."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _figure(columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'higr_hf[plots]'.") from error
    # Without pyplot: no window system, and no figures that stay in memory.
    figure = Figure(figsize=(5.5 * columns, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure: Figure, path: str | os.PathLike) -> Path:
    path = Path(path)
    kind = path.suffix.lstrip(".") or "png"
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, dpi=120)
    return atomic_write_bytes(path, picture.getvalue())


def training_series(log_history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Curves in a `Trainer`'s log: metric -> (step, value) pairs, for `loss` and every `eval_*` value but timings.

    Example:
        >>> training_series([{"step": 1, "loss": 2.0}, {"step": 2, "eval_ndcg@5": 0.1}])
        {'loss': [(1, 2.0)], 'eval_ndcg@5': [(2, 0.1)]}
    """
    timings = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in log_history:
        for name, value in entry.items():
            wanted = name == "loss" or (name.startswith("eval_") and name not in timings)
            if wanted and isinstance(value, (int, float)) and "step" in entry:
                series.setdefault(name, []).append((entry["step"], value))
    return series


def plot_training(
    log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike, metric: str | None = None
) -> Path:
    """Training and validation loss, and beside them a validation metric.

    Args:
        log_history: `trainer.state.log_history`.
        path: the picture; the suffix chooses the format.
        metric: `ndcg@5`, say; the first `eval_` value that is no loss by default, none when there is none.

    Raises:
        ValueError: when the log holds no loss at all, or not the metric that was asked for.
    """
    series = training_series(log_history)
    losses = {name: points for name, points in series.items() if name == "loss" or name.endswith("_loss")}
    if not losses:
        raise ValueError("The log has no `loss` and no `eval_loss`: pass trainer.state.log_history after training.")
    others = [name for name in series if name not in losses]
    chosen = f"eval_{metric}" if metric is not None else (others[0] if others else None)
    if chosen is not None and chosen not in series:
        raise ValueError(f"The log has no {chosen!r}; there are {sorted(series)}.")
    figure, axes = _figure(1 if chosen is None else 2)
    for name, points in losses.items():
        axes[0].plot(*zip(*points, strict=True), label="training" if name == "loss" else name.removeprefix("eval_"))
    axes[0].set(xlabel="step", ylabel="loss", title="Loss")
    axes[0].legend()
    if chosen is not None:
        axes[1].plot(*zip(*series[chosen], strict=True), marker="o")
        axes[1].set(xlabel="step", ylabel=chosen.removeprefix("eval_"), title="Validation")
    return _save(figure, path)


def code_usage(codes: np.ndarray, codebook_sizes: Sequence[int]) -> list[np.ndarray]:
    """Items a code, one int64 `[K_l]` array a level, of codes int `[N, L]`."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != len(codebook_sizes):
        raise ValueError(f"codes have shape {codes.shape}, expected [items, {len(codebook_sizes)}].")
    return [np.bincount(codes[:, level], minlength=size) for level, size in enumerate(codebook_sizes)]


def plot_code_usage(codes: np.ndarray, codebook_sizes: Sequence[int], path: str | os.PathLike) -> Path:
    """How many items every code has, most used first, one panel a level.

    Args:
        codes: int `[N, L]`.
        codebook_sizes: L sizes.
        path: the picture.
    """
    usage = code_usage(codes, codebook_sizes)
    figure, axes = _figure(len(usage))
    for level, (axis, counts) in enumerate(zip(axes, usage, strict=True)):
        axis.bar(np.arange(len(counts)), np.sort(counts)[::-1], width=1.0)
        used = int((counts > 0).sum())
        axis.set(xlabel="code, most used first", ylabel="items", title=f"Level {level}: {used} of {len(counts)} used")
    return _save(figure, path)


def plot_diversity(
    slate_diversity: np.ndarray, history_diversity: np.ndarray, path: str | os.PathLike, label: str = "users"
) -> Path:
    """Every user's slate diversity against the diversity of their history, and the line where both are equal.

    Args:
        slate_diversity: float `[U]`, NaN where unknown.
        history_diversity: float `[U]`, the same users.
        path: the picture.
        label: what the points are.
    """
    slates, histories = np.asarray(slate_diversity), np.asarray(history_diversity)
    if slates.shape != histories.shape or slates.ndim != 1:
        raise ValueError(f"Expected two arrays [users], got {slates.shape} and {histories.shape}.")
    known = ~(np.isnan(slates) | np.isnan(histories))
    if not known.any():
        raise ValueError("No user has both a slate and a history of two items or more.")
    figure, (axis,) = _figure()
    axis.scatter(histories[known], slates[known], s=8, alpha=0.4, label=f"{known.sum()} {label}")
    low, high = min(histories[known].min(), slates[known].min()), max(histories[known].max(), slates[known].max())
    axis.plot([low, high], [low, high], color="grey", linewidth=1, label="equal")
    axis.set(xlabel="history diversity", ylabel="slate diversity", title="Intra-list diversity")
    axis.legend()
    return _save(figure, path)


def plot_scores(scores: Mapping[str, Sequence[float]], path: str | os.PathLike, title: str) -> Path:
    """Systems by their mean score, best on top, with a point for every seed.

    Args:
        scores: system -> its score with each seed.
        path: the picture.
        title: what the score is.

    Raises:
        ValueError: for no systems, or one without scores.
    """
    if not scores or not all(len(values) for values in scores.values()):
        raise ValueError("Every system needs at least one score, and there must be a system.")
    names = sorted(scores, key=lambda name: float(np.mean(scores[name])))
    figure, (axis,) = _figure()
    figure.set_size_inches(7.5, 1.2 + 0.32 * len(names))
    axis.barh(names, [float(np.mean(scores[name])) for name in names], color="lightsteelblue")
    for place, name in enumerate(names):
        axis.plot(scores[name], [place] * len(scores[name]), "o", color="black", markersize=3)
    axis.set(title=title)
    return _save(figure, path)


def plot_growth(
    panels: Sequence[Mapping[str, Mapping[str, Sequence[tuple[float | str, float]]]]],
    values: Sequence[str],
    path: str | os.PathLike,
) -> Path:
    """How values grow with one thing at a time: a row of panels a value, a column a thing, a line a system.

    Numbers stand on logarithmic axes, where a power of a thing is a straight line; names stand as they come.

    Args:
        panels: for every value, thing -> system -> its (size, value) points.
        values: what each row shows.
        path: the picture.

    Raises:
        ValueError: when the rows do not show the same things, or not one for each value.
    """
    if len(panels) != len(values) or not panels or any(list(row) != list(panels[0]) for row in panels):
        raise ValueError("Every value needs a row of panels, and all rows the same things.")
    figure, axes = _figure(len(panels[0]), len(panels))
    from matplotlib.ticker import LogFormatter

    figure.set_size_inches(3.2 * len(panels[0]), 2.9 * len(panels))
    for place, (axis, (value, thing)) in enumerate(
        zip(axes, ((value, thing) for value in values for thing in panels[0]), strict=True)
    ):
        named = False
        for system, points in panels[values.index(value)][thing].items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=system)
            named = named or any(isinstance(size, str) for size, _ in points)
        axis.set(xlabel=thing, ylabel=value if place % len(panels[0]) == 0 else None, yscale="log")
        if not named:
            axis.set_xscale("log")
            sizes = _apart({size for points in panels[values.index(value)][thing].values() for size, _ in points})
            axis.set_xticks(sizes, [f"{size:,}" if size == int(size) else f"{size:.2g}" for size in sizes])
            axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter(LogFormatter())
        axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.0, 0.5)))
    axes[0].legend()
    return _save(figure, path)


def _apart(sizes: Iterable[float]) -> list[float]:
    """Sizes in order, without those whose labels would stand on the one before."""
    kept: list[float] = []
    for size in sorted(sizes):
        if not kept or size > 1.2 * kept[-1]:
            kept.append(size)
    return kept


def plot_learning(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: str | os.PathLike,
    *,
    metric: str,
    goals: Sequence[float] = (),
) -> Path:
    """What systems have learnt after how many seconds, on a logarithmic axis of time.

    Args:
        curves: system -> its (seconds, score) points in order, seconds above zero.
        path: the picture.
        metric: what the score is.
        goals: scores that a line is drawn at.

    Raises:
        ValueError: for no systems, or one without points.
    """
    if not curves or not all(len(points) for points in curves.values()):
        raise ValueError("Every system needs at least one point, and there must be a system.")
    figure, (axis,) = _figure()
    for goal in goals:
        axis.axhline(goal, color="grey", linewidth=0.8, linestyle="dotted")
    for system, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=system)
    axis.set(xlabel="seconds of the processor", ylabel=metric, xscale="log")
    axis.legend()
    return _save(figure, path)


def best_tradeoffs(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of (cost, value) points that no other one beats in both, cheapest first.

    A point is left out where another costs no more and is worth no less; of equal points the first stays.

    Example:
        >>> best_tradeoffs({"slow": (9.0, 0.3), "fast": (1.0, 0.2), "worse": (4.0, 0.2)})
        ['fast', 'slow']
    """
    kept: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not kept or points[name][1] > points[kept[-1]][1]:
            kept.append(name)
    return kept


def plot_tradeoff(
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    path: str | os.PathLike,
    *,
    cost: str,
    value: str,
    groups: Mapping[str, str],
) -> Path:
    """Value over cost, a point a name, with a line through the best tradeoffs; costs stand on a logarithmic axis.

    Args:
        panels: title -> name -> (cost, value).
        path: the picture.
        cost, value: what the axes show.
        groups: name -> what its colour says.

    Raises:
        ValueError: for no panels, or one without points.
    """
    if not panels or not all(panels.values()):
        raise ValueError("There must be a panel, and every panel needs at least one point.")
    figure, axes = _figure(len(panels))
    figure.set_size_inches(6.5 * len(panels), 5)
    colours = {group: f"C{number}" for number, group in enumerate(dict.fromkeys(groups.values()))}
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        best = best_tradeoffs(points)
        axis.plot(*zip(*(points[name] for name in best), strict=True), color="grey", linewidth=1, zorder=1)
        for group, colour in colours.items():
            mine = [point for name, point in points.items() if groups[name] == group]
            if mine:
                axis.scatter(*zip(*mine, strict=True), s=22, color=colour, label=group)
        axis.set(xlabel=cost, ylabel=value, title=title, xscale="log")
        axis.margins(0.2)
    axes[0].legend()
    figure.draw_without_rendering()  # places the axes, so that labels can be kept apart
    figure.set_layout_engine("none")
    for axis, points in zip(axes, panels.values(), strict=True):
        _label_points(axis, points)
    return _save(figure, path)


def _label_points(axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write every name near its point, where no other name or point stands."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    places = [axis.transData.transform(point) for point in points.values()]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in places]
    inside = axis.get_window_extent()
    # Nearest first: beside the point, then further up and down.
    offsets = [(side, way * step) for step in range(0, 130, 9) for way in (1, -1) for side in (6, -6)]
    for name in sorted(points, key=lambda name: -points[name][1]):
        for place, (right, up) in enumerate(offsets):
            text = axis.annotate(
                name,
                points[name],
                xytext=(right, up),
                textcoords="offset points",
                fontsize=7,
                ha="left" if right > 0 else "right",
                va="center",
                arrowprops={"arrowstyle": "-", "color": "silver", "linewidth": 0.6, "shrinkA": 0} if up else None,
            )
            text.update_positions(axis.figure.canvas.get_renderer())
            box = Text.get_window_extent(text)  # an annotation's own one holds its line too
            free = not box.count_overlaps(taken) and inside.containsx(box.x0) and inside.containsx(box.x1)
            if (free and inside.containsy(box.y0) and inside.containsy(box.y1)) or place == len(offsets) - 1:
                break
            text.remove()
        taken.append(box)
