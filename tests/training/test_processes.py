"""Several processes, launchers, and a process that is killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from higr_hf import load_checkpoint
from higr_hf.trainer import last_complete_checkpoint
from tests.training.workspace import ROOT, losses, train_rows, write_log, write_recipe, write_tokenizer
from training import train


def launch(*command: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a module with this interpreter, and fail with what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.mark.slow
def test_two_processes_share_the_rows_and_one_writes(tmp_path):
    log = write_log(tmp_path, noise=0.4)
    tokenizer = write_tokenizer(tmp_path, log)
    recipe = write_recipe(tmp_path, num_train_epochs=4, save_strategy="steps", save_steps=8, learning_rate=0.01)
    launch(
        "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.training.recorded", *recipe,
        ACCELERATE_USE_CPU="1", HIGR_RECORD=str(tmp_path),
    )  # fmt: skip
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2

    # 64 rows in batches of 8 on 2 processes: 4 steps an epoch, every row once, on one process.
    everyone = Counter(tuple(tokenizer.items_to_indices(list(row))) for row in train_rows(log))
    assert max(everyone.values()) == 1, "the check needs rows that differ"
    orders = []
    for epoch in range(4):
        mine, other = (
            [tuple(row) for at, rows in record["batches"] if at == epoch for row in rows] for record in (first, second)
        )
        assert len(mine) == len(other) == 32
        assert Counter(mine) + Counter(other) == everyone
        orders.append(mine)
    assert all(one != two for one, two in itertools.combinations(orders, 2)), "every epoch has its own order"

    assert first["weights"] == pytest.approx(second["weights"], rel=1e-9)
    curve = losses(tmp_path / "run" / "validation.json")
    assert len(curve) == 16
    assert np.isfinite(curve).all()
    assert np.mean(curve[-4:]) < 0.95 * np.mean(curve[:4])
    assert json.loads((tmp_path / "run" / "validation.json").read_text())["processes"] == 2

    assert any("trainer_state.json" in path for path in first["written"])
    assert [path for path in second["written"] if "rng_state_1" not in path] == []
    load_checkpoint(tmp_path / "run" / "model")


@pytest.mark.slow
def test_a_killed_run_goes_on_along_the_same_curve(own):
    """Killed between two checkpoints, then resumed; accelerate launches the one that is left alone."""
    folder, _ = own
    settings = {
        "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 15,
        "warmup_steps": 4, "model": {"dropout": 0.2, "hidden_size": 32, "intermediate_size": 64},
        "collator": {"shuffle": 0.5, "num_starts": 4},
    }  # fmt: skip
    whole = write_recipe(folder, output_dir=str(folder / "whole"), **settings)
    launch("accelerate.commands.launch", "--num_processes", "1", "--cpu", "-m", "training.train", *whole)

    cut = folder / "cut"
    recipe = write_recipe(folder, output_dir=str(cut), **settings)
    command = [sys.executable, "-m", "tests.training.killed", "12", *recipe]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-4000:]
    assert last_complete_checkpoint(cut) == str(cut / "checkpoint-10")
    assert not (cut / "model").exists(), "killed in the middle"

    train.main([*recipe, "--resume_from_checkpoint", "true"])
    curves = [losses(folder / name / "validation.json") for name in ("whole", "cut")]
    assert len(curves[0]) == 32
    assert curves[1] == pytest.approx(curves[0], abs=1e-3)
    one, two = (load_checkpoint(folder / name / "model")[0] for name in ("whole", "cut"))
    for (name, expected), found in zip(one.named_parameters(), two.parameters(), strict=True):
        assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-3), name
