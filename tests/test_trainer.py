from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from higr_hf import HiGRForSlateGeneration
from higr_hf.data.collators import QUERY, SlateCollator
from higr_hf.data.encoding import EncodedSequence, TokenLayout
from higr_hf.trainer import LengthBucketSampler, SlateTrainer, last_complete_checkpoint


def rows(number: int = 24, items: int = 24) -> list[EncodedSequence]:
    generator = np.random.default_rng(0)
    made = []
    for _ in range(number):
        length = int(generator.integers(6, 14))
        start = int(generator.integers(items))
        made.append(EncodedSequence((start + np.arange(length)) % items, np.full(length, -1), np.full(length, -1)))
    return made


def trainer(tester, directory, **options) -> SlateTrainer:
    model = tester.model(initializer_range=0.05)
    config = model.config
    layout = TokenLayout(tester.codes.numpy(), config.level_offsets, config.feature_offset, config.num_feedback_levels)
    settings = {
        "output_dir": str(directory),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_steps": 4,
        "save_strategy": "steps",
        "remove_unused_columns": False,
        "report_to": [],
        "seed": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    extra = {name: options.pop(name) for name in list(options) if name in ("slate_metrics", "callbacks")}
    collator = SlateCollator(layout, slate_size=4, max_history=8, num_windows=2, shuffle=0.5, num_starts=4)
    data = rows()
    arguments = TrainingArguments(**{**settings, **options})
    return SlateTrainer(model, arguments, data_collator=collator, train_dataset=data, eval_dataset=data[:5], **extra)


def losses(state) -> list[float]:
    return [entry["loss"] for entry in state.log_history if "loss" in entry]


def test_training_lowers_the_loss_and_logs_its_parts(tester, tmp_path):
    run = trainer(tester, tmp_path, num_train_epochs=20, learning_rate=1e-2, save_strategy="no")
    run.train()
    history = losses(run.state)
    assert np.mean(history[-6:]) < 0.75 * np.mean(history[:6])
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    assert entry["loss"] == pytest.approx(entry["generator_loss"] + entry["dense_loss"], abs=2e-3)


def test_a_target_weighs_the_same_in_every_batch(tester, tmp_path):
    run = trainer(tester, tmp_path)
    run.model.train()
    collator = replace(run.data_collator, num_windows=0, num_starts=None, max_history=20)
    few, many = (collator(sorted(rows(), key=len)[part]) for part in (slice(4), slice(-4, None)))
    weights = []
    for batch in (few, many):
        torch.manual_seed(0)
        plain = run.model(**batch).loss
        torch.manual_seed(0)
        weights.append((run.compute_loss(run.model, dict(batch)) / plain).item())
    asked = [(batch["slate_queries"][..., QUERY["target"]] >= 0).sum().item() for batch in (few, many)]
    assert asked[0] < asked[1]
    assert weights[0] / asked[0] == pytest.approx(weights[1] / asked[1])
    run.model.eval()
    assert run.compute_loss(run.model, dict(few)) == run.model(**few).loss


def test_resuming_continues_the_same_curve(tester, tmp_path):
    whole = trainer(tester, tmp_path / "whole")
    whole.train()
    cut = trainer(tester, tmp_path / "whole2", max_steps=4)
    cut.train()
    resumed = trainer(tester, tmp_path / "whole2")
    # The learning-rate schedule of the whole run, as a killed run would have had it.
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert losses(resumed.state)[4:] == pytest.approx(losses(whole.state)[4:], abs=2e-4)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-4), name


def test_slate_metrics_choose_the_best_model(tester, tmp_path):
    values = iter([0.1, 0.9, 0.2])
    seen = []

    def metrics(model: HiGRForSlateGeneration) -> dict[str, float]:
        assert not model.training
        seen.append(model.model.planner.proj.weight.detach().clone())
        return {"ndcg@5": next(values)}

    run = trainer(
        tester,
        tmp_path,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_ndcg@5",
        slate_metrics=metrics,
    )
    run.train()
    assert run.state.best_metric == 0.9
    assert torch.equal(run.model.model.planner.proj.weight, seen[1])
    logged = [entry["eval_ndcg@5"] for entry in run.state.log_history if "eval_ndcg@5" in entry]
    assert logged == [0.1, 0.9, 0.2]


def test_evaluation_loss_has_no_randomness(tester, tmp_path):
    run = trainer(tester, tmp_path)
    first, second = (run.evaluate()["eval_loss"] for _ in range(2))
    assert first == second


def test_checkpoints_are_safetensors_and_carry_the_catalogue(tester, tmp_path):
    run = trainer(tester, tmp_path, max_steps=4)
    run.train()
    loaded = HiGRForSlateGeneration.from_pretrained(tmp_path / "checkpoint-4")
    assert loaded.model.item_codes.equal(tester.codes)
    index = json.loads((tmp_path / "checkpoint-4" / "config.json").read_text())
    assert index["auto_map"]["AutoModelForCausalLM"] == "modeling_higr.HiGRForSlateGeneration"


def test_a_half_written_checkpoint_is_never_resumed_from(tester, tmp_path):
    run = trainer(tester, tmp_path, max_steps=8)
    run.train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    (tmp_path / "checkpoint-8" / "complete").unlink()  # as a kill in the middle of the save would have left it
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match="was not written to its end"):
        trainer(tester, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    again = trainer(tester, tmp_path, max_steps=8)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    assert losses(again.state) == pytest.approx(losses(run.state), abs=2e-4)
    assert last_complete_checkpoint(tmp_path / "elsewhere") is None


def test_forgetting_to_keep_the_rows_is_said(tester, tmp_path):
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        trainer(tester, tmp_path, remove_unused_columns=True)


def test_the_bucket_sampler_visits_all_and_groups_lengths():
    lengths = np.random.default_rng(0).integers(5, 200, 203).tolist()
    sampler = LengthBucketSampler(lengths, 8, seed=2)
    first = list(sampler)
    assert sorted(first) == list(range(203))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    padding = sum(max(lengths[i] for i in first[s : s + 8]) * len(first[s : s + 8]) for s in range(0, 203, 8))
    rng = np.random.default_rng(1).permutation(203)
    random = sum(max(lengths[i] for i in rng[s : s + 8]) * len(rng[s : s + 8]) for s in range(0, 203, 8))
    assert padding < 0.8 * random
