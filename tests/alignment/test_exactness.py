"""Every method's log-probabilities and loss against a computation that shares no code with TRL or the trainers."""

from __future__ import annotations

import math

import pytest
import torch

from higr_hf import HiGRForSlateGeneration, HiGRTokenizer
from higr_hf.alignment import METHODS
from tests.alignment.pairs import PAIRS, trainer
from tests.model_tester import prior_by_hand

LOGITS = ("orpo", "orpo-sum", "simpo", "cpo", "cpo-simpo")


@torch.no_grad()
def tokens_by_hand(model: HiGRForSlateGeneration, tokenizer: HiGRTokenizer, prompt: tuple, slate: list[str]) -> list:
    """Log-probability of each code token of a slate, one unpadded row, each against its own group only."""
    config = model.config
    start = tokenizer(tokenizer.build_prompt(*prompt))["input_ids"]
    codes = tokenizer.items_to_token_ids(slate)
    ids = torch.tensor([[*start, *codes, tokenizer.eos_token_id]])
    outputs = model.model(ids)
    hidden = outputs.last_hidden_state[0, :, : config.hidden_size].double()
    plans = outputs.plans[0, -len(slate) - 2 :]  # of `<slate>` and the slate's items, and `<eos>`
    bounds = [*config.level_offsets, config.vocab_size]
    found = []
    for position, token in enumerate(codes, start=len(start)):
        level = sum(token >= bound for bound in bounds) - 1
        first = 0 if level == 0 else bounds[level]
        logits = model.lm_head.proj[first : bounds[level + 1]].double() @ hidden[position - 1]
        if config.catalog_prior:
            item = (position - len(start)) // config.num_levels
            prefix = [
                code - bound for code, bound in zip(ids[0, position - level : position].tolist(), bounds, strict=False)
            ]
            logits = logits + prior_by_hand(model, plans[item], prefix)
        found.append(float(logits.log_softmax(0)[token - first]))
    return found


def by_hand(path: str) -> tuple[list[list[float]], list[list[float]]]:
    model, tokenizer = HiGRForSlateGeneration.from_pretrained(path).eval(), HiGRTokenizer.from_pretrained(path)
    return tuple([tokens_by_hand(model, tokenizer, row[1], row[side]) for row in PAIRS] for side in (2, 3))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def odds(log_p: float) -> float:
    return log_p - math.log(-math.expm1(log_p))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def loss_by_hand(method: str, chosen: list, rejected: list, reference: tuple) -> float:
    """The published formulas, row by row, in Python floats. All slates are of nine code tokens."""
    rows = list(zip(chosen, rejected, strict=True))
    nll = mean(-token for row in chosen for token in row)
    sums = [(sum(good), sum(bad)) for good, bad in rows]
    means = [(mean(good), mean(bad)) for good, bad in rows]
    if method == "orpo":
        return nll - 0.1 * mean(log_sigmoid(odds(good) - odds(bad)) for good, bad in means)
    if method == "orpo-sum":
        margins = [sum(map(odds, good)) - sum(map(odds, bad)) for good, bad in rows]
        return mean(-good - 0.1 * log_sigmoid(margin) for (good, _), margin in zip(sums, margins, strict=True))
    if method == "cpo":
        return nll - mean(log_sigmoid(0.1 * (good - bad)) for good, bad in sums)
    if method in ("simpo", "cpo-simpo"):
        loss = -mean(log_sigmoid(2.0 * (good - bad) - 0.5) for good, bad in means)
        return loss + (nll if method == "cpo-simpo" else 0.0)
    ratios = [
        (good - sum(ref_good), bad - sum(ref_bad))
        for (good, bad), ref_good, ref_bad in zip(sums, *reference, strict=True)
    ]
    assert method in ("dpo", "dpo-sft")
    loss = -mean(log_sigmoid(0.1 * (good - bad)) for good, bad in ratios)
    return loss + (nll if method == "dpo-sft" else 0.0)


def evaluate_loss(trainer) -> tuple[float, dict]:
    metrics = trainer.evaluate()
    return metrics["eval_loss"], metrics


