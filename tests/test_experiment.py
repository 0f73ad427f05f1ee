from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from higr_hf import HiGRTokenizer
from higr_hf.data import leave_last_out, synthetic_log
from higr_hf.data.encoding import FeatureEdges
from higr_hf.experiment import Experiment, ExperimentSettings

LOG = synthetic_log(num_users=24, num_items=60, num_topics=3, length=14)
SPLITS = leave_last_out(LOG, slate_size=3)
EDGES = FeatureEdges(feedback=(2.5, 4.5), time=(60.0,))


def tokenizer(edges: FeatureEdges = EDGES) -> HiGRTokenizer:
    codes = np.array(list(itertools.product(range(4), range(4), range(4))))[: len(LOG.items)]
    return HiGRTokenizer.from_codes(
        LOG.item_ids,
        codes,
        [4, 4, 4],
        num_feedback_levels=edges.num_feedback_levels,
        num_time_buckets=edges.num_time_buckets,
    )


def experiment(settings: ExperimentSettings | None = None, edges: FeatureEdges = EDGES, **options) -> Experiment:
    settings = settings or ExperimentSettings(model={"hidden_size": 16, "intermediate_size": 32, "max_history": 8})
    return Experiment(SPLITS, tokenizer(edges), edges, settings, slate_size=3, **options)


def arguments(folder, **options) -> TrainingArguments:
    settings = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 8, "save_strategy": "no",
        "remove_unused_columns": False, "report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    return TrainingArguments(**{**settings, **options})


def test_the_model_carries_what_the_tokenizer_and_the_edges_say():
    run = experiment()
    config = run.config
    assert config.codebook_sizes == [4, 4, 4]
    assert (config.num_items, config.slate_size) == (len(LOG.items), 3)
    assert (config.num_feedback_levels, config.num_time_buckets) == (3, 2)
    assert (config.feedback_edges, config.time_edges) == ([2.5, 4.5], [60.0])
    assert config.tokenizer_fingerprint == run.tokenizer.fingerprint
    assert run.model.model.item_codes.tolist() == run.tokenizer.codes.tolist()
    assert config.hidden_size == 16, "the settings' own fields are kept"


