"""Every system of the benchmark gives what a recommender has to: distinct legal items, the best there are."""

from __future__ import annotations

import itertools

import pytest
import torch

from higr_hf.catalog_higr import Legality
from higr_hf.speed import systems
from higr_hf.speed.flat_llama import SlateTrieProcessor, generate_slates
from higr_hf.speed.ranking import NextItemRanker
from higr_hf.speed.systems import Bench, Shape, all_systems

SHAPE = Shape(num_items=40, codebook_size=4, slate_size=3, history=4, num_beams=3)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(SHAPE)


@pytest.mark.parametrize("system", all_systems(SHAPE.num_beams), ids=lambda system: system.variant)
def test_slates_are_distinct_and_not_of_the_history(bench, system):
    slates, (history, _) = bench.call(system, batch=3)(), bench.prompts(3)
    assert slates.shape == (3, SHAPE.slate_size)
    for slate, seen in zip(slates.tolist(), history.tolist(), strict=True):
        assert len(set(slate)) == SHAPE.slate_size and not set(slate) & set(seen)
        assert all(0 <= item < SHAPE.num_items for item in slate)


def test_the_models_are_of_one_size(bench):
    def blocks(model: torch.nn.Module) -> int:
        shared = ("embed_tokens", "embed_items", "lm_head", "embed_slots", "embed_steps", "embed_levels")
        return sum(weights.numel() for name, weights in model.named_parameters() if not any(s in name for s in shared))

    sizes = {kind: blocks(bench.model(kind)) for kind in ("higr", "onerec", "llama", "ranker")}
    assert max(sizes.values()) < 1.03 * min(sizes.values()), sizes


def test_transformers_beam_finds_the_best_slates_of_its_model():
    bench = Bench(Shape(num_items=7, codebook_size=2, slate_size=2, history=2))
    llama, config = bench.model("llama"), bench.config
    with torch.no_grad():
        llama.lm_head.weight.mul_(30)  # predictions that differ
    history, prompts = bench.prompts(1)
    legal = Legality(bench._trie(), 1, excluded=history)
    slates = [pair for pair in itertools.permutations(range(7), 2) if not set(pair) & set(history[0].tolist())]
    tokens = (bench.codes[torch.tensor(slates)] + torch.tensor(config.level_offsets)).flatten(1)
    rows = torch.cat([prompts.expand(len(slates), -1), tokens], dim=1)
    with torch.no_grad():
        logits = llama(rows).logits[:, :-1].log_softmax(-1)
    scores = logits.gather(-1, rows[:, 1:, None]).squeeze(-1)[:, prompts.shape[1] - 1 :].sum(-1)
    found = generate_slates(llama, config, legal, prompts, 2, num_beams=len(slates))
    assert tuple(found[0].tolist()) == slates[int(scores.argmax())]


def test_the_processor_closes_taken_and_excluded_items():
    bench = Bench(Shape(num_items=8, codebook_size=2, slate_size=2, history=1))
    code = bench.codes.tolist()
    first, excluded = code.index([0, 0, 0]), code.index([1, 1, 1])
    legal = Legality(bench._trie(), 1, excluded=torch.tensor([[excluded]]))
    process = SlateTrieProcessor(legal, bench.config, 1, 1)
    offsets = bench.config.level_offsets

    def allowed(*codes: int) -> list[int]:
        tokens = [1, *(code + offsets[place % 3] for place, code in enumerate(codes))]
        scores = process(torch.tensor([tokens]), torch.zeros(1, bench.config.vocab_size))
        return (scores[0].isfinite().nonzero().flatten() - offsets[len(codes) % 3]).tolist()

    assert bench.codes[first].tolist() == [0, 0, 0]
    assert allowed() == [0, 1]
    assert allowed(1, 1) == [0]  # the other is excluded
    assert allowed(0, 0, 0, 0) == [0, 1]
    assert allowed(0, 0, 0, 0, 0) == [1]  # the other is in the slate


def test_the_ranker_gives_the_best_products(bench):
    ranker = NextItemRanker(bench.config).eval()
    history = torch.tensor([[1, 2, 3]])
    scores = {}
    ranker.norm.register_forward_hook(lambda module, inputs, output: scores.update(state=output))
    with torch.no_grad():
        found = ranker.recommend(history, 5)
        products = ranker.embed_items.weight @ scores["state"][0]
    products[history[0]] = float("-inf")
    assert found[0].tolist() == products.topk(5).indices.tolist()


@pytest.mark.parametrize("prepared", ["input-major", "bfloat16", "int8", "int8-products"])
def test_preparations(prepared):
    bench = Bench(SHAPE, prepared)
    systems = [system for system in all_systems(3) if bench.supports(system)]
    assert {system.model for system in systems} == {"higr", "onerec"}
    assert all(bench.call(system, 2)().shape == (2, 3) for system in systems)


def test_a_graph_is_captured_of_the_models_that_are_there(monkeypatch):
    made = []
    monkeypatch.setattr(systems, "GraphedDecoder", lambda model, **given: made.append((model, given)))
    models = {}
    bench, other = Bench(SHAPE, models=models), Bench(SHAPE, models=models)
    other.prepared = "cuda-graph"  # which only a GPU may be asked for
    chosen = [system for system in all_systems(3) if other.supports(system)]
    assert {system.model for system in chosen} == {"higr", "onerec"}
    assert not any("no cache" in system.variant for system in chosen)
    for system in chosen:
        other.call(system, batch=2)
        model, given = made[-1]
        assert model is bench.model(system.model) and given["batch_size"] == 2
        assert given["num_beams"] == system.options["num_beams"]
        assert given.get("slate_mode") == system.options.get("slate_mode")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs an NVIDIA GPU")
@pytest.mark.parametrize("prepared", ["cuda-graph", "cuda-graph-bfloat16"])
def test_captured_calls_give_what_calls_give(prepared):
    models = {}
    bench, plain = (Bench(SHAPE, name, "cuda", models=models) for name in (prepared, systems.GRAPHED[prepared]))
    for system in all_systems(3):
        if bench.supports(system):
            slates = bench.call(system, 2)()
            assert slates.shape == (2, SHAPE.slate_size) and all(len(set(slate)) == 3 for slate in slates.tolist())
            # In bfloat16 weights that were never trained leave ties, and a GPU adds up in no fixed order.
            if bench.dtype == torch.float32:
                assert torch.equal(slates, plain.call(system, 2)())


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="needs a GPU"):
        Bench(SHAPE, "cuda-graph")
    with pytest.raises(ValueError, match="prepares a call"):
        systems.prepare(torch.nn.Linear(1, 1), "cuda-graph")
    with pytest.raises(ValueError, match="prepared must be one of"):
        Bench(SHAPE, "float8")
    with pytest.raises(ValueError, match="cannot name 100 items"):
        Bench(Shape(num_items=100, codebook_size=4))
