from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from higr_hf.baselines import Baseline, ListCVAE, Popularity
from higr_hf.baselines.listcvae import ListCVAENetwork
from higr_hf.data import basket_splits, leave_last_out, read_log, synthetic_log
from higr_hf.data.embeddings import training_sequences, training_views
from higr_hf.evaluation import SlateEvaluator

LOG = synthetic_log(num_users=48, num_items=60, num_topics=4, length=30)
SPLITS = leave_last_out(LOG)


def listcvae(**options) -> ListCVAE:
    sizes = {"factors": 16, "hidden_size": 32, "latent_size": 4, "max_history": 8, "dropout": 0.0, "seed": 1}
    fixed = {"epochs": 2, "learning_rate": 0.01, "batch_size": 16, "warmup_steps": 5}
    return ListCVAE(LOG.item_ids, **{**sizes, **fixed, **options})


@pytest.fixture(scope="module")
def trained() -> ListCVAE:
    return listcvae(epochs=40, eval_every=10).fit(SPLITS["train"], SPLITS["validation"])


def test_it_learns_which_items_follow(trained):
    evaluator = SlateEvaluator(SPLITS["test"], LOG.item_ids, exclude_history=True, progress=False, num_resamples=0)
    popularity = evaluator.evaluate(Popularity(LOG.item_ids).fit(SPLITS["train"]))
    result = evaluator.evaluate(trained)
    assert result.primary_value > popularity.primary_value
    assert (result.metrics["duplicates"], result.metrics["validity"]) == (0, 1)


def test_the_divergence_is_that_of_two_gaussians():
    network = ListCVAENetwork(7, 2, factors=4, hidden_size=8, latent_size=3, dropout=0.0)
    histories, slates, response = torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), torch.tensor([0.5])
    _, found = network(histories, slates, response)
    condition = network.conditions(histories, response)
    content = network.embed_items(slates + 1).flatten(1)
    gaussians = []
    for moments in (network.encoder(torch.cat([content, condition], -1)), network.prior(condition)):
        mean, log_variance = moments.chunk(2, -1)
        gaussians.append(torch.distributions.Normal(mean, (0.5 * log_variance).exp()))
    torch.testing.assert_close(found, torch.distributions.kl_divergence(*gaussians).sum(-1).mean())


def test_padding_in_a_history_changes_nothing():
    network = ListCVAENetwork(7, 2, factors=4, hidden_size=8, latent_size=3, dropout=0.0)
    ones = torch.ones(1)
    torch.testing.assert_close(
        network.conditions(torch.tensor([[4, 2, -1, -1]]), ones), network.conditions(torch.tensor([[4, 2]]), ones)
    )


def test_slates_follow_their_histories_and_carry_their_response():
    model = listcvae(slates_per_run=5)
    events = np.arange(40)
    views = (events % 3 == 0).astype(np.int64)
    for histories, slates, response in model._batches([2 * events + views], np.random.default_rng(0)):
        for history, slate, share in zip(histories, slates, response, strict=True):
            history, slate = history[history >= 0], slate[slate >= 0]
            assert slate.tolist() == list(range(slate[0], slate[0] + len(slate)))
            assert history.tolist() == list(range(slate[0] - len(history), slate[0]))
            assert len(history) >= 1
            assert share == pytest.approx(np.mean(slate % 3 == 0))


def test_real_lists_are_the_slates_where_there_are_any():
    bought = ["a", "b", "c", "b", "d", "b", "c", "b", "d", "b", "c"]
    basket = ["0", "1", "1", "2", "2", "3", "3", "4", "4", "5", "5"]
    frame = pd.DataFrame({"user_id": "u", "item_id": bought, "timestamp": range(11), "basket_id": basket})
    train = basket_splits(read_log(frame, missing_items="add"))["train"]
    model = ListCVAE(["a", "b", "c", "d"], factors=4, hidden_size=8, latent_size=2, max_history=2)
    lists = [(history.tolist(), (slate // 2).tolist()) for history, slate in model._lists(train)]
    assert lists == [([0], [1, 2]), ([1, 2], [1, 3]), ([1, 3], [1, 2])]
    assert len(training_views(train)) == len(training_sequences(train, ["a", "b", "c", "d"])[0])
    model.fit(train)


def test_fewer_items_than_slots_leave_slots_empty(trained):
    slates = trained.recommend([np.array([1])], 5, exclude=[list(range(58))])
    assert sorted(slates[0].tolist()) == [-1, -1, -1, 58, 59]


def test_it_loads_again_with_the_same_slates(tmp_path, trained):
    loaded = Baseline.from_pretrained(trained.save_pretrained(tmp_path / "listcvae"))
    histories = [np.array([1, 2, 3]), np.array([], dtype=np.int64)]
    np.testing.assert_array_equal(loaded.recommend(histories, 5), trained.recommend(histories, 5))


def test_what_was_not_trained_is_refused(trained):
    with pytest.raises(ValueError, match="Slates of 5 were trained, 6 are asked for"):
        trained.recommend([[1]], 6)
    with pytest.raises(ValueError, match="kl_weight"):
        listcvae(kl_weight=-1.0)
