"""The flat decoder against brute force: every slate scored by teacher forcing."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf import (
    HiGRForSlateGeneration,
    HiGRTokenizer,
    SlateRecommendationPipeline,
    load_checkpoint,
    save_checkpoint,
)
from higr_hf.baselines.onerec import OneRecConfig, OneRecForSlateGeneration, search
from higr_hf.baselines.onerec.cache import BeamCache
from higr_hf.data.collators import SlateCollator
from higr_hf.data.encoding import EncodedSequence, TokenLayout
from higr_hf.layout_higr import SlateLayout, SlateQueries
from tests.model_tester import HiGRModelTester

HISTORIES = ([3, 4, 5], [1], [])


class OneRecModelTester(HiGRModelTester):
    """The tiny catalogue and sizes of HiGR's tests."""

    def config(self, **overrides) -> OneRecConfig:
        fields = super().config(dense_head=False, **overrides).to_diff_dict()
        derived = ("model_type", "auto_map", "vocab_size", "transformers_version", "custom_pipelines")
        return OneRecConfig(**{name: value for name, value in fields.items() if name not in derived})

    def model(self, **overrides) -> OneRecForSlateGeneration:
        torch.manual_seed(3)
        model = OneRecForSlateGeneration(self.config(**overrides)).eval()
        model.set_catalog(self.codes)
        return model


@pytest.fixture
def tester() -> OneRecModelTester:
    return OneRecModelTester()


def prompts(tester, config, histories=HISTORIES, side="left"):
    return tester.batch([tester.prompt(config, items) for items in histories], side=side)


def slate_scores(tester, model, history, slates) -> torch.Tensor:
    """Teacher-forced log-probability of whole slates, `[S]`: what the search has to maximise."""
    before = tester.prompt(model.config, history)
    rows = torch.tensor([[*before, *tester.item_tokens(model.config, slate)] for slate in slates])
    with torch.no_grad():
        logits = model(rows).logits[:, :-1].log_softmax(-1)
    return logits.gather(-1, rows[:, 1:, None]).squeeze(-1)[:, len(before) - 1 :].sum(-1)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("options", [{}, {"planner_layers": 1, "item_embedding": False, "pooling": "mean"}], ids=str)
def test_a_wide_beam_equals_brute_force(options, use_cache):
    tester = OneRecModelTester(num_items=6, codebook_sizes=(2, 3, 2))
    model = tester.model(**options)
    for history in HISTORIES:
        legal = [item for item in range(6) if item not in history[:1]]
        slates = list(itertools.permutations(legal, 3))
        scores = slate_scores(tester, model, history, slates)
        order = scores.argsort(descending=True)
        out = model.generate(
            torch.tensor([tester.prompt(model.config, history)]), slate_size=3, num_beams=len(slates),
            exclude=[history[:1]], use_cache=use_cache, return_dict_in_generate=True,
        )  # fmt: skip
        found = out.candidates[0].T[: len(slates)].tolist()
        assert found == [list(slates[place]) for place in order], history
        totals = out.candidate_scores[0].sum(0)[: len(slates)]
        assert torch.allclose(totals, scores[order], atol=1e-4)
        assert out.slates[0].tolist() == found[0]


def test_beam_one_is_the_greedy_walk_of_the_teacher_forced_model(tester):
    model = tester.model()
    config, row = model.config, tester.prompt(model.config, [3, 4, 5])
    out = model.generate(torch.tensor([row]), num_beams=1, return_dict_in_generate=True)
    legal = {tuple(code) for code in tester.codes.tolist()}
    for slot in range(config.slate_size):
        prefix = ()
        for level, offset in enumerate(config.level_offsets):
            with torch.no_grad():
                logits = model(torch.tensor([row])).logits[0, -1]
            options = {code[level] for code in legal if code[:level] == prefix}
            prefix = (*prefix, max(options, key=lambda code: logits[offset + code].item()))
            row.append(offset + prefix[-1])
        legal.remove(prefix)
        assert int(out.slates[0, slot]) == tester.codes.tolist().index(list(prefix))
    assert out.sequences[0].tolist() == [*row, config.eos_token_id]


@pytest.mark.parametrize("beams", [1, 2, 5, 40])
def test_cached_equals_recomputed(tester, beams):
    model = tester.model()
    kept, anew = (
        model.generate(
            **prompts(tester, model.config), num_beams=beams, slate_size=6, use_cache=use_cache,
            return_dict_in_generate=True,
        )
        for use_cache in (True, False)
    )  # fmt: skip
    assert kept.candidates.equal(anew.candidates)
    assert torch.allclose(kept.candidate_scores, anew.candidate_scores, atol=1e-4)


