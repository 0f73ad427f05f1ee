"""int8 models that multiply integers: what a layer computes, how near the model stays, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from higr_hf.deployment import Int8Linear, Int8ProductLinear, load_int8, multiply_in_int8, quantize_int8, save_int8
from higr_hf.deployment.int8 import WEIGHTS, size_in_megabytes
from tests.deployment.conftest import make_parts

pytestmark = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm", "onednn"), reason="this torch has no x86 integer kernels"
)


@pytest.fixture
def layer() -> Int8Linear:
    torch.manual_seed(0)
    layer, weight = Int8Linear(7, 5), torch.randn(7, 5)
    weight[2] = 0
    layer.store(weight)
    return layer


@pytest.mark.parametrize(("narrow", "half"), [(False, 128), (True, 64)])
def test_an_input_that_its_bits_hold_is_multiplied_exactly(layer, monkeypatch, narrow, half):
    if not narrow and not torch.cpu.get_capabilities().get("avx512_vnni", False):
        pytest.skip("without VNNI eight bits by eight overflow")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": not narrow})
    x = torch.randint(-half, half, (2, 3, 5)).float()
    x[0, 0, :2] = torch.tensor([-half, half - 1])  # so that one step of the input's grid is 1
    product = Int8ProductLinear(layer)
    found, expected = product(x / half), layer(x / half)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.shape == (2, 3, 7) and not found[..., 2].any()


def test_other_inputs_are_rounded_to_about_a_percent(layer):
    x = torch.randn(50, 5)
    error = (Int8ProductLinear(layer)(x) - layer(x)).norm() / layer(x).norm()
    assert 0 < error < 0.03


def test_it_is_near_and_complete():
    model, tokenizer = make_parts()
    prompts = tokenizer.encode_prompts([["i1", "i2"], []])
    reference = model(**prompts).logits
    prepared = multiply_in_int8(quantize_int8(model))
    layers = [module for module in prepared.modules() if isinstance(module, Int8Linear)]
    assert layers and all(type(layer) is Int8ProductLinear for layer in layers)
    real = reference > -1e3
    error = (prepared(**prompts).logits - reference)[real]
    assert 0 < error.abs().max() < 0.3 * reference[real].std()
    for mode in ("sequential", "plan_once", "verified", "first_plan"):
        slates = prepared.generate(**prompts, slate_mode=mode, exclude=[[3], [4]], return_dict_in_generate=True).slates
        assert all(len(set(row)) == len(row) and min(row) >= 0 for row in slates.tolist())
        assert 3 not in slates[0] and 4 not in slates[1]
    assert torch.equal(copy.deepcopy(prepared)(**prompts).logits, prepared(**prompts).logits)


def linear_weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [module.quantized for module in model.modules() if isinstance(module, Int8Linear)]


def test_it_is_saved_as_any_int8_model(tmp_path):
    model, tokenizer = make_parts()
    prompts = tokenizer.encode_prompts([["i1", "i2"], []])
    plain = save_int8(tmp_path / "plain", model, tokenizer)
    prepared = multiply_in_int8(quantize_int8(model))
    again = save_int8(tmp_path / "again", prepared, tokenizer)
    assert (again / WEIGHTS).read_bytes() == (plain / WEIGHTS).read_bytes()
    plainly = load_int8(again)[0]
    size, matrices = size_in_megabytes(plainly), sum(x.numel() for x in linear_weights(plainly))
    loaded = multiply_in_int8(plainly)
    assert size_in_megabytes(loaded) == pytest.approx(size + matrices / 1e6)
    assert torch.equal(loaded(**prompts).logits, prepared(**prompts).logits)


def test_what_cannot_multiply_integers_is_refused(parts, monkeypatch):
    model, _ = parts
    with pytest.raises(ValueError, match="no int8 layers"):
        multiply_in_int8(model)
    with pytest.raises(ValueError, match="for the CPU"):
        multiply_in_int8(quantize_int8(copy.deepcopy(model)).to("meta"))
    monkeypatch.setattr(torch.backends, "quantized", type("Quantized", (), {"engine": "qnnpack"}))
    with pytest.raises(ValueError, match="qnnpack"):
        multiply_in_int8(quantize_int8(model))
