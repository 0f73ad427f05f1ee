"""fit_semantic_ids: the whole way for every quantiser, repeatable, resumable, and clear about bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from higr_hf.semantic_ids import default_codebook_sizes, fit_semantic_ids
from higr_hf.semantic_ids.checkpoint import save_checkpoint

SMALL = {
    "codebook_sizes": (6, 6, 6),
    "epochs": 6,
    "warmup_epochs": 2,
    "batch_size": 32,
    "progress": False,
    "config": {"hidden_sizes": [16], "latent_size": 6},
}


@pytest.fixture(scope="module")
def clusters() -> tuple[np.ndarray, list[list[str]]]:
    draw = np.random.default_rng(0)
    labels = np.arange(80) % 4
    points = 3 * draw.normal(size=(4, 12))[labels] + draw.normal(size=(80, 12))
    return points.astype(np.float32), [[f"c{label}"] for label in labels]


def fit(x, method="crq-vae", **options):
    options = {**SMALL, **options}
    if method == "rq-kmeans":
        options.pop("config")
    return fit_semantic_ids(x, method=method, **options)


@pytest.mark.parametrize("method", ["crq-vae", "rq-vae", "rq-kmeans"])
def test_every_quantiser_gives_every_item_its_own(method, clusters):
    x, categories = clusters
    sids = fit(x, method, categories=categories)
    assert sids.codes.dtype == np.int64 and sids.codes.shape == sids.raw_codes.shape == (80, 3)
    assert len(np.unique(sids.codes, axis=0)) == 80
    assert np.array_equal(sids.model.encode(torch.from_numpy(x)).numpy(), sids.raw_codes)
    assert sids.metrics["consistency"] > sids.metrics["consistency_chance"]
    assert len(sids.history) == (0 if method == "rq-kmeans" else 8)
    if sids.history:
        assert sids.history[-1]["reconstruction_loss"] < sids.history[0]["reconstruction_loss"]


def test_the_same_seed_gives_the_same_semantic_ids(clusters):
    x, _ = clusters
    torch.manual_seed(1)
    first = fit(x, seed=4)
    torch.manual_seed(2)
    assert np.array_equal(first.codes, fit(x, seed=4).codes)
    assert not np.array_equal(first.codes, fit(x, seed=5).codes)


def test_fitting_leaves_the_callers_random_state_alone(clusters):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fit(clusters[0], epochs=1)
    assert torch.equal(torch.rand(1), expected)


def test_contrast_pulls_positives_into_one_prefix(clusters):
    """Positives that the embedding knows nothing of must show up in the prefixes."""
    draw = np.random.default_rng(1)
    x = draw.normal(size=(90, 12)).astype(np.float32)
    partner = np.roll(np.arange(90).reshape(30, 3), 1, axis=1).reshape(-1, 1)
    groups = [[str(item // 3)] for item in range(90)]
    config = {"hidden_sizes": [64], "latent_size": 12}
    options = {"epochs": 80, "batch_size": 90, "learning_rate": 1e-2, "categories": groups, "config": config}
    plain = fit(x, "rq-vae", **options)
    pulled = fit(x, "crq-vae", positives=partner, **options)
    assert pulled.metrics["consistency"] > plain.metrics["consistency"] + 0.2


def test_a_resumed_fit_continues_the_same_curve(clusters, tmp_path, monkeypatch):
    x, _ = clusters
    whole = fit(x)

    class Killed(RuntimeError):
        pass

    def save_and_die(*arguments):
        save_checkpoint(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("higr_hf.semantic_ids.fit.save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            fit(x, checkpoint_dir=tmp_path / "checkpoint", checkpoint_every=5)
    resumed = fit(x, checkpoint_dir=tmp_path / "checkpoint", checkpoint_every=5)
    assert resumed.history == whole.history
    assert np.array_equal(resumed.codes, whole.codes)


def test_a_checkpoint_of_another_training_is_refused(clusters, tmp_path):
    fit(clusters[0], checkpoint_dir=tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="another training"):
        fit(clusters[0], checkpoint_dir=tmp_path / "checkpoint", seed=1)
    with pytest.raises(ValueError, match="another training"):
        fit(clusters[0] + 1, checkpoint_dir=tmp_path / "checkpoint")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(file, clusters, tmp_path):
    fit(clusters[0], checkpoint_dir=tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="no whole checkpoint"):
        fit(clusters[0], checkpoint_dir=tmp_path / "checkpoint")


class TestBadInput:
    @pytest.mark.parametrize("method", ["crq-vae", "rq-kmeans"])
    def test_one_item(self, method):
        sids = fit(np.ones((1, 12), dtype=np.float32), method)
        assert sids.codes.shape == (1, 3)

    @pytest.mark.parametrize("method", ["crq-vae", "rq-vae", "rq-kmeans"])
    def test_identical_items(self, method):
        sids = fit(np.ones((20, 12), dtype=np.float32), method)
        assert len(np.unique(sids.codes, axis=0)) == 20
        assert sids.metrics["collision"] == pytest.approx(0.95)

    def test_nan_names_the_row(self, clusters):
        x = clusters[0].copy()
        x[33, 1] = np.nan
        with pytest.raises(ValueError, match="row 33"):
            fit(x)

    def test_more_items_than_semantic_ids(self, clusters):
        with pytest.raises(ValueError, match="80 items do not fit into the 8"):
            fit(clusters[0], codebook_sizes=(2, 2, 2))
        sids = fit(clusters[0], codebook_sizes=(2, 2, 2), collision_rule="extra-token")
        assert sids.codes.shape == (80, 4) and len(np.unique(sids.codes, axis=0)) == 80
        assert sids.codebook_sizes[3] == sids.codes[:, 3].max() + 1

    @pytest.mark.parametrize("shape", [(0, 4), (4,), (4, 0)])
    def test_an_empty_or_flat_array(self, shape):
        with pytest.raises(ValueError, match="shape"):
            fit(np.zeros(shape, dtype=np.float32))

    def test_positives_of_another_catalogue(self, clusters):
        with pytest.raises(ValueError, match="positives"):
            fit(clusters[0], positives=np.zeros((3, 1), dtype=np.int64))
        with pytest.raises(ValueError, match="item indices"):
            fit(clusters[0], positives=np.full((80, 1), 80))

    def test_items_without_any_positive_still_train(self, clusters):
        assert len(fit(clusters[0], positives=np.full((80, 2), -1)).history) == 8

    def test_unknown_names(self, clusters):
        with pytest.raises(ValueError, match="pq"):
            fit(clusters[0], method="pq")
        with pytest.raises(ValueError, match="first-come"):
            fit(clusters[0], collision_rule="first-come")
        with pytest.raises(TypeError, match="epoch_count"):
            fit(clusters[0], epoch_count=3)
        with pytest.raises(ValueError, match="learning_rate"):
            fit(clusters[0], learning_rate=0.0)


def test_default_codebooks_grow_with_the_catalogue():
    assert default_codebook_sizes(1) == (4, 4, 4)
    assert default_codebook_sizes(1682) == (64, 64, 64)
    assert default_codebook_sizes(10_000) == (256, 256, 256)
    assert default_codebook_sizes(10**7, num_levels=4) == (1024,) * 4