@pytest.mark.parametrize(("asked", "caches"), [({}, 1), ({"use_cache": False}, 0)])
def test_a_trained_models_cache_is_kept(tester, asked, caches, monkeypatch):
    """A `Trainer` writes `use_cache` False into the configuration of what it trains, and checkpoints keep it."""
    model = tester.model()
    model.config.use_cache = model.generation_config.use_cache = False
    made = []
    monkeypatch.setattr(search, "BeamCache", lambda *given: made.append(given) or BeamCache(*given))
    model.generate(**prompts(tester, model.config), num_beams=2, **asked)
    assert len(made) == caches


def test_padding_and_batching_change_nothing(tester):
    model = tester.model()
    options = {"num_beams": 4, "return_dict_in_generate": True}
    left = model.generate(**prompts(tester, model.config), **options)
    right = model.generate(**prompts(tester, model.config, side="right"), **options)
    assert left.candidates.equal(right.candidates)
    for row, history in enumerate(HISTORIES):
        alone = model.generate(**prompts(tester, model.config, [history]), **options)
        assert alone.candidates[0].equal(left.candidates[row])


@settings(max_examples=12)
@given(
    num_items=st.integers(3, 30),
    beams=st.integers(1, 9),
    size=st.integers(1, 5),
    exclude=st.lists(st.lists(st.integers(0, 29), max_size=8), min_size=3, max_size=3),
    allowed=st.one_of(st.none(), st.sets(st.integers(0, 29), min_size=1)),
)
def test_nothing_illegal_repeated_or_excluded_comes_out(num_items, beams, size, exclude, allowed):
    tester = OneRecModelTester(num_items=num_items)
    model = tester.model()
    histories = ([1, 2], [0], [])
    excluded = [[item for item in row if item < num_items] for row in exclude]
    permitted = None if allowed is None else sorted(item for item in allowed if item < num_items)
    both = [
        model.generate(
            **prompts(tester, model.config, histories), slate_size=size, num_beams=beams, exclude=excluded,
            exclude_history=True, allowed=permitted, allow_short=True, use_cache=use_cache,
            return_dict_in_generate=True,
        )
        for use_cache in (True, False)
    ]  # fmt: skip
    assert both[0].candidates.equal(both[1].candidates)
    for row, history in enumerate(histories):
        legal = set(range(num_items)) - set(history) - set(excluded[row])
        legal &= set(range(num_items) if permitted is None else permitted)
        full = min(size, len(legal))
        for beam, slate in enumerate(both[0].candidates[row].T.tolist()):
            known = [item for item in slate if item >= 0]
            assert set(known) <= legal and len(set(known)) == len(known)
            assert slate == known + [-1] * (size - len(known))
            assert len(known) in ((full,) if beam == 0 else (0, full))
        assert both[0].scores[row].isfinite().tolist() == [True] * full + [False] * (size - full)


def test_what_cannot_be_decoded_is_refused(tester):
    model = tester.model()
    batch = prompts(tester, model.config)
    with pytest.raises(ValueError, match="slate_mode"):
        model.generate(**batch, slate_mode="sequential")
    with pytest.raises(ValueError, match="num_beams must be at least 1"):
        model.generate(**batch, num_beams=0)
    with pytest.raises(ValueError, match="Prompt 0 has only 2 legal items for a slate of 3"):
        model.generate(**batch, slate_size=3, allowed=[0, 1])
    with pytest.raises(ValueError, match="dense_head"):
        OneRecConfig(dense_head=True)
    with pytest.raises(ValueError, match="catalog_prior"):
        OneRecConfig(catalog_prior=True)


def test_training_on_slate_queries_is_teacher_forcing_of_every_window(tester):
    """The loss of a collated batch is the mean of what the flat reading gives each asked token."""
    model, config = tester.model(dropout=0.0), tester.config()
    generator = np.random.default_rng(0)
    layout = TokenLayout(tester.codes.numpy(), config.level_offsets, config.feature_offset, 3)
    nothing = np.full(7, -1)
    rows = [EncodedSequence(generator.integers(0, 24, 7), nothing, nothing) for _ in range(2)]
    batch = SlateCollator(layout, slate_size=3, max_history=12, num_windows=3)(rows)
    queries = SlateQueries.unpack(batch["slate_queries"])
    codes = SlateLayout.parse(batch["input_ids"], batch["attention_mask"], config).codes
    item_of = {tuple(code): item for item, code in enumerate(tester.codes.tolist())}
    losses = []
    for row in range(2):
        units = [item_of.get(tuple(code)) for code in codes[row].tolist()]
        for query in range(queries.slot.shape[1]):
            target, slot = int(queries.target[row, query]), int(queries.slot[row, query])
            if target >= 0:
                history = units[1 : int(queries.context[row, query])]
                slate = units[target - slot : target + 1]
                whole, part = (slate_scores(tester, model, history, [slate[:end]]) for end in (None, -1))
                losses.append(-(whole - (part if slot else 0)))
    expected = torch.stack(losses).mean() / config.num_levels
    assert model(**batch).loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_it_is_as_large_as_higr_and_shares_its_stages(tester):
    flat = tester.model()
    hierarchical = HiGRForSlateGeneration(HiGRModelTester().config(dense_head=False))
    sizes = [sum(weights.numel() for weights in model.parameters()) for model in (flat, hierarchical)]
    width = flat.config.hidden_size
    assert sizes[1] - sizes[0] == width**2 + width  # the plan's projection, and the generator's own norm
    assert {type(module) for module in flat.modules()} - {type(module) for module in hierarchical.modules()} == {
        OneRecForSlateGeneration, type(flat.model), torch.nn.Identity,
    }  # fmt: skip
    assert all(weights.std() > 0 for name, weights in flat.named_parameters() if "norm" not in name)


