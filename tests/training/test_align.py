from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import TrainerCallback

from higr_hf import load_checkpoint, save_checkpoint
from higr_hf.alignment import METHODS, load_preferences
from higr_hf.alignment.trainers import SlateAlignment
from higr_hf.data import leave_last_out
from higr_hf.item_item import attach_item_item, fit_item_item
from tests.training.test_train import complaint
from tests.training.workspace import ROOT, SLATE_SIZE, write_checkpoint, write_log, write_tokenizer
from training import align

pytest.importorskip("trl")


class Killed(BaseException):
    """What ends a process in the middle of a step; nothing in between handles it."""


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise Killed


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A log with disliked items, and a starting model that has learnt nothing."""
    folder = tmp_path_factory.mktemp("align")
    log = write_log(folder, num_users=48, noise=0.3)
    tokenizer = write_tokenizer(folder, log)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_history": 12, "slate_size": SLATE_SIZE}
    write_checkpoint(folder / "start", tokenizer, **sizes, dropout=0.0)
    return folder


def arguments(folder: Path, output: Path, method: str = "orpo-sum", **options) -> list[str]:
    settings = {
        "method": method,
        "interactions": str(folder / "log.csv"),
        "items": str(folder / "items.csv"),
        "columns": {"user_id": "uid", "timestamp": "when"},
        "view_rule": "rating >= 4",
        "negative_rule": "rating <= 2",
        "diversity_embeddings": "collaborative",
        "model": str(folder / "start"),
        "eval_users": 16,
        "output_dir": str(output),
        "max_steps": 4,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_ndcg@5",
        "greater_is_better": True,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, **options}))
    return ["--recipe", str(path)]


def record(output: Path) -> dict:
    return json.loads((output / "alignment.json").read_text())


def test_the_recipes_are_whole(tmp_path):
    for method in METHODS:
        with pytest.raises(SystemExit) as stop:
            align.main(["--method", method, "--model", str(tmp_path / "none"), "--bf16", "maybe"])
        assert stop.value.code == 2, "options are read before anything else"
        assert "There is no checkpoint directory" in complaint(
            align.main, ["--method", method, "--model", str(tmp_path / "none"), "--output_dir", str(tmp_path)]
        )


@pytest.mark.parametrize("method", ["orpo-sum", "dpo"])
def test_item_item_tables_judge_but_do_not_teach(tmp_path, method):
    log = write_log(tmp_path, num_users=48, noise=0.3)
    tokenizer = write_tokenizer(tmp_path, log)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_history": 12, "slate_size": SLATE_SIZE}
    model = write_checkpoint(tmp_path / "start", tokenizer, **sizes, dropout=0.0, catalog_prior=True)
    tables = fit_item_item(leave_last_out(log, slate_size=SLATE_SIZE)["train"], log.item_ids, neighbours=8)
    attach_item_item(model, tables, [20.0, 20.0, 3.0])
    save_checkpoint(tmp_path / "tables", model, tokenizer)
    for name in ("start", "tables"):
        options = {"model": str(tmp_path / name), "load_best_model_at_end": False}
        align.main(arguments(tmp_path, tmp_path / f"{name}-run", method, **options))
    bare, told = (record(tmp_path / f"{name}-run") for name in ("start", "tables"))
    losses = [[entry["loss"] for entry in one["log"] if "loss" in entry] for one in (bare, told)]
    assert losses[0] == losses[1], "training does not see them"
    assert told["start"]["ndcg@5"] > bare["start"]["ndcg@5"], "what is judged has them"
    kept, _ = load_checkpoint(tmp_path / "tables-run" / "model")
    assert kept.config.item_item_scales == [20.0, 20.0, 3.0]
    np.testing.assert_array_equal(kept.model.item_item.weights.numpy(), tables.weights)
    plain, _ = load_checkpoint(tmp_path / "start-run" / "model")
    torch.testing.assert_close(kept.model.embeddings.state_dict(), plain.model.embeddings.state_dict())


def test_align_and_load_the_result(workspace, tmp_path):
    metrics = align.main(
        arguments(workspace, tmp_path / "run", max_steps=12, eval_steps=4, save_steps=4, dense_weight=1)
    )
    kept = record(tmp_path / "run")
    assert kept["kept"] == "aligned" and kept["metrics"] == pytest.approx(metrics)
    assert kept["metrics"]["ndcg@5"] > kept["start"]["ndcg@5"], "the start knows nothing"
    assert kept["preferences"]["pairs"]["interest"] > 10
    assert any("rewards/margins/diversity" in entry for entry in kept["log"])
    assert [entry["step"] for entry in kept["log"] if "eval_ndcg@5" in entry] == [0, 4, 8, 12]
    pairs = load_preferences(tmp_path / "run" / "preferences")
    assert len(pairs) == sum(kept["preferences"]["pairs"].values())

    # A process without this package reads the model by its own code.
    script = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert 'higr_hf' not in sys.modules\n"
        "print(model.generate(**tokenizer('<bos><slate>', return_tensors='pt')).tolist())"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", script, str(tmp_path / "run" / "model")]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    model, tokenizer = load_checkpoint(tmp_path / "run" / "model")
    assert json.loads(answer.stdout) == model.generate(**tokenizer("<bos><slate>", return_tensors="pt")).tolist()

    # The same pairs serve another method, and a checkpoint's own code is trained as well.
    again = arguments(
        workspace, tmp_path / "again", "dpo", preferences=str(tmp_path / "run" / "preferences"), max_steps=2,
        model=str(tmp_path / "run" / "model"), trust_remote_code=True, eval_users=4,
    )  # fmt: skip
    align.main(again)
    assert record(tmp_path / "again")["preferences"]["pairs"] == kept["preferences"]["pairs"]
    load_checkpoint(tmp_path / "again" / "model")


def test_a_run_that_hurts_keeps_the_start(workspace, tmp_path, monkeypatch):
    from higr_hf import judging

    values = iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    monkeypatch.setattr(judging.SlateEvaluator, "evaluate", lambda self, *args, **kwargs: Fixed(next(values)))
    for name, lora in (("whole", False), ("adapters", True)):
        values = iter([0.9, 0.9, 0.8, 0.7, 0.6, 0.5])
        options = {"max_steps": 20, "eval_steps": 1, "save_steps": 1, "patience": 2, "lora": lora}
        align.main(arguments(workspace, tmp_path / name, **options))
        kept = record(tmp_path / name)
        assert kept["kept"] == "start"
        assert max(entry["step"] for entry in kept["log"] if "loss" in entry) == 2
        start, _ = load_checkpoint(workspace / "start")
        model, _ = load_checkpoint(tmp_path / name / "model")
        for key, value in start.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key


class Fixed:
    """An evaluation with one number."""

    def __init__(self, value: float) -> None:
        self.metrics = self.known_metrics = {"ndcg@5": value}


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_run_goes_on(lora, workspace, tmp_path, monkeypatch):
    options = {"lora": lora, "max_steps": 4, "save_steps": 1, "eval_users": 4, "load_best_model_at_end": False}
    whole = arguments(workspace, tmp_path / "whole", **options)
    align.main(whole)
    killed = arguments(workspace, tmp_path / "killed", **options)
    train = SlateAlignment.train

    def train_and_die(self, *args, **kwargs):
        self.add_callback(Kill())
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SlateAlignment, "train", train_and_die)
        with pytest.raises(Killed):
            align.main(killed)
    assert not (tmp_path / "killed" / "model").exists()
    align.main([*killed, "--resume_from_checkpoint", "true"])
    models = [load_checkpoint(tmp_path / name / "model")[0].state_dict() for name in ("whole", "killed")]
    for key, value in models[0].items():
        torch.testing.assert_close(models[1][key], value, rtol=1e-5, atol=1e-6)
    assert [entry["step"] for entry in record(tmp_path / "killed")["log"] if "loss" in entry] == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_processes(workspace, tmp_path):
    argv = arguments(workspace, tmp_path / "two", max_steps=2, eval_users=4, lora=True, dense_weight=0.5)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
        "training.align", *argv,
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = record(tmp_path / "two")
    assert found["processes"] == 2
    assert any("rewards/margins/diversity" in entry for entry in found["log"])
    load_checkpoint(tmp_path / "two" / "model")


def test_what_it_refuses(workspace, tmp_path):
    def says(*argv: str, **options) -> str:
        return complaint(align.main, [*arguments(workspace, tmp_path / "run", **options), *argv])

    assert "--method 'ppo' does not exist" in complaint(align.main, ["--method", "ppo"])
    assert "--model is missing" in says(model="")
    assert "There is no checkpoint directory" in says(model=str(tmp_path / "none"))
    assert "there is no objective 'novelty'" in says(objectives={"novelty": 1})
    assert "needs the column 'hate'" in says(negative_rule="hate")
    assert "history_negatives" in says(negative_rule=None)
    assert "no user has a pair for the objective 'interest'" in says(negative_rule="rating <= 0")
    assert "--slate_size 7" in says(slate_size=7, metric_for_best_model="eval_ndcg@7")
    assert "use eval_ndcg@3" in says(slate_size=3)
    assert "is no feedback level" in says(wish=1)
    assert "simpo is defined by cpo_alpha" in says(method="simpo", cpo_alpha=0.5)
    assert "max_length is 30" in says(max_length=30)
    assert "frozen: no parameter" in says(frozen=["embedings"])
    assert "is no directory" in says(trust_remote_code=True, model=str(tmp_path / "none"))
    assert "was not written to its end" in says(resume_from_checkpoint=str(tmp_path / "run"))
    shutil.copytree(workspace / "start", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"short")
    assert "truncated or corrupt" in says(model=str(tmp_path / "broken"))
    assert "is no dataset written by save_preferences" in says(preferences=str(tmp_path / "broken"))