def shift(model: torch.nn.Module, seed: int = 7) -> None:
    """Make policy and reference differ, the same way every time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "kto"])
def test_loss_and_log_probs_are_those_by_hand(method, checkpointing, checkpoint, pairs, tmp_path):
    work = trainer(method, checkpoint, pairs, tmp_path, {"gradient_checkpointing": checkpointing})
    reference = by_hand(checkpoint)
    shift(work.model)
    work.model.save_pretrained(tmp_path / "shifted")
    work.processing_class.save_pretrained(tmp_path / "shifted")
    chosen, rejected = by_hand(tmp_path / "shifted")
    assert abs(sum(map(sum, chosen)) - sum(map(sum, reference[0]))) > 0.5, "policy and reference must differ"

    loss, metrics = evaluate_loss(work)
    expected = loss_by_hand(method, chosen, rejected, reference)
    assert loss == pytest.approx(expected, rel=2e-5, abs=2e-5)
    averaged = method in ("orpo", "simpo", "cpo-simpo")
    for side, rows in (("chosen", chosen), ("rejected", rejected)):
        value = mean(map(mean if averaged else sum, rows))
        assert metrics[f"eval_logps/{side}"] == pytest.approx(value, rel=2e-5)

    # In training mode, where gradients flow (and layers are recomputed), the loss is the same.
    if checkpointing:
        work.model.gradient_checkpointing_enable()
    work.model.train()
    batch = work._prepare_inputs(next(iter(work.get_eval_dataloader())))
    training = work.compute_loss(work.model, batch)
    assert training.item() == pytest.approx(expected, rel=2e-5, abs=2e-5)
    training.backward()
    norms = [parameter.grad.norm() for parameter in work.model.parameters() if parameter.grad is not None]
    assert torch.stack(norms).isfinite().all() and sum(norms) > 0


def test_gradients_do_not_depend_on_checkpointing(checkpoint, pairs, tmp_path):
    gradients = []
    for checkpointing in (False, True):
        work = trainer("orpo-sum", checkpoint, pairs, tmp_path, {"gradient_checkpointing": checkpointing})
        if checkpointing:
            work.model.gradient_checkpointing_enable()
            assert work.model.is_gradient_checkpointing
        work.model.train()
        work.compute_loss(work.model, next(iter(work.get_eval_dataloader()))).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in work.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_kto_is_the_published_loss(checkpoint, pairs, tmp_path):
    work = trainer("kto", checkpoint, pairs, tmp_path)
    reference = by_hand(checkpoint)
    shift(work.model, seed=13)  # one whose divergence is not cut off at zero
    work.model.save_pretrained(tmp_path / "shifted")
    work.processing_class.save_pretrained(tmp_path / "shifted")
    policy = by_hand(tmp_path / "shifted")
    models = [HiGRForSlateGeneration.from_pretrained(path).eval() for path in (tmp_path / "shifted", checkpoint)]
    tokenizer = work.processing_class

    rows = list(work.eval_dataset)  # one batch of all eight slates
    slates = {tokenizer.build_completion(row[side]): row[side] for row in PAIRS for side in (2, 3)}
    prompts = {tokenizer.build_prompt(*row[1]): row[1] for row in PAIRS}

    def log_ratio(prompt: str, ids: list[int]) -> float:
        slate = slates[tokenizer.token_ids_to_text(ids[:-1])]
        values = [sum(tokens_by_hand(model, tokenizer, prompts[prompt], slate)) for model in models]
        return values[0] - values[1]

    kl = max(0.0, mean(log_ratio(row["prompt"], row["KL_completion_ids"]) for row in rows))
    losses, told = [], {True: [], False: []}
    for row in rows:
        ratio = log_ratio(row["prompt"], row["completion_ids"])
        sign = 1 if row["label"] else -1
        losses.append(1 - 1 / (1 + math.exp(-0.1 * sign * (ratio - kl))))
        told[row["label"]].append(0.1 * ratio)
    loss, metrics = evaluate_loss(work)
    assert kl > 0 and metrics["eval_kl"] == pytest.approx(kl, rel=1e-4)
    assert loss == pytest.approx(mean(losses), rel=1e-5)
    assert metrics["eval_logps/chosen"] == pytest.approx(mean(map(sum, policy[0])), rel=1e-5)
    assert metrics["eval_rewards/margins"] == pytest.approx(mean(told[True]) - mean(told[False]), abs=1e-5)
    by_objective = {
        side: [0.1 * (sum(p) - sum(r)) for p, r in zip(policy[side], reference[side], strict=True)] for side in (0, 1)
    }
    margin = mean(by_objective[0][place] - by_objective[1][place] for place in (0, 3))
    assert metrics["eval_rewards/margins/ranking"] == pytest.approx(margin, abs=1e-5)
    right = [by_objective[0][place] > 0 for place in (0, 3)] + [by_objective[1][place] < 0 for place in (0, 3)]
    assert metrics["eval_rewards/accuracies/ranking"] == pytest.approx(mean(right))


@pytest.mark.parametrize("method", ["orpo-sum", "cpo", "dpo"])
def test_the_side_of_the_padding_does_not_matter(method, checkpoint, pairs, tmp_path):
    work = trainer(method, checkpoint, pairs, tmp_path)
    right = next(iter(work.get_eval_dataloader()))
    left = dict(right)
    kinds = ("input_ids", "attention_mask", "labels")
    groups = [tuple(f"{side}_{kind}" for kind in kinds) for side in ("chosen", "rejected")]
    if method == "dpo":
        groups = [("input_ids", "attention_mask", "completion_mask")]
    for tokens, mask, other in groups:
        real = right[mask].bool()
        order = torch.argsort(real.long(), dim=1, stable=True)
        for name in (tokens, mask, other):
            left[name] = right[name].gather(1, order)
        assert (left[mask] != right[mask]).any()
    work.model.eval()
    with torch.no_grad():
        losses = [float(work.compute_loss(work.model, batch)) for batch in (right, left)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("method", ["orpo", "orpo-sum", "simpo", "dpo"])
def test_bfloat16_stays_near(method, checkpoint, pairs, tmp_path):
    exact, _ = evaluate_loss(trainer(method, checkpoint, pairs, tmp_path))
    work = trainer(method, checkpoint, pairs, tmp_path, {"bf16": True})
    rough, _ = evaluate_loss(work)
    assert rough == pytest.approx(exact, rel=0.02)
    work.train()
    assert all(parameter.isfinite().all() for parameter in work.model.parameters())


def test_what_counts_can_be_plain_trl(checkpoint, pairs, tmp_path):
    """With `count_eos` and the NLL over the whole sequence, the loss is that of TRL's own trainer."""
    from higr_hf.alignment._trl import ORPOTrainer
    from tests.alignment.pairs import config

    ours, _ = evaluate_loss(trainer("orpo", checkpoint, pairs, tmp_path, count_eos=True, nll_on="sequence"))
    plain = ORPOTrainer(
        HiGRForSlateGeneration.from_pretrained(checkpoint),
        args=config("orpo", tmp_path),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=HiGRTokenizer.from_pretrained(checkpoint),
    )
    theirs = plain.evaluate()["eval_loss"]
    assert ours == pytest.approx(theirs, rel=1e-5)
    default, _ = evaluate_loss(trainer("orpo", checkpoint, pairs, tmp_path))
    assert abs(default - theirs) > 0.01
