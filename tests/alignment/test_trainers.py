from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from higr_hf import HiGRForSlateGeneration, HiGRTokenizer
from higr_hf.alignment import METHODS, PreferenceError, StopWhenItHurts, make_config
from higr_hf.alignment.run import hold_out, lora_config
from tests.alignment.pairs import PAIRS, config, to_dataset, trainer
from tests.model_tester import HiGRModelTester


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_logs_every_objective_apart(method, checkpoint, pairs, tmp_path):
    # KTO sees single slates, eight of them.
    size = 8 if method == "kto" else 4
    options = {"max_steps": 12, "eval_strategy": "steps", "eval_steps": 12, "per_device_train_batch_size": size}
    work = trainer(method, checkpoint, pairs, tmp_path, options)
    before = {name: value.clone() for name, value in work.model.named_parameters()}
    work.train()
    logs = [entry for entry in work.state.log_history if "loss" in entry]
    watched = [entry for entry in work.state.log_history if "eval_loss" in entry]
    for name in ("ranking", "interest", "diversity"):
        assert any(f"rewards/margins/{name}" in entry for entry in logs)
        assert watched[-1][f"eval_rewards/margins/{name}"] > 0, "four pairs are learnt by heart"
        assert watched[-1][f"eval_rewards/accuracies/{name}"] >= 0.5
    changed = {name for name, value in work.model.named_parameters() if not torch.equal(value, before[name])}
    for part in ("encoder.", "planner.", "generators.", "embed_tokens", "lm_head"):
        assert any(part in name for name in changed), part
    assert not list(tmp_path.rglob("README.md"))


def test_margins_of_objectives_add_up(checkpoint, pairs, tmp_path):
    for method in ("orpo-sum", "cpo", "dpo"):
        work = trainer(method, checkpoint, pairs, tmp_path)
        work.train()
        metrics = work.evaluate()
        shares = {"ranking": 0.5, "interest": 0.25, "diversity": 0.25}
        for kind in ("margins", "accuracies"):
            parts = [share * metrics[f"eval_rewards/{kind}/{name}"] for name, share in shares.items()]
            assert metrics[f"eval_rewards/{kind}"] == pytest.approx(sum(parts), abs=1e-5)


