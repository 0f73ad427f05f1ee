"""int8 checkpoints: how far they are from the float ones, what is in the files, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from higr_hf import HiGRForSlateGeneration
from higr_hf.checkpoint import CheckpointError
from higr_hf.deployment import load_int8, quantize_int8, save_int8
from higr_hf.deployment.int8 import WEIGHTS, Int8Linear, quantize_rows, size_in_megabytes
from higr_hf.living import remove_items
from tests.deployment.conftest import make_parts


@given(st.integers(1, 6), st.integers(1, 9), st.floats(1e-6, 1e4), st.integers(0, 99))
def test_a_weight_is_off_by_half_a_scale_at_most(rows, columns, size, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    weight[0] = 0
    quantized, scale = quantize_rows(weight)
    assert quantized.dtype == torch.int8 and scale.shape == (rows, 1)
    assert ((quantized * scale - weight).abs() <= scale * 0.5001).all()
    assert not (quantized * scale)[0].any()


def test_a_layer_is_its_dequantised_matrix():
    layer = Int8Linear(5, 7)
    layer.store(torch.randn(5, 7))
    x = torch.randn(3, 2, 7)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight))


@pytest.mark.parametrize("overrides", [{}, {"pooling": "mean"}, {"item_embedding": False, "shared_generator": False}])
def test_a_quantised_model_is_close_and_complete(overrides):
    model, tokenizer = make_parts(**overrides)
    prompts = tokenizer.encode_prompts([["i1", "i2"], []])
    reference = model(**prompts).logits
    quantised = quantize_int8(make_parts(**overrides)[0])
    assert not [module for module in quantised.modules() if isinstance(module, torch.nn.Linear)]
    assert not list(quantised.lm_head.parameters())
    logits = quantised(**prompts).logits
    real = reference > -1e3
    assert 0 < (logits - reference)[real].abs().max() < 0.2 * reference[real].std()
    # With the dequantised weights in a float model, the int8 model is that model.
    with torch.no_grad():
        for name, module in quantised.named_modules():
            if hasattr(module, "quantized"):
                target = "lm_head.proj" if name == "lm_head.matrix" else f"{name}.weight"
                model.get_parameter(target).copy_(module.dequantized())
    torch.testing.assert_close(model(**prompts).logits, logits, rtol=1e-4, atol=1e-4)
    for options in ({}, {"slate_mode": "plan_once"}, {"slate_mode": "first_plan", "rerank_weight": 0.5}):
        ours = quantised.generate(**prompts, **options, return_dict_in_generate=True)
        floats = model.generate(**prompts, **options, return_dict_in_generate=True)
        torch.testing.assert_close(ours.scores, floats.scores, rtol=1e-3, atol=1e-3)


def test_it_is_saved_small_and_loaded_the_same(tmp_path):
    model, tokenizer = make_parts(hidden_size=64, intermediate_size=256)
    remove_items(model, tokenizer, ["i5"])
    prompts = tokenizer.encode_prompts([["i1", "i2"], []])
    before = model(**prompts).logits
    model.generation_config.num_beams = 7
    save_int8(tmp_path / "int8", model, tokenizer)
    assert torch.equal(model(**prompts).logits, before)  # the model that was saved is as it was
    loaded, reread = load_int8(tmp_path / "int8")
    assert torch.equal(loaded(**prompts).logits, quantize_int8(model)(**prompts).logits)
    assert reread.fingerprint == tokenizer.fingerprint and not loaded.model.item_active[5]
    assert loaded.generation_config.num_beams == 7 and not loaded.training
    floats = make_parts(hidden_size=64, intermediate_size=256)[0]
    assert size_in_megabytes(loaded) < 0.31 * size_in_megabytes(floats)
    tensors = load_file(tmp_path / "int8" / WEIGHTS)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == pytest.approx(
        size_in_megabytes(loaded) * 1e6
    )
    assert not [path for path in (tmp_path / "int8").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    save_int8(tmp_path / "again", loaded, reread)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "int8" / WEIGHTS).read_bytes()


def test_damaged_and_foreign_files_are_refused(tmp_path, parts):
    model, tokenizer = parts
    folder = save_int8(tmp_path / "int8", model, tokenizer)
    config, weights = folder / "config.json", folder / WEIGHTS
    good, content = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(good[: len(good) // 2])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load_int8(folder)
    save_file(load_file_of(good, tmp_path), weights)
    with pytest.raises(CheckpointError, match="not an int8 checkpoint"):
        load_int8(folder)
    weights.write_bytes(good)
    for change, message in (({"num_items": 10**12}, "does not fit"), ({"planner_layers": 10**9}, "layers")):
        config.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=message):
            load_int8(folder)
    config.write_text(json.dumps(content))
    load_int8(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="save_int8"):
        load_int8(folder)
    with pytest.raises(OSError, match="safetensors"):  # not taken for a float checkpoint either
        HiGRForSlateGeneration.from_pretrained(folder)


def load_file_of(content: bytes, folder) -> dict[str, torch.Tensor]:
    (folder / "copy.safetensors").write_bytes(content)
    return load_file(folder / "copy.safetensors")


def test_a_foreign_tokenizer_is_refused(tmp_path, parts):
    model, tokenizer = parts
    tokenizer.remove_items(["i1"])
    with pytest.raises(CheckpointError, match="offered by one of model and tokenizer only"):
        save_int8(tmp_path / "int8", model, tokenizer)


def test_half_precision_recommends_as_full(parts):
    model, tokenizer = parts
    prompts = tokenizer.encode_prompts([["i1", "i2"], [], ["i3"] * 9])
    reference = model.generate(**prompts, return_dict_in_generate=True, num_beams=24, slate_size=1)
    half = model.to(torch.bfloat16)
    found = half.generate(**prompts, return_dict_in_generate=True, num_beams=24, slate_size=1)
    assert found.scores.dtype == torch.float32  # log-probabilities add up in full precision
    order = reference.candidates.sort(-1).indices
    exact = reference.candidate_scores.gather(-1, order)
    rough = found.candidate_scores.gather(-1, found.candidates.sort(-1).indices)
    finite = exact.isfinite()
    assert torch.equal(finite, rough.isfinite())
    assert (exact - rough)[finite].abs().max() < 0.3
    loss = half(prompts["input_ids"], attention_mask=prompts["attention_mask"], labels=prompts["input_ids"]).loss
    loss.backward()
    assert loss.isfinite() and half.model.planner.proj.weight.grad.dtype == torch.bfloat16
