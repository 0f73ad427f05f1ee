from __future__ import annotations

import torch

from higr_hf import HiGRForSlateGeneration
from higr_hf.deployment.memory_layout import input_major
from tests.model_tester import HiGRModelTester


def test_values_results_and_files_stay_the_same(tmp_path):
    tester = HiGRModelTester()
    plain, laid = tester.model(), input_major(tester.model())
    weights = [laid.model.planner.proj.weight, laid.model.encoder.layers[0].mlp.up_proj.weight]
    assert all(weight.stride(0) == 1 and not weight.is_contiguous() for weight in weights)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), laid.parameters(), strict=True))
    batch = tester.batch([tester.prompt(plain.config, [3, 4, 5]), tester.prompt(plain.config, [])])
    for mode in ("sequential", "plan_once"):
        found, expected = (
            model.generate(**batch, slate_mode=mode, return_dict_in_generate=True) for model in (laid, plain)
        )
        assert found.candidates.equal(expected.candidates)
        assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    laid.save_pretrained(tmp_path)
    again = HiGRForSlateGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))


def test_a_model_laid_out_trains(tester):
    model = input_major(tester.model()).train()
    ids = torch.tensor([tester.flat(model.config, [1, 2], [3, 4])])
    model(ids, labels=ids).loss.backward()
    torch.optim.AdamW(model.parameters()).step()
    assert model.model.planner.proj.weight.stride(0) == 1
