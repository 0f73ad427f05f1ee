"""`slate_mode="verified"` against a beam in plain Python over the teacher-forced model, and against `sequential`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf import HiGRTokenizer
from higr_hf.pipeline_higr import SlateRecommendationPipeline
from higr_hf.recommender import SlateRecommender
from tests.model_tester import WHOLE_HISTORY, HiGRModelTester

HISTORIES = ([3, 4, 5], [11], [])
OPTIONS = {
    "plain": {},
    "no context": {"generator_context": False},
    "generators": {"shared_generator": False},
    "layers": {"generator_layers": 2},
    "prior": {"catalog_prior": True},
    "item-item": WHOLE_HISTORY,
}
MODELS = {name: HiGRModelTester().model(**options) for name, options in OPTIONS.items()}
TESTER = HiGRModelTester()


def decode(model, mode, **options):
    batch = TESTER.batch([TESTER.prompt(model.config, items) for items in HISTORIES])
    return model.generate(**batch, slate_mode=mode, return_dict_in_generate=True, **options)


def verified_by_hand(model, history, draft, legal, width):
    """The verified slate of one user and its scores: for every slot a beam, one set of prefixes after another."""
    codes, slate, found = [tuple(code) for code in TESTER.codes.tolist()], [], []
    for slot in range(len(draft)):
        before = set(draft[:slot])
        scores = TESTER.code_scores(model, TESTER.prompt(model.config, history), draft[:slot]).cumsum(1).tolist()
        kept, aside = {()}, {()}
        for level in range(len(TESTER.codebook_sizes)):
            grown = {codes[item][: level + 1]: item for item in legal - before if codes[item][:level] in kept}
            best = sorted(grown, key=lambda prefix: scores[grown[prefix]][level], reverse=True)[:width]
            dying = {codes[item][: level + 1] for item in before if codes[item][:level] in kept | aside}
            alive = {codes[item][: level + 1] for item in legal - before}
            kept, aside = set(best), dying - alive
        pool = [item for item in legal - set(slate) if codes[item] in kept | aside]
        slate.append(max(pool, key=lambda item: scores[item][-1]))
        found.append(scores[slate[-1]][-1])
    return slate, found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("width", [1, 6, 24])
def test_a_slot_is_the_best_of_its_plan_given_the_draft(name, width):
    model = MODELS[name]
    excluded, allowed = [[0, 9], [], [20]], list(range(22))
    options = {"num_beams": width, "exclude": excluded, "exclude_history": True, "allowed": allowed}
    draft = decode(model, "plan_once", **options).slates.tolist()
    found = decode(model, "verified", **options)
    assert found.slates.tolist() != draft, "the drafts change, or nothing is tested here"
    for row, history in enumerate(HISTORIES):
        legal = set(allowed) - set(history) - set(excluded[row])
        slate, scores = verified_by_hand(model, history, draft[row], legal, max(width, len(draft[row])))
        assert found.slates[row].tolist() == slate
        assert found.scores[row].tolist() == pytest.approx(scores, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(list(MODELS)),
    beams=st.integers(1, 9),
    size=st.integers(1, 6),
    exclude=st.lists(st.lists(st.integers(0, 23), max_size=6), min_size=3, max_size=3),
    per_row=st.booleans(),
    rerank=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_up_to_the_first_change_it_is_the_sequential_slate(name, beams, size, exclude, per_row, rerank, seed):
    model = MODELS[name]
    allowed = torch.rand((3, 24) if per_row else (24,), generator=torch.Generator().manual_seed(seed)) < 0.8
    options = {"slate_size": size, "exclude": exclude, "allowed": allowed, "allow_short": True, "num_beams": beams}
    options["rerank_weight"] = rerank
    draft, found = (decode(model, mode, **options).slates.tolist() for mode in ("plan_once", "verified"))
    exact = decode(model, "sequential", **{**options, "num_beams": max(beams, size)}).slates.tolist()
    for drafted, slate, expected in zip(draft, found, exact, strict=True):
        changed = next((slot for slot in range(size) if slate[slot] != drafted[slot]), size)
        assert slate[: changed + 1] == expected[: changed + 1]


def test_a_slate_of_one_is_the_sequential_one():
    for model in MODELS.values():
        slates = [decode(model, mode, slate_size=1, num_beams=3).slates for mode in ("verified", "sequential")]
        assert slates[0].equal(slates[1])


def test_a_draft_that_stands_is_the_sequential_slate():
    """A planner to which items and the slate's start are next to nothing plans alike with and without them."""
    model = HiGRModelTester().model()
    for embedding in (model.model.embeddings.embed_tokens, model.model.embeddings.embed_items):
        embedding.weight.data.mul_(1e-3)
    outputs = {mode: decode(model, mode, num_beams=24) for mode in ("plan_once", "verified", "sequential")}
    assert outputs["plan_once"].slates.equal(outputs["verified"].slates)
    assert outputs["verified"].slates.equal(outputs["sequential"].slates)
    assert torch.allclose(outputs["verified"].scores, outputs["sequential"].scores, atol=1e-4)


