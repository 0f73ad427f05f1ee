from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from higr_hf.baselines.early_stopping import TrainingClock
from higr_hf.speed.learning import LearningClock


class _Timed(Trainer):
    """A step takes 1 s, an evaluation 100 s, a checkpoint 10,000 s of a time that is counted by hand."""

    time = 0.0

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.time += 1
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(inputs["x"]).square().mean()

    def evaluate(self, *args, **kwargs):
        self.time += 100
        metrics = {"eval_score": self.state.global_step / 10}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model, trial):
        self.time += 10_000


def history(tmp_path, **options):
    """Of two epochs of four steps."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=2, remove_unused_columns=False,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", **options,
    )  # fmt: skip
    rows = [{"x": torch.ones(1)}] * 8
    trainer = _Timed(torch.nn.Linear(1, 1), arguments, train_dataset=rows, eval_dataset=rows)
    trainer.time = 1e6  # what came before training
    clock = LearningClock("eval_score", TrainingClock(lambda: trainer.time))
    trainer.add_callback(clock)
    trainer.train()
    trainer.evaluate()  # of nobody's training
    return clock.history


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"eval_strategy": "epoch", "save_strategy": "no"}, [(1, 0.4, 4, 100), (2, 0.8, 8, 200)]),
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, [(1, 0.4, 4, 100), (2, 0.8, 8, 200)]),
        (
            {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 2},
            [(0.75, 0.3, 3, 100), (1.5, 0.6, 6, 200), (2, 0.8, 8, 300)],
        ),
        ({"eval_strategy": "no", "save_strategy": "epoch"}, []),
    ],
)
def test_steps_are_training_and_nothing_else_is(tmp_path, options, expected):
    assert history(tmp_path, **options) == expected
