"""TRL's own trainers on a saved checkpoint: both ways in which they read log-probabilities equal those by hand."""

from __future__ import annotations

import pytest
import torch

from higr_hf import HiGRForSlateGeneration, HiGRTokenizer, save_checkpoint
from tests.model_tester import HiGRModelTester, prior_by_hand

pytest.importorskip("trl")

from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

# Lengths differ, so that every batch is padded; one history has feature tokens, one wishes, one is empty.
ROWS = [
    ((["i0", "i5", "i9"], [2, None, 0], [None, 1, 0], None), ["i1", "i2", "i3"], ["i3", "i2", "i1"]),
    ((["i7"], None, None, 1), ["i4", "i5"], ["i6", "i8", "i10"]),
    (([], None, None, None), ["i11", "i12", "i13"], ["i11"]),
]
TRAINERS = {
    "dpo": (DPOTrainer, DPOConfig, {}),
    "orpo": (ORPOTrainer, ORPOConfig, {}),
    "cpo": (CPOTrainer, CPOConfig, {}),
    "simpo": (CPOTrainer, CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0}),
}
AVERAGED = ("orpo", "simpo")


@pytest.fixture(scope="module", params=[False, True], ids=["generator", "catalog-prior"])
def checkpoint(request, tmp_path_factory) -> str:
    tester = HiGRModelTester()
    ids = [f"i{item}" for item in range(tester.num_items)]
    tokenizer = HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2)
    # Without dropout, so that what a trainer computes in training mode can be compared.
    return str(
        save_checkpoint(
            tmp_path_factory.mktemp("trl") / "model", tester.model(dropout=0.0, catalog_prior=request.param), tokenizer
        )
    )


@pytest.fixture(scope="module")
def dataset(checkpoint) -> Dataset:
    tokenizer = HiGRTokenizer.from_pretrained(checkpoint)
    return Dataset.from_list(
        [
            {
                "prompt": tokenizer.build_prompt(*prompt),
                "chosen": tokenizer.build_completion(chosen),
                "rejected": tokenizer.build_completion(rejected),
            }
            for prompt, chosen, rejected in ROWS
        ]
    )


def build(name: str, checkpoint: str, dataset: Dataset, folder):
    trainer_class, config_class, options = TRAINERS[name]
    arguments = config_class(
        output_dir=str(folder),
        per_device_train_batch_size=3,
        per_device_eval_batch_size=3,
        max_steps=1,
        learning_rate=0.1,
        max_length=64,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        use_cpu=True,
        **options,
    )
    return trainer_class(
        HiGRForSlateGeneration.from_pretrained(checkpoint),
        args=arguments,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=HiGRTokenizer.from_pretrained(checkpoint),
    )


@torch.no_grad()
def log_probs_by_hand(checkpoint: str, side: str, averaged: bool) -> list[float]:
    """One unpadded row at a time, every token against the tokens of its own group only."""
    model = HiGRForSlateGeneration.from_pretrained(checkpoint).eval()
    tokenizer = HiGRTokenizer.from_pretrained(checkpoint)
    config, results = model.config, []
    bounds = [*config.level_offsets, config.vocab_size]
    for prompt, chosen, rejected in ROWS:
        history, feedback, times, wish = prompt
        start = tokenizer(tokenizer.build_prompt(history, feedback, times, wish))["input_ids"]
        items = chosen if side == "chosen" else rejected
        completion = [*tokenizer.items_to_token_ids(items), tokenizer.eos_token_id]
        outputs = model.model(torch.tensor([start + completion]))
        hidden = outputs.last_hidden_state[0, :, : config.hidden_size]
        plans = outputs.plans[0, -len(items) - 2 :]  # of `<slate>` and the slate's items, and `<eos>`
        total = 0.0
        for position, token in enumerate(completion, start=len(start)):
            level = max(sum(token >= bound for bound in bounds) - 1, 0)
            first = 0 if level == 0 else bounds[level]
            logits = model.lm_head.proj[first : bounds[level + 1]] @ hidden[position - 1]
            if config.catalog_prior:
                done = completion[position - len(start) - level : position - len(start)]
                prefix = [code - bound for code, bound in zip(done, bounds, strict=False)]
                logits = logits + prior_by_hand(model, plans[(position - len(start)) // config.num_levels], prefix)
            total += float(logits.log_softmax(0)[token - first])
        results.append(total / len(completion) if averaged else total)
    return results


def log_probs_by_trainer(name: str, trainer) -> tuple[torch.Tensor, torch.Tensor]:
    trainer.model.eval()
    batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    if name == "dpo":  # hidden states times the head's weight
        return trainer.compute_ref_log_probs(trainer.model, batch)
    with torch.no_grad():  # logits
        return trainer.concatenated_forward(trainer.model, batch)[:2]


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_reads_the_log_probs_and_learns(name, checkpoint, dataset, tmp_path):
    trainer = build(name, checkpoint, dataset, tmp_path)
    for side, found in zip(("chosen", "rejected"), log_probs_by_trainer(name, trainer), strict=True):
        expected = log_probs_by_hand(checkpoint, side, averaged=name in AVERAGED)
        torch.testing.assert_close(found.tolist(), expected, rtol=1e-4, atol=1e-4)

    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    result = trainer.train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    changed = {key for key, value in trainer.model.named_parameters() if not torch.equal(value, before[key])}
    for part in ("encoder.", "planner.", "generators.", "embed_tokens", "lm_head"):
        assert any(part in key for key in changed), part


def test_dpo_starts_from_its_reference(checkpoint, dataset, tmp_path):
    trainer = build("dpo", checkpoint, dataset, tmp_path)
    assert type(trainer.ref_model) is HiGRForSlateGeneration
    # Policy and reference agree at first, so the loss is log 2 whatever the rows are.
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)
    assert metrics["eval_rewards/margins"] == pytest.approx(0, abs=1e-4)
