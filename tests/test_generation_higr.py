from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf.configuration_higr import SLATE_MODES
from tests.model_tester import WHOLE_HISTORY, HiGRModelTester

HISTORIES = ([3, 4, 5], [11], [])


def prompts(tester, config, histories=HISTORIES, side="left"):
    return tester.batch([tester.prompt(config, items) for items in histories], side=side)


def item_scores(tester, model, history, slate, wish=None):
    """Teacher-forced log-probability of every catalogue item as the next of a slate; the exhaustive oracle."""
    prompt = tester.prompt(model.config, history)
    if wish is not None:
        prompt.append(model.config.feature_offset + wish)
    return tester.code_scores(model, prompt, slate).sum(-1)


@pytest.mark.parametrize("wish", [None, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"generator_context": False}, {"shared_generator": False}, {"catalog_prior": True}, WHOLE_HISTORY],
    ids=["plain", "no context", "generators", "prior", "item-item"],
)
def test_a_wide_beam_equals_exhaustive_scoring(tester, options, wish):
    model = tester.model(**options)
    for history in HISTORIES:
        prompt = tester.prompt(model.config, history)
        if wish is not None:
            prompt.append(model.config.feature_offset + wish)
        out = model.generate(torch.tensor([prompt]), num_beams=tester.num_items, return_dict_in_generate=True)
        slate = []
        for slot in range(model.config.slate_size):
            scores = item_scores(tester, model, history, slate, wish)
            scores[slate] = float("-inf")
            best = int(scores.argmax())
            assert int(out.slates[0, slot]) == best
            assert out.scores[0, slot].item() == pytest.approx(scores[best].item(), abs=1e-3)
            ranked = [int(item) for item in scores.argsort(descending=True)[: tester.num_items - slot]]
            assert out.candidates[0, slot, : len(ranked)].tolist() == ranked
            slate.append(best)


def test_beam_one_is_the_greedy_walk_of_the_teacher_forced_model(tester):
    model = tester.model()
    config = model.config
    out = model.generate(torch.tensor([tester.prompt(config, [3, 4, 5])]), num_beams=1, return_dict_in_generate=True)
    row, legal, slate = tester.prompt(config, [3, 4, 5]), {tuple(code) for code in tester.codes.tolist()}, []
    for slot in range(config.slate_size):
        prefix = ()
        for level in range(config.num_levels):
            with torch.no_grad():
                logits = model(torch.tensor([row])).logits[0, -1]
            offset = config.level_offsets[level]
            options = {code[level] for code in legal if code[:level] == prefix}
            code = max(options, key=lambda code: logits[offset + code].item())
            prefix = (*prefix, code)
            row.append(offset + code)
        legal.remove(prefix)
        slate.append(tester.codes.tolist().index(list(prefix)))
        assert int(out.slates[0, slot]) == slate[-1]
    assert out.sequences[0].tolist() == [*row, config.eos_token_id]


@pytest.mark.parametrize("mode", SLATE_MODES)
@pytest.mark.parametrize("options", [{}, {"generator_layers": 2}, WHOLE_HISTORY], ids=["plain", "layers", "item-item"])
def test_cached_equals_uncached(tester, mode, options):
    model = tester.model(**options)
    batch = prompts(tester, model.config)
    results = [
        model.generate(**batch, slate_mode=mode, num_beams=4, use_cache=use, return_dict_in_generate=True)
        for use in (True, False)
    ]
    assert results[0].slates.equal(results[1].slates)
    assert torch.allclose(results[0].scores, results[1].scores, atol=1e-4)


@pytest.mark.parametrize(("asked", "queries"), [({}, [1, 1, 1]), ({"use_cache": False}, [1, 2, 3])])
def test_a_trained_models_cache_is_kept(tester, tmp_path, asked, queries):
    """A `Trainer` writes `use_cache` False into the configuration of what it trains, and checkpoints keep it."""
    trained = tester.model()
    trained.config.use_cache = False
    trained.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()  # transformers then makes one of the configuration
    model, seen = type(trained).from_pretrained(tmp_path), []
    assert model.generation_config.use_cache is False
    model.model.planner.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    model.generate(**prompts(tester, model.config), slate_mode="sequential", slate_size=3, **asked)
    assert seen == queries


