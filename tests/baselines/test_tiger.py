from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from higr_hf.baselines import TIGER, Baseline, Popularity
from higr_hf.data import leave_last_out, synthetic_log
from higr_hf.evaluation import SlateEvaluator

LOG = synthetic_log(num_users=48, num_items=60, num_topics=4, length=24)
SPLITS = leave_last_out(LOG)
CODES = np.array(list(itertools.product(range(4), range(5), range(3))))


def tiger(**options) -> TIGER:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "head_size": 8, "encoder_layers": 1, "decoder_layers": 1}
    fixed = {"max_history": 6, "epochs": 1, "learning_rate": 0.01, "batch_size": 16, "dropout": 0.0, "seed": 1}
    return TIGER(LOG.item_ids, **{"codebook_sizes": [4, 5, 3], "codes": CODES, **sizes, **fixed, **options})


@pytest.fixture(scope="module")
def trained() -> TIGER:
    return tiger().fit(SPLITS["train"])


def exact(model: TIGER, history: list[int]) -> np.ndarray:
    """Log-probability of every item's codes, one item at a time."""
    tokens = model.tokens[torch.tensor(history[-6:], dtype=torch.long)].flatten()[None]
    encoded = BaseModelOutput(last_hidden_state=model.network.encoder(input_ids=tokens).last_hidden_state)
    scores = []
    for codes in CODES:
        target = torch.from_numpy(codes + model.offsets)[None]
        with torch.no_grad():
            logits = model.network(encoder_outputs=encoded, labels=target).logits[0]
        total = 0.0
        for level, (offset, size) in enumerate(zip(model.offsets, model.codebook_sizes, strict=True)):
            total += logits[level, offset : offset + size].log_softmax(-1)[codes[level]].item()
        scores.append(total)
    return np.array(scores)


def test_a_beam_as_wide_as_the_catalogue_is_an_exact_ranking(trained):
    trained.num_beams = 60
    histories = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [8, 9, 10]]
    exclude = [[3, 1, 4], [], list(range(57))]
    slates = trained.recommend([np.array(row) for row in histories], 5, exclude)
    for history, forbidden, slate in zip(histories, exclude, slates, strict=True):
        scores = exact(trained, history)
        scores[forbidden] = -np.inf
        order = [item for item in np.argsort(-scores, kind="stable") if scores[item] > -np.inf][:5]
        assert slate.tolist() == order + [-1] * (5 - len(order))


@pytest.mark.parametrize("beams", [1, 2, 20])
def test_no_beam_runs_into_an_excluded_item_or_repeats_one(trained, beams):
    trained.num_beams = beams
    exclude = [list(range(start, 60, 2)) for start in (0, 1)]
    slates = trained.recommend([np.array([0]), np.array([], dtype=np.int64)], 5, exclude)
    for slate, forbidden in zip(slates.tolist(), exclude, strict=True):
        assert len(set(slate)) == 5
        assert not set(slate) & {-1, *forbidden}


def test_targets_are_the_next_items_of_their_histories():
    model = tiger(targets_per_run=3)
    sequence = np.arange(30)
    for histories, targets in model._batches([sequence, sequence[:4]], np.random.default_rng(0)):
        assert histories.shape[1] <= 6
        for history, target in zip(histories, targets, strict=True):
            history = history[history >= 0]
            assert history.tolist() == list(range(target - len(history), target))
            assert len(history) >= 1


def test_an_epoch_of_all_targets_asks_for_every_event_but_the_first_once():
    model = tiger(targets_per_run=0)
    sequences = [np.arange(30), np.arange(100, 104), np.arange(200, 202)]
    asked = [batch[1] for batch in model._batches(sequences, np.random.default_rng(0))]
    assert sorted(np.concatenate(asked)) == sorted(item for row in sequences for item in row[1:].tolist())


def test_it_learns_and_keeps_its_best_epoch():
    model = tiger(epochs=12, eval_every=4, targets_per_run=6).fit(SPLITS["train"], SPLITS["validation"])
    evaluator = SlateEvaluator(SPLITS["test"], LOG.item_ids, exclude_history=True, progress=False, num_resamples=0)
    popularity = evaluator.evaluate(Popularity(LOG.item_ids).fit(SPLITS["train"]))
    assert evaluator.evaluate(model).primary_value > popularity.primary_value


def test_it_loads_again_with_the_same_slates(tmp_path, trained):
    trained.num_beams = 20
    loaded = Baseline.from_pretrained(trained.save_pretrained(tmp_path / "tiger"))
    histories = [np.array([1, 2, 3]), np.array([5])]
    np.testing.assert_array_equal(loaded.recommend(histories, 5), trained.recommend(histories, 5))
    assert loaded.num_parameters() == trained.num_parameters() > 0


def test_without_codes_it_says_what_is_missing():
    with pytest.raises(ValueError, match="pass `codes`"):
        tiger(codes=None).fit(SPLITS["train"])