def test_the_tables_read_the_whole_history_in_both_passes():
    model = MODELS["item-item"]
    whole = [[7, 8, 9, 3, 4, 5], [1, 2, 11], []]
    options = {"num_beams": 24, "history": whole}
    draft, found, exact = (decode(model, mode, **options).slates for mode in ("plan_once", "verified", "sequential"))
    assert not found.equal(decode(model, "verified", num_beams=24).slates), "the older events speak"
    for row in range(len(whole)):
        changed = [slot for slot in range(4) if found[row, slot] != draft[row, slot]]
        same = slice(0, changed[0] + 1 if changed else 4)
        assert found[row, same].equal(exact[row, same])


def test_the_candidates_hold_the_slate_and_the_draft_s_own_items():
    found = decode(MODELS["plain"], "verified", num_beams=4)
    assert found.candidates.shape == found.candidate_scores.shape == (3, 4, 7)
    assert (found.candidate_scores.diff(dim=-1).nan_to_num(0) <= 0).all(), "best first"
    for slates, candidates in zip(found.slates.tolist(), found.candidates.tolist(), strict=True):
        for item, row in zip(slates, candidates, strict=True):
            known = [candidate for candidate in row if candidate >= 0]
            assert item in known and len(set(known)) == len(known)


def test_samples_are_drawn_from_the_second_plans():
    model = MODELS["plain"]
    draws = {"do_sample": True, "temperature": 1.0, "generator": None}
    drawn = []
    for mode in ("verified", "plan_once"):
        draws["generator"] = torch.Generator().manual_seed(4)
        drawn.append(decode(model, mode, **draws).slates)
    assert not drawn[0].equal(drawn[1])
    assert all(len(set(slate)) == 4 for slate in drawn[0].tolist())


def test_the_pipeline_and_the_recommender_pass_it_on():
    model = HiGRModelTester().model()
    ids = [f"i{item}" for item in range(TESTER.num_items)]
    tokenizer = HiGRTokenizer.from_codes(ids, TESTER.codes.numpy(), list(TESTER.codebook_sizes),
                                         num_feedback_levels=3, num_time_buckets=2)  # fmt: skip
    expected = decode(model, "verified", num_beams=3, exclude_history=True).slates.tolist()
    assert expected != decode(model, "plan_once", num_beams=3, exclude_history=True).slates.tolist()
    assert expected != decode(model, "sequential", num_beams=3, exclude_history=True).slates.tolist()
    generation = {"slate_mode": "verified", "num_beams": 3}
    named = [[f"i{item}" for item in history] for history in HISTORIES]
    slates = SlateRecommendationPipeline(model, tokenizer)(named, exclude_history=True, **generation)
    assert [[int(place["item_id"][1:]) for place in slate] for slate in slates] == expected
    rows = {"history_indices": [list(history) for history in HISTORIES], "exclude_indices": [[]] * 3}
    rows = {name: [torch.tensor(row, dtype=torch.long).numpy() for row in column] for name, column in rows.items()}
    recommender = SlateRecommender(model, tokenizer, generation=generation)
    answer = recommender.generate({**rows, "exclude_indices": rows["history_indices"]})
    assert answer.slates.tolist() == expected
