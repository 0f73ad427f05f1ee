"""The training loop of the networks that are written here: AdamW, early stopping on validation, one seed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..evaluation import SlateEvaluator
from ..utils import atomic_write_bytes
from .early_stopping import KeepBest
from .training_checkpoint import TrainingCheckpoint

if TYPE_CHECKING:
    from datasets import Dataset

    from .base import Baseline


@dataclass(frozen=True)
class TrainingPlan:
    """How a network is trained.

    Attributes:
        learning_rate: of AdamW, reached after `warmup_steps` and constant from there.
        weight_decay: of AdamW.
        warmup_steps: steps over which the learning rate rises.
        max_grad_norm: the gradient is cut to this norm.
        batch_size: sequences a step.
        epochs: most passes over the training sequences.
        eval_every: epochs between two judgements on validation.
        patience: judgements without a better NDCG before training stops; 0 to never stop early.
        slate_size: M of the validation slates.
        exclude_history: whether validation slates may repeat the history.
        seed: of weights, order and dropout.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    max_grad_norm: float = 1.0
    batch_size: int = 128
    epochs: int = 60
    eval_every: int = 5
    patience: int = 4
    slate_size: int = 5
    exclude_history: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm", "batch_size", "epochs", "eval_every", "slate_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("weight_decay", "warmup_steps", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_network(
    network: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[Any], torch.Tensor],
    plan: TrainingPlan,
    judge: Callable[[], float] | None,
    checkpoint: Path | None = None,
) -> KeepBest:
    """Train in place and leave the best weights in the network.

    Args:
        network: what is trained, on its device.
        batches: epoch number (from 1) -> the epoch's batches.
        loss: of a batch, a scalar with a gradient.
        plan: see [`TrainingPlan`].
        judge: the validation score of the network as it is, more is better; `None` trains for `plan.epochs`.
        checkpoint: file in which the training is kept after every judgement, and from which it goes on where it was
            killed; it is removed at the end.

    Returns:
        The scores by epoch, and which was the best.

    Raises:
        ValueError: when the loss is no longer finite, and for a checkpoint of another training.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    best, over, step = KeepBest(plan.patience), 0, 0
    kept = None if checkpoint is None else TrainingCheckpoint(checkpoint, dataclasses.asdict(plan), atomic_write_bytes)
    if kept is not None:
        over, step = kept.take_up(network, optimizer, best)
    for epoch in range(over + 1, plan.epochs + 1):
        if best.done:
            break
        network.train()
        for batch in batches(epoch):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * min(1.0, step / max(plan.warmup_steps, 1))
            value = loss(batch)
            if not torch.isfinite(value):
                raise ValueError(
                    f"The loss became {value.item()} in epoch {epoch}: lower learning_rate ({plan.learning_rate})."
                )
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), plan.max_grad_norm)
            optimizer.step()
        if judge is None or (epoch % plan.eval_every and epoch < plan.epochs):
            continue
        network.eval()
        best.judge(epoch, judge, lambda: copy.deepcopy(network.state_dict()))
        if kept is not None:
            kept.keep(network, optimizer, best, epoch, step)
    if best.state is not None:
        network.load_state_dict(best.state)
    network.eval()
    if kept is not None:
        kept.remove()
    return best


def validation_judge(baseline: Baseline, validation: Dataset | None, plan: TrainingPlan) -> Callable[[], float] | None:
    """NDCG of a baseline's slates on the validation split, as the benchmark's evaluator measures it."""
    if validation is None:
        return None
    evaluator = SlateEvaluator(
        validation,
        baseline.item_ids,
        slate_size=plan.slate_size,
        exclude_history=plan.exclude_history,
        batch_size=1024,
        num_resamples=0,
        progress=False,
    )
    return lambda: evaluator.evaluate(lambda batch: baseline(batch, plan.slate_size)).primary_value


def runs(
    sequences: Sequence[np.ndarray], longest: int, batch_size: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """An epoch of training runs: every sequence cut into pieces at a place drawn anew, in batches of similar length.

    Pieces share one event, so that every event but a sequence's first is the next item of a place once.

    Args:
        sequences: item indices of one user each, oldest first.
        longest: events a piece has at most, at least 2.
        batch_size: pieces a batch.
        generator: of the places and the order.

    Yields:
        int64 `[B, T ≤ longest]` item indices, padded with -1 on the right.
    """
    pieces = []
    for row in sequences:
        end = len(row)
        if end > longest:  # a first cut inside the last piece, so that pieces do not always start alike
            pieces.append(row[end - int(generator.integers(2, longest + 1)) :])
            end -= len(pieces[-1]) - 1
        pieces += [row[max(stop - longest, 0) : stop] for stop in range(end, 1, 1 - longest)]
    order = generator.permutation(len(pieces))
    order = order[np.argsort([len(pieces[number]) for number in order], kind="stable")]
    chunks = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    for number in generator.permutation(len(chunks)):
        yield padded([pieces[index] for index in chunks[number]])


def padded(rows: Sequence[np.ndarray], longest: int | None = None) -> np.ndarray:
    """Rows of item indices side by side, int64 `[B, T]`, -1 on the right; the newest `longest` events are kept."""
    rows = [np.asarray(row, dtype=np.int64)[-longest if longest else None :] for row in rows]
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table
