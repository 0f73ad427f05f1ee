from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from higr_hf.baselines import EASE, Baseline, Mixture, Popularity, SASRecItemVectors
from higr_hf.baselines.torch_training import TrainingPlan, padded, runs, train_network
from higr_hf.data import leave_last_out, synthetic_log
from higr_hf.data.embeddings import training_sequences
from higr_hf.evaluation import SlateEvaluator

LOG = synthetic_log(num_users=48, num_items=120, num_topics=4, length=24)
SPLITS = leave_last_out(LOG)
CODES = np.array(list(itertools.product(range(4), range(6), range(5))))


def baseline(**options) -> SASRecItemVectors:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "blocks": 1, "max_history": 12, "dropout": 0.0}
    fixed = {"epochs": 24, "learning_rate": 0.01, "batch_size": 16, "warmup_steps": 5, "eval_every": 4, "seed": 1}
    return SASRecItemVectors(
        LOG.item_ids, **{"codebook_sizes": [4, 6, 5], "codes": CODES, **sizes, **fixed, **options}
    )


@pytest.fixture(scope="module")
def trained() -> SASRecItemVectors:
    return baseline().fit(SPLITS["train"], SPLITS["validation"])


def test_it_learns_the_walk_that_popularity_cannot_see(trained):
    evaluator = SlateEvaluator(SPLITS["test"], LOG.item_ids, exclude_history=True, progress=False, num_resamples=0)
    popularity = Popularity(LOG.item_ids).fit(SPLITS["train"])
    assert evaluator.evaluate(trained).primary_value > evaluator.evaluate(popularity).primary_value + 0.2


def test_the_loss_is_the_cross_entropy_of_every_next_item(trained):
    rows = [np.array([3, 1, 4, 1, 5]), np.array([9, 2])]
    loss = trained._loss(padded(rows)).item()
    found = []
    for row in rows:
        for place in range(1, len(row)):
            scores = torch.from_numpy(trained.scores([row[:place]])[0])
            found.append(-scores.log_softmax(0)[row[place]].item())
    assert loss == pytest.approx(np.mean(found), rel=1e-5)


def test_an_items_vector_is_the_sum_of_its_codes_and_its_own(trained):
    embeddings = trained.network.embeddings
    _, table = trained.network(torch.tensor([[0]]))
    offsets = trained.config.level_offsets
    codes = [embeddings.embed_tokens.weight[offset + code] for offset, code in zip(offsets, CODES[7], strict=True)]
    torch.testing.assert_close(table[7], sum(codes) + embeddings.embed_items.weight[8])


def test_scores_depend_on_the_newest_events_only(trained):
    long = np.arange(30)
    np.testing.assert_allclose(trained.scores([long]), trained.scores([long[-12:]]), rtol=1e-5, atol=1e-6)
    assert np.isfinite(trained.scores([[]])).all()


def test_the_same_seed_gives_the_same_model(trained):
    again = baseline().fit(SPLITS["train"], SPLITS["validation"])
    np.testing.assert_array_equal(again.scores([[1, 2]]), trained.scores([[1, 2]]))


def test_it_loads_again_alone_and_in_a_mixture(tmp_path, trained):
    histories = [np.array([1, 2, 3]), np.array([5])]
    loaded = Baseline.from_pretrained(trained.save_pretrained(tmp_path / "alone"))
    np.testing.assert_array_equal(loaded.scores(histories), trained.scores(histories))
    ease = EASE(LOG.item_ids, l2=5.0).fit(SPLITS["train"])
    mixture = Mixture(LOG.item_ids, first=trained, second=ease, weight=3.0)
    np.testing.assert_array_equal(mixture.scores(histories), trained.scores(histories) + 3 * ease.scores(histories))
    again = Baseline.from_pretrained(mixture.save_pretrained(tmp_path / "mixed"))
    np.testing.assert_array_equal(again.recommend(histories, 5), mixture.recommend(histories, 5))
    assert again.num_parameters() == trained.num_parameters() + ease.num_parameters() + 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"codes have shape \(120, 3\), expected \(120, 2\)"):
        baseline(codebook_sizes=[4, 6])
    with pytest.raises(ValueError, match="Item 20 has code 4 at level 1, which has 4 codes"):
        baseline(codebook_sizes=[4, 4, 5])
    with pytest.raises(ValueError, match="pass `codes`"):
        baseline(codes=None).fit(SPLITS["train"])
    with pytest.raises(ValueError, match="eval_every must be positive"):
        baseline(eval_every=0)
    with pytest.raises(ValueError, match="another catalogue"):
        Mixture(["a"], first=EASE(["a"]), second=EASE(["b"]))


@pytest.mark.parametrize("length", [1, 2, 5, 6, 11, 40])
def test_every_event_but_the_first_is_a_next_item_once(length):
    sequence = np.arange(length)
    for epoch in range(10):
        targets = [batch[:, 1:].ravel() for batch in runs([sequence], 5, 3, np.random.default_rng(epoch))]
        targets = np.concatenate([*targets, np.empty(0, dtype=np.int64)])
        assert sorted(targets[targets >= 0].tolist()) == list(range(1, length))


def test_training_sequences_are_what_the_runs_are_cut_from():
    events, lengths = training_sequences(SPLITS["train"], LOG.item_ids)
    assert lengths.sum() == len(events) == 48 * 14


def test_a_loss_that_is_not_finite_ends_the_training():
    weight = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="epoch 1: lower learning_rate"):
        train_network(
            weight, lambda epoch: [0], lambda batch: weight.weight.sum() * float("nan"), TrainingPlan(), None
        )