@pytest.mark.parametrize("mode", SLATE_MODES)
@pytest.mark.parametrize("options", [{}, WHOLE_HISTORY], ids=["plain", "item-item"])
def test_padding_and_batching_change_nothing(tester, mode, options):
    model = tester.model(**options)
    kwargs = {"slate_mode": mode, "num_beams": 4, "return_dict_in_generate": True}
    left = model.generate(**prompts(tester, model.config), **kwargs)
    right = model.generate(**prompts(tester, model.config, side="right"), **kwargs)
    assert left.slates.equal(right.slates)
    for row, history in enumerate(HISTORIES):
        alone = model.generate(**prompts(tester, model.config, [history]), **kwargs)
        assert alone.slates[0].equal(left.slates[row])
        assert torch.allclose(alone.scores[0], left.scores[row], atol=1e-4)


def test_a_missing_slate_token_is_understood(tester):
    model = tester.model()
    prompt = torch.tensor([tester.prompt(model.config, [3, 4])])
    assert model.generate(prompt)[0, 8:].equal(model.generate(prompt[:, :-1])[0, 7:])


@settings(max_examples=40)
@given(
    num_items=st.integers(5, 30),
    beams=st.integers(1, 12),
    size=st.integers(1, 5),
    mode=st.sampled_from(SLATE_MODES),
    sample=st.booleans(),
    exclude=st.lists(st.lists(st.integers(0, 29), max_size=8), min_size=3, max_size=3),
    allowed=st.one_of(st.none(), st.sets(st.integers(0, 29), min_size=1)),
    per_row=st.booleans(),
)
def test_nothing_illegal_repeated_or_excluded_comes_out(
    num_items, beams, size, mode, sample, exclude, allowed, per_row
):
    tester = HiGRModelTester(num_items=num_items)
    model = tester.model()
    histories = ([1, 2], [4], [])
    excluded = [[item for item in row if item < num_items] for row in exclude]
    mask = None
    if allowed is not None:
        mask = torch.zeros((3, num_items) if per_row else (num_items,), dtype=torch.bool)
        for item in allowed:
            if item < num_items:
                mask[..., item] = True
        if per_row:
            mask[0] = True  # the first user may see everything
    out = model.generate(
        **prompts(tester, model.config, histories),
        slate_size=size,
        num_beams=beams,
        slate_mode=mode,
        do_sample=sample,
        exclude=excluded,
        exclude_history=True,
        allowed=mask,
        allow_short=True,
        return_dict_in_generate=True,
    )
    for row, history in enumerate(histories):
        legal = set(range(num_items)) - set(history) - set(excluded[row])
        if mask is not None:
            legal &= set((mask[row] if per_row else mask).nonzero().flatten().tolist())
        slate = out.slates[row].tolist()
        given_items = [item for item in slate if item >= 0]
        assert len(given_items) == len(set(given_items)) == min(size, len(legal))
        assert set(given_items) <= legal
        assert slate == given_items + [-1] * (size - len(given_items))
        assert out.scores[row].isfinite().tolist() == [item >= 0 for item in slate]


def test_plan_once_gives_a_taken_slot_its_next_best(tester):
    model = tester.model()
    out = model.generate(
        **prompts(tester, model.config), slate_mode="plan_once", num_beams=24, return_dict_in_generate=True
    )
    for row in range(len(HISTORIES)):
        taken = []
        for slot in range(model.config.slate_size):
            best = next(item for item in out.candidates[row, slot].tolist() if item not in taken)
            assert int(out.slates[row, slot]) == best
            taken.append(best)


def test_first_plan_fills_the_slate_from_one_beam(tester):
    model = tester.model()
    out = model.generate(
        **prompts(tester, model.config), slate_mode="first_plan", num_beams=24, return_dict_in_generate=True
    )
    for row, history in enumerate(HISTORIES):
        expected = item_scores(tester, model, history, []).argsort(descending=True)[: model.config.slate_size]
        assert out.slates[row].equal(expected)


def test_sampling_follows_the_model_among_the_legal_items(tester):
    """Frequencies of the first item against the exact product of renormalised steps."""
    tester = HiGRModelTester(num_items=6)
    model = tester.model(initializer_range=0.25)
    prompt = torch.tensor([tester.prompt(model.config, [2])])
    temperature, draws = 1.5, 4000
    out = model.generate(
        prompt,
        slate_size=1,
        do_sample=True,
        temperature=temperature,
        num_return_sequences=draws,
        exclude=[[3]],
        generator=torch.Generator().manual_seed(5),
        return_dict_in_generate=True,
    )
    legal = [item for item in range(6) if item != 3]
    exact = {}
    with torch.no_grad():
        for item in legal:
            probability, row, prefix = 1.0, prompt[0].tolist(), ()
            for level, offset in enumerate(model.config.level_offsets):
                logits = model(torch.tensor([row])).logits[0, -1] / temperature
                options = sorted(
                    {int(tester.codes[i, level]) for i in legal if tuple(tester.codes[i, :level]) == prefix}
                )
                code = int(tester.codes[item, level])
                probs = logits[[offset + option for option in options]].softmax(0)
                probability *= float(probs[options.index(code)])
                prefix = (*prefix, tester.codes[item, level])
                row.append(offset + code)
            exact[item] = probability
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    counts = out.slates[:, 0].bincount(minlength=6) / draws
    for item, probability in exact.items():
        # Five standard errors of a share of 4,000 draws.
        assert counts[item].item() == pytest.approx(probability, abs=5 * (probability / draws) ** 0.5 + 1e-3)


