"""A visitor's request reaches the decoder as it was meant, and its answer is text."""

from __future__ import annotations

import pytest

from higr_hf import HiGRTokenizer, save_checkpoint
from higr_hf.app import SlateModel, SlateRequest
from higr_hf.app.page import build_page
from higr_hf.app.render import slates_html
from higr_hf.configuration_higr import SLATE_MODES
from higr_hf.item_categories import CATEGORIES_FILE
from tests.app.conftest import CATEGORIES, TITLES, make_checkpoint


def ids(slate) -> list[str]:
    return [place["item_id"] for place in slate.places]


def test_the_slate_is_the_decoders(model):
    ours, tokenizer = make_checkpoint()
    slate = model.recommend(SlateRequest(history=["i3", TITLES[8]], slate_size=4, num_alternates=2))
    expected = ours.generate(
        **tokenizer.encode_prompts([["i3", "i8"]]), slate_size=4, exclude_history=True, return_dict_in_generate=True
    )
    assert ids(slate) == [f"i{item}" for item in expected.slates[0].tolist()]
    assert [place["score"] for place in slate.places] == pytest.approx(expected.scores[0].tolist())
    for place in slate.places:
        index = int(place["item_id"][1:])
        assert place["codes"] == tokenizer.codes[index].tolist() and place["title"] == TITLES[index]
        assert place["categories"] == CATEGORIES[place["item_id"]] and 1 <= len(place["alternates"]) <= 2
    assert [item["title"] for item in slate.history] == [TITLES[3], TITLES[8]] and slate.missing == 0


def test_filters_reach_the_decoder(model):
    odd = model.recommend(SlateRequest(categories=["Odd"], exclude=["i1", TITLES[3]], slate_size=10))
    assert set(ids(odd)) == {f"i{item}" for item in range(5, 24, 2)}
    again = model.recommend(SlateRequest(history=["i2"], categories=["Few"], slate_size=3, keep_history=True))
    assert sorted(ids(again)) == ["i0", "i1", "i2"]
    for mode in SLATE_MODES:
        assert len(ids(model.recommend(SlateRequest(slate_mode=mode, num_beams=2, slate_size=2)))) == 2


def test_a_short_slate_is_said(model):
    slate = model.recommend(SlateRequest(history=["i2"], categories=["Few"], slate_size=5))
    assert sorted(ids(slate)) == ["i0", "i1"] and slate.missing == 3
    assert "Only 2 of 5 places could be filled" in slates_html([("m", slate)])
    none = model.recommend(SlateRequest(exclude=list(CATEGORIES), slate_size=2))
    assert (
        none.places == [] and "Only 0 of 2" in slates_html([("m", none)]) and "<ol" not in slates_html([("m", none)])
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SlateRequest(history=["i1", "Film 33"]), r"History, 2: no item .* 'Film 33'. The nearest are 'Film \d3"),
        (SlateRequest(exclude=["Twins (1988)"]), r"Exclude, 1: 2 items have the title .* 'i6', 'i7'"),
        (SlateRequest(categories=["Green"]), "no item has the category 'Green'; there are Even, Few, Odd"),
        (SlateRequest(slate_size=0), "slate_size must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_says_why(model, request_, message):
    with pytest.raises(ValueError, match=message):
        model.recommend(request_)


def test_a_checkpoint_brings_its_categories(tmp_path, model):
    place = save_checkpoint(tmp_path / "runs" / "model", *make_checkpoint(), {CATEGORIES_FILE: '{"i1": ["Odd"]}'})
    loaded = SlateModel.load(str(place))
    assert loaded.name == "runs/model" and loaded.catalogue.category_names == ["Odd"]
    request = SlateRequest(history=["i1"])
    assert ids(loaded.recommend(request)) == ids(model.recommend(request))


# ---- as HTML


def test_titles_of_others_stay_text(model):
    slate = model.recommend(SlateRequest(slate_size=24, num_alternates=0))
    html = slates_html([("<b>name</b>", slate), ("second", "<script>alert(1)</script>")])
    assert "<img" not in html and "&lt;img src=x" in html
    assert "<b>" not in html and "<script>" not in html


def test_two_slates_are_compared_by_title(model, other):
    first, second = (shown.recommend(SlateRequest(slate_size=6)) for shown in (model, other))
    html = slates_html([("first", first), ("second", second)])
    common = {place["title"] for place in first.places} & {place["title"] for place in second.places}
    assert 0 < len(common) < 6, "the checkpoints differ, and not in everything"
    assert html.count("only here") == 2 * (6 - len(common)) and html.count(f"{len(common)} of 6 items in both") == 2
    assert "only here" not in slates_html([("first", first)])
    assert "only here" not in slates_html([("first", first), ("second", "an error")])


def test_a_page_shows_one_or_two(model):
    for models in ([], [model] * 3):
        with pytest.raises(ValueError, match="one checkpoint or compares two"):
            build_page(models)


def test_items_without_titles_and_categories_go_by_their_ids():
    ours, tokenizer = make_checkpoint()
    bare = HiGRTokenizer.from_codes(tokenizer.item_ids, tokenizer.codes, list(tokenizer.codebook_sizes), 3, 2)
    shown = SlateModel("bare", ours, bare)
    slate = shown.recommend(SlateRequest(history=["i3"], slate_size=2))
    html = slates_html([("bare", slate)])
    assert all(f'<span class="title">{item}</span>' in html for item in ids(slate)) and "After i3." in html
    assert ("i3", "i3") in shown.catalogue.choices(100) and 'class="chip"' not in html
