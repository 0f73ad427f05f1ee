"""What is watched while a model is aligned: margins and accuracies per objective, and whether it recommends better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

_FIELDS = 6  # rewards, correct ones and rows, of the chosen and of the rejected


class ObjectiveMeter:
    """Means of rewards per objective since the last log, over all processes.

    Args:
        names: the objectives; a batch names them by their place here.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, mode: str, side: int, objective: torch.Tensor, rewards: torch.Tensor, correct: torch.Tensor) -> None:
        """Count rows.

        Args:
            mode: `train` or `eval`.
            side: 0 for chosen, 1 for rejected slates.
            objective (`LongTensor [B]`), rewards (`FloatTensor [B]`), correct (`BoolTensor [B]`): of each row.
        """
        rewards = rewards.detach().double()
        sums = self._sums.setdefault(mode, torch.zeros(len(self.names), _FIELDS, dtype=torch.double))
        values = torch.stack([rewards, correct.double(), torch.ones_like(rewards)], dim=1).cpu()
        sums[:, side * 3 : side * 3 + 3].index_add_(0, objective.cpu(), values)

    def pop(self, mode: str, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The means, named as TRL names them with the objective behind; the counters start again.

        `reduce` sums a tensor over the processes, all of which must come here.
        """
        sums = self._sums.pop(mode, None)
        sums = torch.zeros(len(self.names), _FIELDS, dtype=torch.double) if sums is None else sums
        logs = {}
        for name, row in zip(self.names, reduce(sums).tolist(), strict=True):
            chosen, chosen_correct, chosen_rows, rejected, rejected_correct, rejected_rows = row
            if chosen_rows and rejected_rows:
                logs[f"rewards/margins/{name}"] = chosen / chosen_rows - rejected / rejected_rows
                rows = chosen_rows + rejected_rows
                logs[f"rewards/accuracies/{name}"] = (chosen_correct + rejected_correct) / rows
        return logs


class StopWhenItHurts(TrainerCallback):
    """Stops a run whose slates have not got better for some evaluations, the start included.

    The start counts where the trainer evaluates it (`eval_on_start=True`), so a run that only ever hurts is stopped
    after `patience` evaluations. Everything is read from the log, which a resumed run brings along.

    Args:
        metric: what is watched, such as `eval_ndcg@5`; higher is better.
        patience: evaluations without a new best value.
    """

    def __init__(self, metric: str, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}: leave the callback out to never stop")
        self.metric, self.patience = metric, patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the evaluations since the best one."""
        values = metric_history(state.log_history, self.metric)
        if not values:
            raise ValueError(f"the evaluation has no {self.metric}: give the trainer `slate_metrics` that measure it")
        best = max(range(len(values)), key=lambda place: (values[place], -place))
        if len(values) - 1 - best >= self.patience:
            control.should_training_stop = True


def metric_history(log: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """A metric's values in a trainer's log, one a step: a resumed run may have measured one step twice."""
    return list({entry["step"]: float(entry[metric]) for entry in log if metric in entry}.values())