def test_it_learns_no_slower_than_higr():
    """A baseline that is hard to train would flatter the model: items follow one another here, and both find out."""
    losses = {}
    for name, tester in (("higr", HiGRModelTester()), ("onerec", OneRecModelTester())):
        torch.manual_seed(0)
        own = {"initializer_range": 0.02, "hidden_size": 32, "dropout": 0.0}
        model = tester.model(**own, **({"dense_head": False} if name == "higr" else {})).train()
        layout = TokenLayout(tester.codes.numpy(), model.config.level_offsets, model.config.feature_offset, 3)
        collate = SlateCollator(layout, slate_size=3, max_history=12, num_windows=2)
        generator, nothing = np.random.default_rng(0), np.full(12, -1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(40):
            starts = generator.integers(0, 24, 16)
            rows = [EncodedSequence((start + np.arange(12)) % 24, nothing, nothing) for start in starts]
            loss = model(**collate(rows)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["onerec"] < 1.1 * losses["higr"] < 0.6, losses


def test_it_saves_and_loads_as_itself(tester, tmp_path):
    model = tester.model()
    ids = [f"i{item}" for item in range(tester.num_items)]
    tokenizer = HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2)
    save_checkpoint(tmp_path / "model", model, tokenizer)
    assert not list((tmp_path / "model").glob("model*.py")), "a baseline does not travel"
    again, _ = load_checkpoint(tmp_path / "model")
    assert type(again) is OneRecForSlateGeneration
    batch = prompts(tester, model.config)
    assert again.generate(**batch).equal(model.generate(**batch))
    slate = SlateRecommendationPipeline(again, tokenizer)(["i1", "i2"], slate_size=2)
    history = tokenizer.encode_prompts([["i1", "i2"]])
    expected = again.generate(**history, slate_size=2, exclude_history=True, return_dict_in_generate=True).slates[0]
    assert [place["item_id"] for place in slate] == [f"i{item}" for item in expected.tolist()]


def test_the_cache_drops_what_no_hypothesis_descends_from():
    torch.manual_seed(0)
    cache = BeamCache(2, 1, 12, 2, 3, torch.zeros(()))
    written = []

    def write(beams: int) -> None:
        cache.open()
        step = [[torch.randn(1, 2, beams, 3) for _ in range(2)] for _ in range(2)]
        written.append(step)
        for layer in range(2):
            cache.write(layer, tuple(step[layer]))

    write(1)
    assert cache.mask is None
    cache.follow(torch.tensor([[0, 0, 0]]))
    write(3)
    cache.follow(torch.tensor([[1, 1, 1]]))
    write(3)
    cache.follow(torch.tensor([[2, 2, 2]]))
    seen = [[(0, 0), (1, 1), (2, 2)]] * 3  # (step, hypothesis) that every one descends from
    assert cache.used == 7
    cache.compact()
    assert cache.used == 3
    write(3)
    for layer in range(2):
        keys, values = (cache.states[layer, side, :, : cache.used].transpose(1, 2) for side in (0, 1))
        for hypothesis in range(3):
            visible = cache.mask[0, 0, hypothesis]
            for side, kept in ((0, keys), (1, values)):
                path = [*seen[hypothesis], (3, hypothesis)]
                expected = torch.stack([written[step][layer][side][0, :, place] for step, place in path], 1)
                assert kept[0][:, visible].equal(expected)


def test_its_recipe_is_the_higr_one_but_for_the_decoder():
    """Equal tuning: data, sizes and optimisation are the same."""
    recipes = Path(__file__).parents[2] / "training" / "recipes"
    flat, higr = (
        yaml.safe_load((recipes / f"train_{name}.yaml").read_text(encoding="utf-8"))
        for name in ("onerec_movielens-100k", "movielens-100k")
    )
    differ = {key for key in {*flat, *higr} if flat.get(key) != higr.get(key)}
    assert differ == {"architecture", "model", "generation", "output_dir"}
    assert {**flat["model"], "catalog_prior": True} == higr["model"]
