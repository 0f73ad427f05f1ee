"""A training that was killed between two judgements goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from higr_hf.baselines import TIGER, ListCVAE, SASRecItemVectors
from higr_hf.baselines.early_stopping import KeepBest
from higr_hf.baselines.torch_training import TrainingPlan, train_network
from higr_hf.data import leave_last_out, synthetic_log

PLAN = TrainingPlan(learning_rate=0.05, warmup_steps=3, epochs=8, eval_every=2, patience=0)


class Killed(Exception):
    pass


class Run:
    """A tiny regression with dropout, whose score goes up and down."""

    def __init__(self, die_in: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.die_in, self.epoch, self.trained = die_in, 0, []

    def batches(self, epoch: int):
        self.epoch = epoch
        self.trained.append(epoch)
        yield from torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(epoch))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        if self.epoch == self.die_in:
            raise Killed
        return (self.network(batch[:, :3])[:, 0] - batch[:, 3]).square().mean()

    def judge(self) -> float:
        return float(sum(weight.detach().sum() for weight in self.network.parameters()).sin())

    def train(self, checkpoint: Path | None, plan: TrainingPlan = PLAN):
        return train_network(self.network, self.batches, self.loss, plan, self.judge, checkpoint)


def test_a_killed_training_ends_as_the_whole_one(tmp_path):
    whole = Run()
    expected = whole.train(None)
    path = tmp_path / "deep" / "training.safetensors"
    killed = Run(die_in=6)
    with pytest.raises(Killed):
        killed.train(path)
    assert killed.trained == [1, 2, 3, 4, 5, 6] and path.is_file()
    torch.manual_seed(99)  # another process draws from elsewhere
    resumed = Run()
    best = resumed.train(path)
    assert resumed.trained == [5, 6, 7, 8], "from the judgement after the fourth epoch on"
    assert [judgement[:2] for judgement in best.history] == [judgement[:2] for judgement in expected.history]
    assert best.epoch == expected.epoch and best.score == expected.score
    for one, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, other)
    seconds = [judgement.training_seconds for judgement in best.history]
    assert seconds == sorted(seconds), "what the first process spent counts"
    assert not path.exists(), "the training is over"


def test_one_that_was_to_stop_stops(tmp_path):
    """Killed between the last judgement and its end."""
    plan, path = dataclasses.replace(PLAN, patience=1), tmp_path / "training.safetensors"
    scores = iter([0.5, 0.1])
    killed = Run()
    killed.judge = lambda: next(scores)
    kept = path.with_name("copy")
    original = killed.network.eval

    def keep_a_copy():
        if path.is_file():
            kept.write_bytes(path.read_bytes())
        return original()

    killed.network.eval = keep_a_copy
    killed.train(path, plan)
    resumed = Run()
    best = resumed.train(kept, plan)
    assert resumed.trained == [] and best.epoch == 2 and best.done


def test_what_is_left_of_another_training_is_refused(tmp_path):
    path = tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        Run(die_in=4).train(path)
    with pytest.raises(ValueError, match="left by a training with other settings"):
        Run().train(path, dataclasses.replace(PLAN, learning_rate=0.01))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="holds no training that could go on"):
        Run().train(path)


@pytest.mark.parametrize("kind", ["tiger", "listcvae", "item_vectors"])
def test_baselines_hand_their_checkpoint_on(kind, tmp_path, monkeypatch):
    """That a whole unit goes on is held by the benchmark's own test."""
    log = synthetic_log(num_users=8, num_items=20, num_topics=4, length=16)
    codes = {"codebook_sizes": [4, 5], "codes": np.stack(np.divmod(np.arange(20), 5), axis=1)}
    given = {"tiger": (TIGER, codes), "listcvae": (ListCVAE, {}), "item_vectors": (SASRecItemVectors, codes)}
    cls, options = given[kind]
    asked = []

    def training(*arguments):
        asked.append(arguments[-1])
        return KeepBest(0)

    monkeypatch.setattr(sys.modules[cls.__module__], "train_network", training)
    for checkpoint in (None, tmp_path / "training.safetensors"):
        baseline = cls(log.item_ids, **options)
        baseline.checkpoint = checkpoint
        baseline.fit(leave_last_out(log)["train"])
        assert asked[-1] == checkpoint
