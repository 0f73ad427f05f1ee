from __future__ import annotations

import numpy as np
import pytest
import torch

from higr_hf import HiGRTokenizer
from higr_hf.recommender import SlateRecommender


@pytest.fixture
def parts(tester):
    """A model that knows feedback and time, and its tokenizer."""
    model = tester.model(feedback_edges=[2.0, 4.0], time_edges=[60.0])
    ids = [f"i{row}" for row in range(tester.num_items)]
    tokenizer = HiGRTokenizer.from_codes(
        ids, tester.codes.numpy(), list(tester.codebook_sizes), num_feedback_levels=3, num_time_buckets=2
    )
    return model, tokenizer


def batch(histories, excluded=None, **columns):
    nothing = [np.empty(0, dtype=np.int64)] * len(histories)
    return {
        "history_indices": [np.asarray(items, dtype=np.int64) for items in histories],
        "exclude_indices": nothing if excluded is None else excluded,
        **columns,
    }


def test_a_batch_becomes_slates_of_item_indices(parts):
    slates = SlateRecommender(*parts)(batch([[1, 2, 3], [4], []]))
    assert slates.shape == (3, 4)
    assert slates.dtype == np.int64
    assert ((slates >= 0) & (slates < 24)).all()
    assert all(len(set(row)) == 4 for row in slates.tolist())
    assert SlateRecommender(*parts, slate_size=2)(batch([[1]])).shape == (1, 2)


def test_the_prompt_is_the_one_the_tokenizer_writes(parts, monkeypatch):
    model, tokenizer = parts
    seen = {}
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: seen.update(inputs) or generate(**inputs))
    rows = batch([[5, 6]], history_feedback=[[1.0, 4.5]], history_timestamps=[[1000, 5000]])
    SlateRecommender(model, tokenizer, wish=2)(rows)
    prompt = tokenizer.build_prompt(["i5", "i6"], feedback=[0, 2], time_buckets=[None, 1], wish=2)
    assert seen["input_ids"].tolist() == [tokenizer(prompt)["input_ids"]]


def test_excluded_items_never_come_and_do_not_mix_between_users(parts):
    recommend = SlateRecommender(*parts)
    free = recommend(batch([[1, 2], [3]]))
    banned = [free[0], np.empty(0, dtype=np.int64)]
    slates = recommend(batch([[1, 2], [3]], banned))
    assert not set(slates[0]) & set(free[0])
    assert slates[1].tolist() == free[1].tolist()


def test_a_long_history_is_its_newest_part(parts):
    recommend = SlateRecommender(*parts)
    long = np.arange(30) % 24
    assert recommend(batch([long])).tolist() == recommend(batch([long[-12:]])).tolist()


def test_users_do_not_depend_on_who_else_is_asked_for(parts):
    recommend = SlateRecommender(*parts)
    histories = [[1, 2, 3, 4, 5, 6], [7], [], [8, 9]]
    together = recommend(batch(histories))
    assert together.tolist() == [recommend(batch([history]))[0].tolist() for history in histories]


def test_generation_settings_reach_the_search(parts):
    model, tokenizer = parts
    one = SlateRecommender(model, tokenizer, generation={"slate_mode": "first_plan", "num_beams": 12})
    direct = model.generate(
        torch.tensor([tokenizer(tokenizer.build_prompt(["i1"]))["input_ids"]]),
        slate_mode="first_plan",
        num_beams=12,
        return_dict_in_generate=True,
    )
    answer = one.generate(batch([[1]]))
    assert answer.slates.tolist() == direct.slates.tolist()
    with pytest.raises(ValueError, match="does not know the arguments"):
        SlateRecommender(model, tokenizer, generation={"beams": 3})(batch([[1]]))


def test_the_model_is_left_in_evaluation_mode(parts):
    model, tokenizer = parts
    model.train()
    recommend = SlateRecommender(model, tokenizer)
    assert recommend(batch([[1]])).tolist() == recommend(batch([[1]])).tolist()
    assert not model.training


def test_a_tokenizer_of_another_model_is_refused(parts):
    model, tokenizer = parts
    model.config.tokenizer_fingerprint = "of another"
    with pytest.raises(ValueError, match="does not belong to the model"):
        SlateRecommender(model, tokenizer)


def test_columns_that_do_not_fit_the_known_items_name_the_row(parts):
    rows = batch([[1], [2, 3]], history_feedback=[[1.0], [1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="Row 1 has 2 known items but 3 feedback values"):
        SlateRecommender(*parts)(rows)