def test_the_seed_decides_the_weights():
    first, again, other = (
        torch.cat([weights.flatten() for weights in experiment(seed=seed).model.parameters()]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sequences_end_in_their_target_and_training_ends_before_it():
    run = experiment()
    index = {item: row for row, item in enumerate(LOG.item_ids)}
    events = LOG.interactions.groupby("user_id", sort=False)
    whole = [[index[item] for item in table["item_id"]] for _, table in events]
    ratings = [table["rating"].tolist() for _, table in events]
    for split, left_out in (("train", 6), ("validation", 3), ("test", 0)):
        rows = run.sequences(split)
        assert [row.items.tolist() for row in rows] == [items[: 14 - left_out] for items in whole], split
        levels = [EDGES.feedback_levels(values[: 14 - left_out]).tolist() for values in ratings]
        assert [row.feedback.tolist() for row in rows] == levels
    # The first event of a target has no gap of its own: nothing of the history stands beside it.
    assert run.sequences("test")[0].time.tolist()[:3] == [-1, 1, 1]


def test_the_collator_takes_the_settings_and_the_models_sizes():
    settings = ExperimentSettings(model={"max_history": 8}, collator={"shuffle": 0.5, "num_windows": 1})
    collator = experiment(settings, seed=4).collator()
    assert (collator.slate_size, collator.max_history, collator.seed) == (3, 8, 4)
    assert (collator.shuffle, collator.num_windows) == (0.5, 1)


def test_every_event_is_read_about_once_a_pass_where_asked(tmp_path):
    settings = {"model": {"hidden_size": 16, "intermediate_size": 32, "max_history": 2}}
    once, often = (
        experiment(ExperimentSettings(**settings, every_event=every)).trainer(arguments(tmp_path)).train_dataset
        for every in (False, True)
    )
    assert {len(row) for row in once} == {8}
    assert len(often) == 2 * len(once)  # 8 events are drawn about once in 2 runs of 2 + 3


def test_validation_users_are_drawn_once_and_judge_every_evaluation(tmp_path):
    settings = ExperimentSettings(eval_users=7, model={"hidden_size": 16, "intermediate_size": 32})
    run = experiment(settings, seed=5)
    users = run.judge.watched_users(settings.eval_users)
    assert users == sorted(set(users))
    assert len(users) == 7
    assert users == experiment(seed=5).judge.watched_users(7) != experiment(seed=6).judge.watched_users(7)
    assert experiment().judge.watched_users(999) == experiment().judge.watched_users(None) == list(range(24))
    trainer = run.trainer(arguments(tmp_path))
    assert len(trainer.eval_dataset) == 7
    measured = trainer.evaluate()
    judged = run.evaluator(SPLITS["validation"].select(users), num_resamples=0, progress=False)
    expected = judged.evaluate(run.recommender()).metrics
    for name, value in expected.items():
        assert measured[f"eval_{name}"] == pytest.approx(value), name


def test_training_and_its_evaluation_need_no_test_split(tmp_path):
    run = experiment()
    run.splits = {name: rows for name, rows in SPLITS.items() if name != "test"}
    trainer = run.trainer(arguments(tmp_path, eval_strategy="steps", eval_steps=1))
    trainer.train()
    assert trainer.state.global_step == 2
    with pytest.raises(KeyError, match="test"):
        run.evaluate("test")


def test_early_stopping_has_the_settings_patience(tmp_path):
    settings = ExperimentSettings(patience=2, model={"hidden_size": 16, "intermediate_size": 32})
    trainer = experiment(settings).trainer(
        arguments(
            tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=9,
            load_best_model_at_end=True, metric_for_best_model="eval_ndcg@3", greater_is_better=True,
        )
    )  # fmt: skip
    trainer.slate_metrics = lambda model: {"ndcg@3": 0.5}
    trainer.train()
    assert trainer.state.global_step == 3, "the first evaluation is the best, two more bring nothing"


def test_evaluation_excludes_the_history_unless_told_otherwise():
    small = ExperimentSettings(model={"hidden_size": 16, "intermediate_size": 32})
    assert experiment(small).evaluator("test").exclude_history
    result = experiment(small).evaluate("test", progress=False, num_resamples=0)
    for slate, row in zip(result.slates, experiment().sequences("test"), strict=True):
        assert not set(slate) & set(row.items[:-3].tolist())
    repeats = ExperimentSettings(exclude_history=False)
    assert not experiment(repeats).evaluator("test").exclude_history


def test_a_model_of_small_slates_may_be_judged_by_a_longer_list(tmp_path):
    settings = ExperimentSettings(eval_users=5, model={"hidden_size": 16, "intermediate_size": 32})
    run = experiment(settings, list_size=4)
    assert (run.config.slate_size, run.collator().slate_size) == (3, 3), "trained for what is held out"
    result = run.evaluate("test", progress=False, num_resamples=0)
    assert result.slates.shape == (24, 4)
    assert "ndcg@4" in result.metrics and "ndcg@3" not in result.metrics
    assert "eval_ndcg@4" in run.trainer(arguments(tmp_path)).evaluate()
    assert experiment(settings).list_size == 3


def test_what_no_slate_has_is_left_out_while_training(tmp_path):
    """One item has no diversity: a value that JSON has no word for would end the run when its log is written."""
    settings = ExperimentSettings(eval_users=5, model={"hidden_size": 16, "intermediate_size": 32})
    vectors = np.random.default_rng(0).normal(size=(len(LOG.items), 4))
    run = experiment(settings, list_size=1, embeddings=vectors)
    assert np.isnan(run.evaluate("test", progress=False, num_resamples=0).metrics["diversity"])
    measured = run.trainer(arguments(tmp_path)).evaluate()
    assert "eval_ndcg@1" in measured and "eval_diversity" not in measured
    json.dumps(measured, allow_nan=False)


def test_with_generation_shares_the_model_and_changes_the_decoding():
    run = experiment(ExperimentSettings(generation={"num_beams": 3, "slate_mode": "sequential"}))
    twin = run.with_generation(slate_mode="plan_once")
    assert twin.model is run.model
    assert twin.settings.generation == {"num_beams": 3, "slate_mode": "plan_once"}
    assert run.settings.generation == {"num_beams": 3, "slate_mode": "sequential"}
    assert twin.recommender().generation["slate_mode"] == "plan_once"


def test_a_tokenizer_without_the_edges_feature_tokens_is_refused():
    with pytest.raises(ValueError, match="num_feedback_levels = 3, the tokenizer has 0"):
        Experiment(SPLITS, tokenizer(FeatureEdges()), EDGES, ExperimentSettings(), slate_size=3)
