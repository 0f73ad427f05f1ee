"""LoRA on the planner: what it reaches, and that an adapter trains, is saved, loaded and merged."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from higr_hf import HiGRForSlateGeneration
from higr_hf.deployment import planner_lora
from tests.deployment.conftest import make_parts


def test_only_the_planner_is_reached(parts):
    model, _ = parts
    adapted = get_peft_model(model, planner_lora(projections=("q_proj", "up_proj")))
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    layers = range(model.config.planner_layers)
    places = ["cross_attn.q_proj", "self_attn.q_proj", "mlp.up_proj"]
    assert trained == {
        f"base_model.model.model.planner.layers.{layer}.{place}.lora_{part}.default.weight"
        for layer in layers
        for place in places
        for part in "AB"
    }


@pytest.mark.parametrize("projections", [("planner",), (), ("q_proj", "lm_head")])
def test_unknown_projections_are_named(projections):
    with pytest.raises(ValueError, match="The planner has the projections"):
        planner_lora(projections=projections)


def test_an_adapter_trains_is_saved_loaded_and_merged(parts, tmp_path):
    model, tokenizer = parts
    ids = tokenizer.encode_prompts([["i1", "i2"], ["i3"]])
    slates = [tokenizer.build_prompt(["i1", "i2"]) + tokenizer.build_completion(["i7", "i8"])] * 2
    batch = tokenizer(slates, return_tensors="pt")["input_ids"]
    before = model(**ids).logits
    frozen = {name: weight.clone() for name, weight in model.named_parameters()}
    adapted = get_peft_model(model, planner_lora(r=4, lora_alpha=8))
    torch.testing.assert_close(adapted(**ids).logits, before)  # an untrained adapter adds nothing

    optimizer = torch.optim.Adam([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.02)
    losses = []
    for _ in range(15):
        loss = adapted(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    adapted.eval()
    trained = adapted(**ids).logits
    assert (trained - before).abs().max() > 0.01
    slate = adapted.generate(**ids, return_dict_in_generate=True)
    base = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): w for name, w in adapted.named_parameters()
    }
    assert all(torch.equal(base[name], weight) for name, weight in frozen.items())

    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not list(tmp_path.glob("*.bin"))
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 40_000
    loaded = PeftModel.from_pretrained(make_parts()[0], tmp_path).eval()
    torch.testing.assert_close(loaded(**ids).logits, trained)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, HiGRForSlateGeneration)
    torch.testing.assert_close(merged(**ids).logits, trained, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged.generate(**ids, return_dict_in_generate=True).slates, slate.slates)
