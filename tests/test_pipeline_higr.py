"""pipeline("slate-recommendation"): what goes in, what comes out, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import pipeline

from higr_hf import HiGRTokenizer, SlateRecommendationPipeline, UnknownItemError
from higr_hf.data.encoding import FeatureEdges
from higr_hf.recommender import SlateRecommender
from tests.model_tester import WHOLE_HISTORY, HiGRModelTester

FEEDBACK_EDGES, TIME_EDGES = [1.5, 3.5], [60.0]
TITLES = {"i0": "Heat", "i1": "heat", "i2": "Toy Story (1995)", "i3": "Alien", "i4": "Alien", "i5": "i6", "i7": None}


def make_tokenizer(tester: HiGRModelTester, titles: bool = True, **sizes) -> HiGRTokenizer:
    ids = [f"i{item}" for item in range(tester.num_items)]
    named = [TITLES.get(item_id, f"Film {item_id}") for item_id in ids] if titles else None
    sizes = {"num_feedback_levels": 3, "num_time_buckets": 2, **sizes}
    return HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, titles=named, **sizes)


@pytest.fixture(scope="module")
def recommend() -> SlateRecommendationPipeline:
    tester = HiGRModelTester()
    model = tester.model(feedback_edges=FEEDBACK_EDGES, time_edges=TIME_EDGES)
    return pipeline("slate-recommendation", model=model, tokenizer=make_tokenizer(tester), device="cpu")


def ids(slate) -> list[str]:
    return [place["item_id"] for place in slate]


def prompt(recommend, entry, **options) -> str:
    return recommend.tokenizer.decode(recommend.preprocess(entry, **options)["input_ids"][0])


# ---- what comes out


def test_item_item_tables_read_the_whole_history_not_the_prompt_alone():
    tester = HiGRModelTester()
    model, tokenizer = tester.model(max_history=3, **WHOLE_HISTORY), make_tokenizer(tester)
    history = [8, 1, 3, 4, 9]
    names = [f"i{item}" for item in history]
    options = {"exclude": [history], "slate_size": 3, "return_dict_in_generate": True}
    prompts = tokenizer.encode_prompts([names[-3:]])
    whole, cut = (model.generate(**prompts, history=rows, **options) for rows in ([history], [history[-3:]]))
    slate = SlateRecommendationPipeline(model, tokenizer)(names, slate_size=3)
    assert [place["score"] for place in slate] == pytest.approx(whole.scores[0].tolist(), abs=1e-5)
    batch = {"history_indices": [np.array(history)], "exclude_indices": [np.array(history)]}
    judged = SlateRecommender(model, tokenizer, 3).generate(batch)
    assert judged.slates.equal(whole.slates) and torch.allclose(judged.scores, whole.scores, atol=1e-5)
    assert not torch.allclose(whole.scores, cut.scores, atol=1e-5)


def test_the_slate_is_what_generate_finds(recommend):
    slate = recommend(["i2", "i9"], slate_size=3, num_beams=5, num_alternates=2)
    encoded = recommend.tokenizer.encode_prompts([["i2", "i9"]])
    output = recommend.model.generate(
        **encoded, slate_size=3, num_beams=5, exclude=[[2, 9]], return_dict_in_generate=True
    )
    assert [place["slot"] for place in slate] == [0, 1, 2]
    assert ids(slate) == [f"i{item}" for item in output.slates[0].tolist()]
    assert [place["score"] for place in slate] == pytest.approx(output.scores[0].tolist())
    chosen = set(output.slates[0].tolist())
    for place, candidates, scores in zip(slate, output.candidates[0], output.candidate_scores[0], strict=True):
        pairs = zip(candidates.tolist(), scores.tolist(), strict=True)
        free = [(item, score) for item, score in pairs if item >= 0 and item not in chosen]
        assert [(other["item_id"], other["score"]) for other in place["alternates"]] == [
            (f"i{item}", score) for item, score in free[:2]
        ]


def test_titles_are_given_where_there_are_any(recommend):
    everything = recommend({"history": []}, slate_size=24, num_beams=24)
    named = {place["item_id"]: place["title"] for place in everything}
    assert len(named) == 24 and named["i2"] == "Toy Story (1995)" and named["i7"] is None
    assert named["i23"] == "Film i23"
    tester = HiGRModelTester()
    untitled = SlateRecommendationPipeline(tester.model(), make_tokenizer(tester, titles=False), device="cpu")
    assert all(place["title"] is None for place in untitled(["i1"]))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_batches_change_no_slate(recommend, batch_size):
    entries = [
        ["i1"],
        {"history": ["i3", "i4"], "feedback": [1, None], "timestamps": [5, 1], "exclude": ["i7", "i8"], "wish": 2},
        {"history": [], "allowed": ["i10", "i11", "i12", "i13"]},
        ("i9", "i9", "i20", "i21", "i22"),
        {"history": np.array(["i9"]), "exclude": np.array(["i10"])},
    ]
    single = [recommend(list(entry) if isinstance(entry, tuple) else entry) for entry in entries]
    together = recommend(entries, batch_size=batch_size)
    assert [ids(slate) for slate in together] == [ids(slate) for slate in single]
    for left, right in zip(together, single, strict=True):
        assert [p["score"] for p in left] == pytest.approx([p["score"] for p in right], abs=1e-4)
    assert set(ids(together[2])) == {"i10", "i11", "i12", "i13"}


def test_generators_and_datasets_stream(recommend):
    entries = [{"history": ["i1"]}, {"history": ["i2", "i3"]}, {"history": []}]
    expected = [ids(slate) for slate in recommend(entries)]
    assert [ids(slate) for slate in recommend((entry for entry in entries), batch_size=2)] == expected
    assert [ids(slate) for slate in recommend(Dataset.from_list(entries))] == expected


def test_excluded_and_seen_items_never_come_out(recommend):
    history = ["i1", "i2", "i1"]
    slate = recommend({"history": history, "exclude": ["i5", "i6", "i5"]}, slate_size=20, num_beams=24)
    assert not {"i1", "i2", "i5", "i6"} & set(ids(slate)) and len(set(ids(slate))) == 20
    again = recommend({"history": history}, slate_size=24, num_beams=24, exclude_history=False)
    assert set(history) <= set(ids(again))
    # An event too old to be read is seen all the same.
    for place in recommend(["i1", "i2"], slate_size=22, num_beams=24, max_history=1):
        assert place["item_id"] not in ("i1", "i2")


def test_generation_options_reach_generate(recommend):
    torch.manual_seed(0)
    sampled = {tuple(ids(recommend(["i1"], do_sample=True, temperature=3.0))) for _ in range(6)}
    assert len(sampled) > 1
    assert len(recommend(["i1"], slate_size=2)) == 2
    modes = [recommend(["i1"], slate_mode=mode, rerank_weight=0.5) for mode in ("sequential", "plan_once")]
    assert all(len(set(ids(slate))) == 4 for slate in modes)
    # Arguments of construction are defaults of every call.
    fixed = SlateRecommendationPipeline(
        recommend.model, recommend.tokenizer, device="cpu", slate_size=2, num_alternates=0
    )
    assert [place["alternates"] for place in fixed(["i1"])] == [[], []]
    assert len(fixed(["i1"], slate_size=5)) == 5


# ---- what goes in


def test_items_are_found_by_id_and_title(recommend):
    encode = recommend.tokenizer.build_prompt
    assert prompt(recommend, ["i2", "TOY story (1995)"]) == encode(["i2", "i2"])
    assert prompt(recommend, ["Heat", "heat"]) == encode(["i0", "i1"])  # each in its own case
    assert prompt(recommend, ["i6"]) == encode(["i6"])  # an id wins over the title of i5
    for name, message in (
        ("HEAT", r"history\[1\]: 2 items have the title 'HEAT'. Use one of their ids: 'i0', 'i1'"),
        ("Alien", r"2 items have the title 'Alien'. Use one of their ids: 'i3', 'i4'"),
        ("Toy Stroy", r"no item has the id or title 'Toy Stroy'. The nearest are 'Toy Story \(1995\)' \(id 'i2'\)"),
        ("i99", r"no item has the id or title 'i99'. The nearest are .*'i9'"),
        ("§", r"no item has the id or title '§'. The catalogue has 24 items"),
    ):
        with pytest.raises(UnknownItemError, match=message):
            recommend(["i1", name])
    for field in ("exclude", "allowed"):
        with pytest.raises(UnknownItemError, match=rf"{field}\[0\]: no item"):
            recommend({"history": [], field: ["nothing"]})


def test_raw_features_become_the_levels_of_training(recommend):
    feedback = [1.0, 1.5, 3.49, 5.0, None, math.nan]
    stamps = [0, 59, 119, 119, 400, 401]
    items = [f"i{item}" for item in range(6)]
    edges = FeatureEdges(tuple(FEEDBACK_EDGES), tuple(TIME_EDGES))
    levels = edges.feedback_levels([math.nan if value is None else value for value in feedback])
    buckets = edges.time_buckets(stamps)
    assert levels.tolist() == [0, 1, 1, 2, -1, -1] and buckets.tolist() == [-1, 0, 1, 0, 1, 0]
    expected = recommend.tokenizer.build_prompt(items, levels.tolist(), buckets.tolist(), wish=1)
    entry = {"history": items, "feedback": feedback, "timestamps": stamps, "wish": 1}
    assert prompt(recommend, entry) == expected
    # The wish reaches the model.
    assert recommend({**entry, "wish": 2}) != recommend({**entry, "wish": 0})


def test_events_out_of_order_are_put_in_order(recommend):
    ordered = {"history": ["i1", "i2", "i3"], "feedback": [1, 3, 5], "timestamps": [10, 20, 90]}
    mixed = {"history": ["i3", "i1", "i2"], "feedback": [5, 1, 3], "timestamps": [90, 10, 20]}
    assert prompt(recommend, mixed) == prompt(recommend, ordered)
    # Where a time is unknown the order given is kept, and the gaps next to it are unknown.
    unknown = {"history": ["i3", "i1", "i2", "i4"], "timestamps": [90, None, 100, 200]}
    expected = recommend.tokenizer.build_prompt(["i3", "i1", "i2", "i4"], time_buckets=[None, None, None, 1])
    assert prompt(recommend, unknown) == expected


def test_the_newest_events_are_kept(recommend):
    long = [f"i{item % 20}" for item in range(40)]
    assert prompt(recommend, long) == recommend.tokenizer.build_prompt(long[-12:])
    assert prompt(recommend, long, max_history=2) == recommend.tokenizer.build_prompt(long[-2:])
    assert len(recommend(long)) == 4


def test_no_history_is_a_user_too(recommend):
    slate = recommend({"history": []})
    assert len(slate) == 4 and prompt(recommend, []) == "<bos><slate>"
    assert recommend([]) == recommend(()) == recommend(None) == slate
    assert recommend([[], []]) == [slate, slate]


def test_features_mean_nothing_to_a_model_without_their_tokens():
    tester = HiGRModelTester()
    model = tester.model(num_feedback_levels=0, num_time_buckets=0)
    tokenizer = make_tokenizer(tester, num_feedback_levels=0, num_time_buckets=0)
    plain = SlateRecommendationPipeline(model, tokenizer, device="cpu")
    assert plain({"history": ["i1"], "feedback": [5], "timestamps": [7]}) == plain(["i1"])


def test_features_need_their_cuts():
    tester = HiGRModelTester()
    uncut = SlateRecommendationPipeline(tester.model(), make_tokenizer(tester), device="cpu")
    for key, field in (("feedback", "feedback_edges"), ("timestamps", "time_edges")):
        with pytest.raises(ValueError, match=f"set config.{field}"):
            uncut({"history": ["i1"], key: [1]})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("i1", "The input is 'i1': pass a list of items"),
        (7, "The input is 7: pass a list of items"),
        ([1, 2], r"history\[0\] is 1: items are named by their id or title, strings; use str\(\)"),
        ([["i1"], "i2"], "Input 1 is 'i2' among lists or dictionaries"),
        ({"items": ["i1"]}, "An input needs 'history' and may have"),
        ({"history": ["i1"], "ratings": [1]}, r"got \['history', 'ratings'\]"),
        ({"history": "i1"}, "history must be a list of items, got 'i1'"),
        ({"history": ["i1"], "feedback": [1, 2]}, "feedback has 2 values for 1 items"),
        ({"history": ["i1"], "timestamps": []}, "timestamps has 0 values for 1 items"),
        ({"history": ["i1"], "feedback": ["good"]}, "feedback must hold numbers, or None"),
        ({"history": ["i1"], "wish": 3}, r"feedback is 3; the levels of this tokenizer are 0..2"),
        ({"history": ["i1"], "exclude": "i2"}, "exclude must be a list of items"),
        ({"history": ["i1"], "allowed": ["i2", "i3"]}, "only 2 legal items for a slate of 4"),
        ({"history": ["i1"], "allowed": []}, "only 0 legal items"),
    ],
)
def test_bad_input_is_named(recommend, inputs, message):
    with pytest.raises(ValueError, match=message):
        recommend(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 3}, r"does not know \['beams'\]; its arguments are"),
        ({"max_history": 13}, "max_history must lie between 0 and the model's 12; got 13"),
        ({"num_alternates": -1}, "num_alternates must not be negative"),
        ({"slate_size": 0}, "slate_size must be at least 1"),
    ],
)
def test_bad_options_are_named(recommend, options, message):
    with pytest.raises(ValueError, match=message):
        recommend(["i1"], **options)


def test_a_short_slate_ends_where_the_legal_items_do(recommend):
    slate = recommend({"history": ["i1"], "allowed": ["i1", "i2", "i3"]}, allow_short=True)
    assert set(ids(slate)) == {"i2", "i3"}
    assert recommend({"history": ["i1"], "allowed": ["i1"]}, allow_short=True) == []


def test_a_foreign_tokenizer_is_refused(recommend):
    tester = HiGRModelTester()
    model, tokenizer = tester.model(), make_tokenizer(tester)
    model.config.tokenizer_fingerprint = tokenizer.fingerprint
    SlateRecommendationPipeline(model, tokenizer, device="cpu")
    tokenizer.remove_items(["i3"])
    with pytest.raises(ValueError, match="does not belong to the model"):
        SlateRecommendationPipeline(model, tokenizer, device="cpu")
    with pytest.raises(ValueError, match="needs the model's tokenizer"):
        SlateRecommendationPipeline(model, device="cpu")
