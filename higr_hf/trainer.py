"""transformers' `Trainer`, told how slates are batched and how a slate recommender is judged while it trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from .data.collators import QUERY, SlateCollator
from .utils import keep_freed_memory

COMPLETE = "complete"
"""Empty file written last into a checkpoint: a kill in the middle of a save leaves a checkpoint without it."""


def last_complete_checkpoint(directory: str | os.PathLike) -> str | None:
    """The newest checkpoint below a directory that was written to its end, `None` where there is none.

    Example:
        >>> trainer.train(resume_from_checkpoint=last_complete_checkpoint("runs/model"))
    """
    found = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in Path(directory).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and (path / COMPLETE).exists()
    ]
    return str(max(found)[1]) if found else None


class LengthBucketSampler(Sampler[int]):
    """Random order in which neighbours have similar lengths, so that batches hold little padding.

    The order is a function of `(seed, epoch)` alone: a resumed epoch sees the same batches.

    Args:
        lengths: length of every row.
        batch_size: rows a batch.
        seed: of the order.
        buckets: batches that are sorted by length together; more means less padding and less randomness.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0, buckets: int = 16) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size, self.seed, self.buckets = batch_size, seed, buckets
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        pool = self.batch_size * self.buckets
        batches = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)]
        short = [batch for batch in batches if len(batch) < self.batch_size]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        # An incomplete batch goes last: a batch sampler would otherwise cut across the buckets after it.
        for number in generator.permutation(len(whole)):
            yield from whole[number].tolist()
        for batch in short:
            yield from batch.tolist()


class _EpochCallback(TrainerCallback):
    """Ties the order of rows and the collator's draws to the epoch, so that resuming repeats neither."""

    def __init__(self, trainer: SlateTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        epoch = int(state.epoch or 0)
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(epoch)
        if isinstance(self.trainer.data_collator, SlateCollator):
            self.trainer.data_collator.set_epoch(epoch)


class SlateTrainer(Trainer):
    """`Trainer` for [`HiGRForSlateGeneration`].

    It batches sequences of similar length, logs the generator's and the dense head's losses apart, and adds slate
    metrics of your choice to every evaluation, so that `metric_for_best_model="eval_ndcg@5"` and early stopping work.
    Every target weighs the same: a batch's mean loss counts by the targets in it, or those of short sequences, which
    fill batches of their own, would weigh several times as much as others.

    Args:
        model: the model to train.
        args: `TrainingArguments`; set `remove_unused_columns=False`.
        data_collator: a [`SlateCollator`].
        train_dataset: a sequence of `EncodedSequence`.
        eval_dataset: a sequence of `EncodedSequence`, each history followed by its target slate.
        eval_collator: how they are batched; by default the training collator without its randomness.
        slate_metrics: called with the model at every evaluation; its result is logged with the prefix `eval_`.
        **kwargs: as for `Trainer`.

    Example:

    ```python
    >>> trainer = SlateTrainer(model, args, data_collator=SlateCollator(layout), train_dataset=sequences)
    >>> trainer.train()  # doctest: +SKIP

    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        data_collator: SlateCollator,
        train_dataset: Sequence,
        eval_dataset: Sequence | None = None,
        eval_collator: Callable | None = None,
        slate_metrics: Callable[[PreTrainedModel], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        if args.remove_unused_columns:
            raise ValueError("SlateTrainer's rows are not columns: set remove_unused_columns=False in the arguments.")
        self.sampler: LengthBucketSampler | None = None
        self.slate_metrics = slate_metrics
        self._sums: dict[str, torch.Tensor] = {}
        self._weight = 0.0
        super().__init__(
            model, args, data_collator=data_collator, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        self.eval_collator = eval_collator or data_collator.for_evaluation()
        self.add_callback(_EpochCallback(self))

    def _get_train_sampler(self, train_dataset: Sequence | None = None) -> LengthBucketSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        longest = self.data_collator.max_history + self.data_collator.slate_size
        lengths = [min(len(row), longest) for row in rows]
        self.sampler = LengthBucketSampler(lengths, self.args.train_batch_size, self.args.seed)
        return self.sampler

    def get_eval_dataloader(self, eval_dataset: Sequence | str | None = None) -> DataLoader:
        """The evaluation rows in their own collator."""
        training, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    @cached_property
    def _targets_a_batch(self) -> float:
        targets = [self.data_collator.num_targets(len(row)) for row in self.train_dataset]
        return max(float(np.mean(targets)), 1.0) * self.args.train_batch_size

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss, in training by the number of its targets; its parts are kept for the log.

        Nothing here waits for the device.
        """
        outputs = model(**inputs)
        loss = outputs.loss
        if model.training:
            weight = (inputs["slate_queries"][..., QUERY["target"]] >= 0).sum() / self._targets_a_batch
            loss = loss * weight
            self._weight += weight
            for name in ("loss", "generator_loss", "dense_loss"):
                if outputs.get(name) is not None:
                    self._sums[name] = self._sums.get(name, 0) + outputs[name].detach() * weight
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:  # an older run's checkpoint of the same step is being overwritten
            (folder / COMPLETE).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        # Last of all, and after every process: what is resumed from must have been written to its end.
        self.accelerator.wait_for_everyone()
        if self.args.should_save and folder.is_dir():
            (folder / COMPLETE).touch()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """As `Trainer.train`; `True` resumes from the newest checkpoint that was written to its end, if there is one.

        On a CPU the process keeps the memory it frees from then on, see [`keep_freed_memory`].

        Raises:
            ValueError: for a checkpoint that a kill or a full disk left half-written.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        elif resume_from_checkpoint and not (Path(resume_from_checkpoint) / COMPLETE).exists():
            raise ValueError(
                f"{resume_from_checkpoint} was not written to its end (it has no {COMPLETE!r} file): resume from an "
                "earlier checkpoint, or pass True to take the newest whole one."
            )
        if self.args.device.type == "cpu":
            keep_freed_memory()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss, and its parts, as means over all targets since the last log."""
        if "loss" in logs and self._sums:
            logs = {**logs, **{name: round(float(total / self._weight), 4) for name, total in self._sums.items()}}
            self._sums, self._weight = {}, 0.0
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Only the loss: slates are judged by `slate_metrics`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """The loss, and the slate metrics beside it."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.slate_metrics is not None:
            model = self.accelerator.unwrap_model(self.model)
            was_training = model.training
            model.eval()
            for name, value in self.slate_metrics(model).items():
                output.metrics[f"{metric_key_prefix}_{name}"] = float(value)
            model.train(was_training)
        return output