def test_reranking_adds_the_dense_score_of_the_slot_s_plan(tester):
    model = tester.model()
    batch = prompts(tester, model.config, [[3, 4, 5]])
    plain, ranked = (
        model.generate(**batch, slate_size=1, num_beams=24, rerank_weight=weight, return_dict_in_generate=True)
        for weight in (0.0, 0.7)
    )
    with torch.no_grad():
        plan = model(**batch).plans[0, 4]
        dense = model.item_vectors() @ plan
    order = plain.candidates[0, 0]
    expected = plain.candidate_scores[0, 0] + 0.7 * dense[order]
    best = expected.argsort(descending=True)
    assert ranked.candidates[0, 0].equal(order[best])
    assert torch.allclose(ranked.candidate_scores[0, 0], expected[best], atol=1e-3)


def test_any_slate_size_and_slots_past_the_table(tester):
    model = tester.model(max_slate_size=3)
    out = model.generate(**prompts(tester, model.config), slate_size=20, return_dict_in_generate=True)
    assert out.slates.shape == (3, 20)
    assert all(len(set(row.tolist())) == 20 for row in out.slates)


def test_removed_items_never_come_out(tester):
    model = tester.model()
    first = model.generate(**prompts(tester, model.config), return_dict_in_generate=True).slates
    active = torch.ones(tester.num_items, dtype=torch.bool)
    active[first[0]] = False
    model.set_catalog(tester.codes, active)
    second = model.generate(**prompts(tester, model.config), slate_size=20, return_dict_in_generate=True).slates
    assert not set(second.flatten().tolist()) & set(first[0].tolist())


def test_one_item_in_the_catalogue():
    tester = HiGRModelTester(num_items=1)
    model = tester.model()
    out = model.generate(torch.tensor([[1, 3]]), slate_size=1, num_beams=7, return_dict_in_generate=True)
    assert out.slates.tolist() == [[0]]
    with pytest.raises(ValueError, match="only 1 legal items for a slate of 2"):
        model.generate(torch.tensor([[1, 3]]), slate_size=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slate_size": 0}, "slate_size must be at least 1"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"slate_mode": "magic"}, "slate_mode must be one of"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be positive"),
        ({"num_return_sequences": 2}, "needs do_sample=True"),
        ({"exclude": [[99]]}, r"exclude\[0\] names item 99; the catalogue has items 0 to 23"),
        ({"exclude": [[1], [2]]}, "one list of item indices for each of the 1 prompts"),
        ({"allowed": [24]}, "from 0 to 23"),
        ({"allowed": torch.ones(7, dtype=torch.bool)}, "must have shape"),
        ({"exclude": [list(range(22))]}, "Prompt 0 has only 2 legal items for a slate of 4"),
        ({"top_q": 1}, "does not know the arguments"),
    ],
)
def test_bad_arguments_say_what_to_do(tester, arguments, message):
    model = tester.model()
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([tester.prompt(model.config, [3])]), **arguments)


def test_bad_prompts_name_the_row(tester):
    model = tester.model()
    good = tester.prompt(model.config, [3])
    with pytest.raises(ValueError, match="Prompt 1 is empty"):
        model.generate(**tester.batch([good, []]))
    with pytest.raises(ValueError, match="Prompt 1 goes on after `<slate>`"):
        model.generate(**tester.batch([good, [*good, *tester.item_tokens(model.config, [5])]]))
    with pytest.raises(ValueError, match="Prompt 0 has a history of 13 items"):
        model.generate(**tester.batch([tester.prompt(model.config, list(range(13)))]))


def test_a_foreign_tokenizer_is_refused(tester):
    model = tester.model(tokenizer_fingerprint="abc")

    class Other:
        fingerprint = "xyz"

    with pytest.raises(ValueError, match="does not belong to the model"):
        model.check_tokenizer(Other())
