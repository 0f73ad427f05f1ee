"""Slates out of a CUDA graph: on a GPU those of generate(); without one what surrounds the graph."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from higr_hf.configuration_higr import SLATE_MODES
from higr_hf.deployment import GraphedDecoder, cuda_graph
from tests.deployment.test_fixed_shape import HISTORIES, TESTER, flat_model, prompts

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs an NVIDIA GPU")


@pytest.fixture
def pretended(monkeypatch):
    """No GPU and no graph: a replay is a call."""
    monkeypatch.setattr(cuda_graph, "_gpu_of", lambda model: model.model.item_codes.device)
    captured = []

    def capture(decoder):
        captured.append(decoder)
        decoder._graph = SimpleNamespace(replay=decoder._run)

    monkeypatch.setattr(GraphedDecoder, "_capture", capture)
    return captured


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
        GraphedDecoder(TESTER.model(), batch_size=1, prompt_length=11)


@needs_gpu
def test_a_model_on_the_cpu_is_refused():
    with pytest.raises(RuntimeError, match="it is on cpu"):
        GraphedDecoder(TESTER.model(), batch_size=1, prompt_length=11)


def test_batches_are_captured_once_and_replayed(pretended):
    model = TESTER.model()
    given = {"slate_size": 3, "num_beams": 4, "exclude_history": True}
    decode = GraphedDecoder(model, batch_size=3, prompt_length=11, max_excluded=3, **given)
    for histories, exclude in (
        (HISTORIES, None),
        ([[10, 11, 12], [2], [3, 4]], [[1], [], [5, 6, 7]]),
        (HISTORIES, torch.tensor([[10], [11], [-1]])),
        (HISTORIES, None),
    ):
        rows = prompts(model, histories)
        found = decode(rows, exclude)
        expected = model.generate(rows, exclude=exclude, return_dict_in_generate=True, **given)
        assert torch.equal(found.slates, expected.slates) and torch.equal(found.sequences, expected.sequences)
    assert pretended == [decode]


def test_what_generate_refuses_is_refused(pretended):
    model = TESTER.model(max_history=2)
    decode = GraphedDecoder(model, batch_size=1, prompt_length=11, slate_size=3, max_excluded=24)
    rows = TESTER.batch([TESTER.prompt(model.config, [1, 2])], pad_to=11)["input_ids"]
    assert decode(rows).slates.shape == (1, 3)
    with pytest.raises(ValueError, match="only 2 legal items"):
        decode(rows, [list(range(22))])
    with pytest.raises(ValueError, match="names item 24"):
        decode(rows, [[24]])
    with pytest.raises(ValueError, match="history of 3 items"):
        decode(prompts(model, [[1, 2, 3]]))
    with pytest.raises(ValueError, match="is empty"):
        decode(torch.zeros_like(rows))
    with pytest.raises(ValueError, match=r"shape \[1, 11\]; got \[1, 8\]"):
        decode(rows[:, 3:])
    with pytest.raises(ValueError, match=r"at most 24\]; got \[1, 25\]"):
        decode(rows, torch.zeros(1, 25, dtype=torch.long))
    unpadded = GraphedDecoder(model, batch_size=1, prompt_length=11, slate_size=3, padded=False)
    with pytest.raises(ValueError, match="padded=True"):
        unpadded(TESTER.batch([TESTER.prompt(model.config, [1])], pad_to=11)["input_ids"])


def test_another_catalogue_is_refused(pretended):
    model = TESTER.model()
    decode = GraphedDecoder(model, batch_size=3, prompt_length=11)
    decode(prompts(model))
    model.set_catalog(TESTER.codes.flip(0))
    with pytest.raises(RuntimeError, match="make a new decoder"):
        decode(prompts(model))


@needs_gpu
@pytest.mark.parametrize("mode", [*SLATE_MODES, "flat"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_replay_gives_the_slates_of_generate(mode, padded):
    model = (flat_model() if mode == "flat" else TESTER.model()).to("cuda")
    given = {"slate_size": 3, "num_beams": 4, "exclude_history": True}
    if mode != "flat":
        given["slate_mode"] = mode
    decode = GraphedDecoder(model, batch_size=3, prompt_length=11, max_excluded=2, padded=padded, **given)
    first = [[1, 2], [4], [7, 8, 9]] if padded else HISTORIES
    for histories in (first, [[10, 11, 12], [2, 3, 4], [3, 4, 5]], first):
        rows, exclude = prompts(model, histories).to("cuda"), torch.tensor([[13, 14], [15, -1], [-1, -1]])
        found = decode(rows, exclude)
        expected = model.generate(rows, exclude=exclude, return_dict_in_generate=True, **given)
        assert torch.equal(found.slates, expected.slates)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="is empty"):
        decode(torch.zeros_like(rows))
    assert torch.equal(decode(rows, exclude).slates, expected.slates), "a refused batch does no harm"