def test_margins_are_summed_over_processes():
    from higr_hf.alignment.monitoring import ObjectiveMeter

    meter = ObjectiveMeter(("ranking", "interest"))
    place = torch.tensor([0, 0])
    meter.add("train", 0, place, torch.tensor([3.0, 1.0]), torch.tensor([True, False]))
    meter.add("train", 1, place, torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    logs = meter.pop("train", lambda sums: 2 * sums)  # the same rows on two processes
    assert logs == {"rewards/margins/ranking": 0.5, "rewards/accuracies/ranking": 0.5}
    assert meter.pop("train", lambda sums: sums) == {}


@pytest.mark.parametrize("method", ["orpo", "dpo", "kto"])
def test_the_dense_head_is_trained_on_chosen_slates(method, checkpoint, pairs, tmp_path):
    plain = trainer(method, checkpoint, pairs, tmp_path)
    dense = trainer(method, checkpoint, pairs, tmp_path, dense_weight=1.0)
    losses = []
    for work in (plain, dense):
        work.model.train()
        losses.append(work.compute_loss(work.model, next(iter(work.get_eval_dataloader()))).item())
    model, tokenizer = HiGRForSlateGeneration.from_pretrained(checkpoint), HiGRTokenizer.from_pretrained(checkpoint)
    expected = []
    for _, prompt, chosen, _ in PAIRS:
        ids = tokenizer(tokenizer.build_prompt(*prompt))["input_ids"] + tokenizer.items_to_token_ids(chosen)
        plans = model.model(torch.tensor([ids])).plans[0]
        scores = plans[-len(chosen) - 1 : -1] @ model.item_vectors().T
        target = torch.as_tensor(tokenizer.items_to_indices(chosen))
        expected.append(functional.cross_entropy(scores, target).item())
    assert losses[1] - losses[0] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    dense.train()  # the hook survives training
    assert dense.state.log_history[0]["loss"] > plain.evaluate()["eval_loss"]


def test_frozen_parameters_stay(checkpoint, pairs, tmp_path):
    work = trainer("orpo-sum", checkpoint, pairs, tmp_path, frozen=["embeddings", "encoder"])
    before = {name: value.clone() for name, value in work.model.named_parameters()}
    work.train()
    for name, value in work.model.named_parameters():
        assert torch.equal(value, before[name]) == ("embeddings" in name or "encoder" in name), name
    with pytest.raises(ValueError, match="no parameter's name contains 'embedings'"):
        trainer("orpo-sum", checkpoint, pairs, tmp_path, frozen=["embedings"])


@pytest.mark.parametrize("method", ["orpo-sum", "simpo", "dpo"])
def test_adapters_are_trained_and_merged(method, checkpoint, pairs, tmp_path):
    pytest.importorskip("peft")
    work = trainer(
        method, checkpoint, pairs, tmp_path, {"max_steps": 4}, peft_config=lora_config(4), dense_weight=0.1,
        slate_metrics=lambda model: {"is_higr": isinstance(model, HiGRForSlateGeneration)},
    )  # fmt: skip
    assert all("lora" in name for name, value in work.model.named_parameters() if value.requires_grad)
    start = HiGRForSlateGeneration.from_pretrained(checkpoint)
    before = work.evaluate()
    assert before["eval_is_higr"] == 1
    work.train()
    after = work.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    merged = work.model.merge_and_unload()
    assert set(merged.state_dict()) == set(start.state_dict())
    ids = torch.tensor([start.config.bos_token_id, start.config.slate_token_id])[None]
    assert not torch.equal(merged(ids).logits, start(ids).logits)


def test_precomputed_reference_gives_the_same(checkpoint, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for method in ("dpo", "kto"):
        metrics = []
        for precompute in (False, True):
            options = {"precompute_ref_log_probs": precompute, "seed": 1}
            work = trainer(method, checkpoint, pairs, tmp_path, options)
            work.train()
            metrics.append(work.evaluate())
        names = [name for name in metrics[0] if "rewards" in name or name == "eval_loss"]
        assert {name: metrics[1][name] for name in names} == pytest.approx(
            {name: metrics[0][name] for name in names}, abs=1e-5
        )


def test_a_level_with_one_code_is_always_certain(tmp_path):
    """Its tokens have probability 1, whose log-odds are infinite."""
    tester = HiGRModelTester(num_items=12, codebook_sizes=(3, 4, 1))
    tokenizer = HiGRTokenizer.from_codes(
        [f"i{item}" for item in range(12)], tester.codes.numpy(), tester.codebook_sizes, 3, 2
    )
    rows = to_dataset([("ranking", (["i9"], None, None, None), ["i1", "i2"], ["i2", "i1"])] * 4, tokenizer)
    from higr_hf.alignment import make_trainer

    for method in ("orpo", "orpo-sum", "dpo"):
        work = make_trainer(method, tester.model(dropout=0.0), tokenizer, config(method, tmp_path), rows, rows)
        work.train()
        metrics = work.evaluate()
        assert all(value == value and abs(value) < 1e5 for value in metrics.values()), metrics
        assert all(parameter.isfinite().all() for parameter in work.model.parameters())


def test_orpo_is_finite_when_a_whole_slate_is_certain(checkpoint, pairs, tmp_path):
    work = trainer("orpo", checkpoint, pairs, tmp_path)
    sure = torch.zeros(2, requires_grad=True)
    losses, *_ = work.odds_ratio_loss(sure, torch.tensor([-0.5, 0.0]))
    losses.sum().backward()
    assert losses.isfinite().all() and sure.grad.isfinite().all()


class State:
    def __init__(self, values):
        self.log_history = [{"step": step, "eval_ndcg@5": value} for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "stops"),
    [([0.3], False), ([0.3, 0.2], False), ([0.3, 0.2, 0.1], True), ([0.3, 0.3, 0.3], True), ([0.3, 0.2, 0.4], False)],
)
def test_a_run_that_hurts_is_stopped(values, stops):
    class Control:
        should_training_stop = False

    StopWhenItHurts("eval_ndcg@5", 2).on_evaluate(None, State(values), Control)
    assert Control.should_training_stop is stops


def test_a_run_that_hurts_is_stopped_in_training(checkpoint, pairs, tmp_path):
    values = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    work = trainer(
        "orpo-sum", checkpoint, pairs, tmp_path,
        {"max_steps": 10, "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True},
        callbacks=[StopWhenItHurts("eval_ndcg@5", 2)],
        slate_metrics=lambda model: {"ndcg@5": next(values)},
    )  # fmt: skip
    work.train()
    assert work.state.global_step == 2


def test_pairs_are_held_out_by_user(pairs):
    train, watched = hold_out(pairs, 0.3)
    assert len(train) + len(watched) == len(pairs)
    assert not set(train["user_id"]) & set(watched["user_id"])
    assert hold_out(pairs, 0.0) == (pairs, None)
    with pytest.raises(PreferenceError, match="too few to hold 1"):
        hold_out(pairs.select([0]), 0.1)


def test_pairs_of_ones_own_need_no_objective(checkpoint, pairs, tmp_path):
    own = pairs.select_columns(["prompt", "chosen", "rejected"])
    work = trainer("dpo", checkpoint, own, tmp_path)
    work.train()
    assert "eval_rewards/margins/all" in work.evaluate()


def test_what_a_trainer_refuses(checkpoint, pairs, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="there is no alignment method 'ppo'"):
        make_config("ppo", str(tmp_path))
    with pytest.raises(ValueError, match=r"simpo is defined by cpo_alpha=0\.0"):
        make_config("simpo", str(tmp_path), cpo_alpha=1.0)
    with pytest.raises(ValueError, match="cpo-simpo needs cpo_alpha above 0"):
        make_config("cpo-simpo", str(tmp_path), cpo_alpha=0.0)
    with pytest.raises(PreferenceError, match="need 25 tokens, max_length is 16"):
        trainer("orpo", checkpoint, pairs, tmp_path, {"max_length": 16})
    with pytest.raises(PreferenceError, match="the preferences are empty"):
        trainer("orpo", checkpoint, pairs.select([]), tmp_path)
    with pytest.raises(PreferenceError, match=r"lack the columns \['rejected'\]"):
        trainer("orpo", checkpoint, pairs.remove_columns("rejected"), tmp_path)
    with pytest.raises(PreferenceError, match="per_device_train_batch_size must be 2 or more"):
        trainer("kto", checkpoint, pairs, tmp_path, {"per_device_train_batch_size": 1})
    with pytest.raises(ValueError, match="nll_on must be one of"):
        trainer("orpo", checkpoint, pairs, tmp_path, nll_on="prompt")
    with pytest.raises(ValueError, match="dense_weight must not be negative"):
        trainer("orpo", checkpoint, pairs, tmp_path, dense_weight=-1.0)
    from higr_hf.alignment import make_trainer

    model = HiGRForSlateGeneration.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="dpo needs a DPOConfig, got a ORPOConfig"):
        make_trainer("dpo", model, tokenizer, config("orpo", tmp_path), pairs)
    other = HiGRTokenizer.from_codes(
        tokenizer.item_ids[::-1], tokenizer.codes, tokenizer.codebook_sizes, 3, 2
    )  # the same codes for other items
    with pytest.raises(ValueError, match="does not belong to the model"):
        make_trainer("orpo", model, other, config("orpo", tmp_path), pairs)
    with pytest.raises(ValueError, match="dense_weight needs a model with a dense head"):
        bare = HiGRModelTester().model(dense_head=False)
        make_trainer("orpo", bare, tokenizer, config("orpo", tmp_path), pairs, dense_weight=1.0)
