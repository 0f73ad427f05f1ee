"""CRQ-VAE: losses by hand, where gradients go, codebooks, and checkpoints that load without the package."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from higr_hf.configuration_crq_vae import METHODS, CRQVAEConfig
from higr_hf.modeling_crq_vae import (
    CRQVAEModel,
    contrastive_loss,
    global_quantization_loss,
    layerwise_quantization_loss,
)
from higr_hf.quantization_crq_vae import ResidualQuantizer, kmeans


def embeddings(count: int = 60, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def tiny(method: str = "crq-vae", **overrides) -> CRQVAEModel:
    settings = {"input_size": 6, "latent_size": 4, "hidden_sizes": [8], "codebook_sizes": [5, 4, 3], **overrides}
    torch.manual_seed(0)
    return CRQVAEModel(CRQVAEConfig.for_method(method, **settings))


def identity_model(*codebooks: list[list[float]]) -> CRQVAEModel:
    """RQ-KMeans with codebooks given by hand."""
    tables = [torch.tensor(table) for table in codebooks]
    config = CRQVAEConfig.for_method(
        "rq-kmeans", input_size=tables[0].shape[1], codebook_sizes=[len(table) for table in tables]
    )
    model = CRQVAEModel(config)
    for parameter, table in zip(model.quantizer.codebooks, tables, strict=True):
        parameter.data = table
    return model


class TestConfig:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_method_says_its_own_name(self, method):
        assert CRQVAEConfig.for_method(method).method == method

    def test_kmeans_quantises_the_embedding_itself(self):
        config = CRQVAEConfig.for_method("rq-kmeans", input_size=7, latent_size=3)
        assert (config.latent_size, config.hidden_sizes, config.normalize_latent) == (7, [], False)

    def test_level_weights_fall_by_a_tenth(self):
        assert CRQVAEConfig(codebook_sizes=[4, 4, 4]).level_weights == pytest.approx([1.0, 0.1])

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("codebook_sizes", []),
            ("codebook_sizes", [4, 0]),
            ("temperature", 0.0),
            ("contrastive_weight", -1.0),
            ("quantization_weight", math.nan),
            ("level_weights", [1.0]),
            ("quantization_loss", "sum"),
            ("contrastive_target", "plan"),
            ("input_size", 0),
        ],
    )
    def test_a_bad_value_names_its_field(self, field, value):
        with pytest.raises(ValueError, match=field):
            CRQVAEConfig(**{field: value})

    def test_a_contradicting_override_is_refused(self):
        with pytest.raises(ValueError, match="contrastive_weight"):
            CRQVAEConfig.for_method("rq-vae", contrastive_weight=0.5)
        with pytest.raises(ValueError, match="amount to 'rq-vae'"):
            CRQVAEConfig.for_method("crq-vae", quantization_loss="layerwise", contrastive_weight=0.0)
        with pytest.raises(ValueError, match="rq-vaee"):
            CRQVAEConfig.for_method("rq-vaee")

    def test_the_two_losses_of_crq_vae_can_be_taken_apart(self):
        assert CRQVAEConfig.for_method("crq-vae").quantization_loss == "global"
        assert CRQVAEConfig.for_method("crq-vae", quantization_loss="layerwise").quantization_loss == "layerwise"
        assert CRQVAEConfig.for_method("crq-vae", contrastive_weight=0.0).contrastive_weight == 0


class TestLosses:
    def test_global_loss_by_hand(self):
        # means over 2 entries: (1 + 4) / 2 = 2.5, once for the codes and 0.1 of it for the encoder
        latent, quantized = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0]])
        assert global_quantization_loss(latent, quantized, 0.1).item() == pytest.approx(2.75)

    def test_layerwise_loss_by_hand(self):
        # level 1: 3 -> 2 leaves 1; level 2: 1 -> 0.5 leaves 0.5; (1 + 0.25) * (1 + 0.25)
        model = identity_model([[2.0], [10.0]], [[0.5], [10.0]])
        result = model.quantize(torch.tensor([[3.0]]))
        assert layerwise_quantization_loss(result, 0.25).item() == pytest.approx(1.25 * 1.25)

    def test_contrastive_loss_by_hand(self):
        anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        positives = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        none, rows = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
        # both rows see two equal logits, so each loses log 2
        assert contrastive_loss(anchors, positives, 0.1, none, rows).item() == pytest.approx(math.log(2))

    def test_masked_negatives_do_not_count(self):
        anchors, positives = embeddings(3), embeddings(3, seed=1)
        everything, rows = torch.ones(3, 3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
        assert contrastive_loss(anchors, positives, 0.1, everything, rows).item() == pytest.approx(0.0, abs=1e-6)

    def test_rows_without_a_positive_are_neither_anchors_nor_negatives(self):
        anchors, positives = embeddings(3), embeddings(3, seed=1)
        none = torch.zeros(3, 3, dtype=torch.bool)
        some = contrastive_loss(anchors, positives, 0.1, none, torch.tensor([True, True, False]))
        two = contrastive_loss(anchors[:2], positives[:2], 0.1, none[:2, :2], torch.tensor([True, True]))
        assert some.item() == pytest.approx(two.item(), rel=1e-5)
        assert contrastive_loss(anchors, positives, 0.1, none, torch.zeros(3, dtype=torch.bool)).item() == 0.0

    def test_the_loss_is_the_weighted_sum_of_its_parts(self):
        model, x = tiny(contrastive_weight=0.3, quantization_weight=0.2), embeddings()
        output = model(x, embeddings(seed=1))
        expected = output.reconstruction_loss + 0.2 * output.quantization_loss + 0.3 * output.contrastive_loss
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_rq_vae_has_no_contrast(self):
        output = tiny("rq-vae")(embeddings())
        assert output.contrastive_loss is None
        assert output.codes.shape == (60, 3) and output.reconstruction.shape == (60, 6)


class TestGradients:
    @pytest.mark.parametrize(
        ("target", "reaches"), [("codeword", False), ("straight-through", True), ("residual", True)]
    )
    def test_which_contrast_reaches_the_encoder(self, target, reaches):
        model = tiny(contrastive_target=target)
        output = model(embeddings(), embeddings(seed=1))
        gradients = torch.autograd.grad(output.contrastive_loss, list(model.encoder.parameters()), allow_unused=True)
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients) == reaches

    def test_reconstruction_passes_straight_through(self):
        model, x = tiny(), embeddings()
        model(x).reconstruction_loss.backward()
        assert model.encoder[0].weight.grad.abs().sum() > 0
        assert model.quantizer.codebooks[0].grad is None

    def test_the_global_loss_gives_every_chosen_code_one_gradient(self):
        model = tiny()
        output = model(embeddings(1))
        output.quantization_loss.backward()
        first, second = (model.quantizer.codebooks[level].grad[output.codes[0, level]] for level in (0, 1))
        torch.testing.assert_close(first, second)


class TestCodebooks:
    def test_codes_are_nearest_level_by_level(self):
        model = tiny("rq-kmeans", codebook_sizes=[5, 4, 3])
        x = embeddings()
        model.init_codebooks(x, seed=0)
        residual = model.embed(x)
        codes = model.encode(x)
        for level, codebook in enumerate(model.quantizer.codebooks):
            assert torch.equal(codes[:, level], torch.cdist(residual, codebook).argmin(1))
            residual = residual - codebook[codes[:, level]]

    def test_decode_sums_the_codewords_in_the_inputs_scale(self):
        model = identity_model([[1.0], [5.0]], [[0.25], [0.5]])
        model.input_mean.fill_(10.0)
        model.input_scale.fill_(2.0)
        assert model.decode(torch.tensor([[1, 0]])).item() == pytest.approx(5.25 * 2 + 10)

    def test_code_distances_follow_any_prefix(self):
        model = identity_model([[1.0], [5.0]], [[0.0], [2.0]])
        x = torch.tensor([[6.0]])
        assert model.code_distances(x, torch.empty(1, 0, dtype=torch.int64)).tolist() == [[25.0, 1.0]]
        assert model.code_distances(x, torch.tensor([[1]])).tolist() == [[1.0, 1.0]]
        assert model.code_distances(x, torch.tensor([[0]])).tolist() == [[25.0, 9.0]]

    def test_kmeans_finds_separate_clusters(self):
        centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
        points = centers.repeat_interleave(20, 0) + 0.1 * embeddings(60, 2)
        found = [kmeans(points, 3, seed=seed) for seed in range(5)]
        error = min(torch.cdist(points, f).min(1).values.square().mean().item() for f in found)
        assert error < 0.05
        assert torch.equal(kmeans(points, 3, seed=1), kmeans(points, 3, seed=1))

    def test_kmeans_of_fewer_points_than_clusters(self):
        centers = kmeans(torch.tensor([[1.0], [1.0], [2.0]]), 8, seed=0)
        assert centers.shape == (8, 1) and torch.isfinite(centers).all()

    def test_initialisation_repeats_itself(self):
        first, second = tiny(), tiny()
        first.init_codebooks(embeddings(), seed=3)
        second.init_codebooks(embeddings(), seed=3)
        for a, b in zip(first.quantizer.codebooks, second.quantizer.codebooks, strict=True):
            assert torch.equal(a, b)

    def test_refitting_the_last_level_leaves_the_others(self):
        model = tiny()
        before = [codebook.clone() for codebook in model.quantizer.codebooks]
        model.init_codebooks(embeddings(), seed=0, first_level=2)
        assert torch.equal(before[0], model.quantizer.codebooks[0])
        assert not torch.equal(before[2], model.quantizer.codebooks[2])

    def test_dead_codes_come_back_to_life(self):
        quantizer, latents = ResidualQuantizer([4], 2), embeddings(30, 2)
        quantizer.codebooks[0].data = torch.tensor([[0.0, 0.0], [90.0, 0.0], [0.0, 90.0], [90.0, 90.0]])
        assert quantizer.revive(latents, [torch.tensor([30, 0, 0, 0])], seed=0) == 3
        assert len(quantizer(latents).codes.unique()) == 4

    def test_standardisation_keeps_the_geometry(self):
        model, x = tiny("rq-kmeans"), embeddings() * 7 + 3
        model.fit_standardization(x)
        assert model.embed(x).square().mean().item() == pytest.approx(1.0, rel=1e-5)
        ratio = torch.pdist(x) / torch.pdist(model.embed(x))
        torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-4, atol=1e-4)

    def test_identical_items_have_a_scale_too(self):
        model = tiny()
        model.fit_standardization(torch.ones(5, 6))
        model.init_codebooks(torch.ones(5, 6))
        assert model.encode(torch.ones(5, 6)).unique(dim=0).shape[0] == 1

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_bad_embedding_is_named(self, bad):
        x = embeddings()
        x[17, 2] = bad
        with pytest.raises(ValueError, match="row 17"):
            tiny().encode(x)

    def test_a_wrong_width_is_named(self):
        with pytest.raises(ValueError, match=r"\[N >= 1, 6\]"):
            tiny().encode(torch.zeros(4, 5))


class TestCheckpoint:
    @pytest.mark.parametrize("method", METHODS)
    def test_round_trip(self, method, tmp_path):
        model, x = tiny(method), embeddings() * 3 + 1
        model.fit_standardization(x)
        model.init_codebooks(x)
        model.save_pretrained(tmp_path)
        loaded = CRQVAEModel.from_pretrained(tmp_path)
        assert loaded.config.method == method
        assert torch.equal(loaded.encode(x), model.encode(x))
        torch.testing.assert_close(loaded.decode(loaded.encode(x)), model.decode(model.encode(x)))

    def test_both_auto_classes_are_written_whichever_saved(self, tmp_path):
        tiny().save_pretrained(tmp_path / "model")
        tiny().config.save_pretrained(tmp_path / "config")
        for folder in ("model", "config"):
            auto_map = json.loads((tmp_path / folder / "config.json").read_text())["auto_map"]
            assert set(auto_map) == {"AutoConfig", "AutoModel"}

    def test_it_loads_without_the_package(self, tmp_path):
        model, x = tiny(), embeddings()
        model.init_codebooks(x)
        model.save_pretrained(tmp_path / "quantizer")
        script = (
            "import sys, torch; from transformers import AutoModel\n"
            "try:\n    import higr_hf; raise SystemExit('the package is importable')\nexcept ImportError: pass\n"
            "model = AutoModel.from_pretrained('quantizer', trust_remote_code=True)\n"
            "x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))\n"
            "print(model.encode(x).tolist())"
        )
        environment = {"PATH": "", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-S", "-c", _SITE + script]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == model.encode(x).tolist()


# An editable install is a .pth file; `-S` skips those, and this adds the plain site-packages folders back.
_SITE = f"import sys; sys.path += {[p for p in sys.path if p.endswith('site-packages')]!r}\n"


def test_hidden_contrast_matches_a_plain_loop():
    """The batched loss, masks and level weights against the equation written out item by item."""
    model, x, p = (
        tiny(contrastive_target="codeword", false_negative_threshold=0.2),
        embeddings(7),
        embeddings(7, seed=1),
    )
    has = torch.tensor([True, True, False, True, True, True, True])
    output = model(x, p, has)
    own, matched = model.quantize(model.embed(x)).codewords, model.quantize(model.embed(p)).codewords
    total = 0.0
    for level, weight in enumerate(model.config.level_weights):
        losses = []
        for a in range(7):
            if not has[a]:
                continue
            psi = [
                math.exp(
                    F.cosine_similarity(own[a, level], matched[n, level], dim=0).item() / model.config.temperature
                )
                for n in range(7)
            ]
            negatives = [
                psi[n] for n in range(7) if n != a and has[n] and F.cosine_similarity(x[a], p[n], dim=0) < 0.2
            ]
            losses.append(-math.log(psi[a] / (psi[a] + sum(negatives))))
        total += weight * sum(losses) / len(losses)
    assert output.contrastive_loss.item() == pytest.approx(total / 2, rel=1e-4)
