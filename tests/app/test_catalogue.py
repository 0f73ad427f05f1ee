"""What the page says of a catalogue is what the tokenizer holds."""

from __future__ import annotations

import numpy as np
import pytest

from higr_hf import HiGRTokenizer, UnknownItemError
from higr_hf.app.catalogue import CatalogueView
from tests.app.conftest import CATEGORIES, TITLES, make_checkpoint


@pytest.fixture
def tokenizer() -> HiGRTokenizer:
    return make_checkpoint()[1]


def test_the_tree_holds_every_item_once(tokenizer):
    view, found = CatalogueView(tokenizer, CATEGORIES), {}

    def walk(prefix):
        nodes = view.children(prefix)
        assert [node["items"] for node in nodes] == sorted((node["items"] for node in nodes), reverse=True)
        for node in nodes:
            if node["item_id"] is None:
                assert node["items"] == walk(node["prefix"])
            else:
                found[node["item_id"]] = node
        return sum(node["items"] for node in nodes)

    assert walk([]) == 24 and set(found) == set(tokenizer.item_ids)
    for item, node in found.items():
        index = tokenizer.item_ids.index(item)
        assert tokenizer.codes[index].tolist()[: len(node["prefix"])] == node["prefix"]
        assert (node["label"], node["categories"]) == (TITLES[index], ", ".join(CATEGORIES[item]))


def test_a_node_says_what_lies_below_it():
    codes = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]])
    titles = ["A", "B", "", "D", "E"]
    tokenizer = HiGRTokenizer.from_codes(list("abcde"), codes, [2, 4], titles=titles)
    tokenizer.remove_items(["b", "e"])
    view = CatalogueView(tokenizer, {"a": ["X"], "b": ["X", "Y"], "c": ["X"], "d": ["Z"]})
    first, second = view.children([])
    assert first == {
        "prefix": [0], "token": "<a_0>", "items": 4, "removed": 1, "item_id": None, "label": "A, B, c",
        "categories": "X 75%, Y 25%",
    }  # fmt: skip
    assert (second["item_id"], second["removed"], second["label"]) == ("e", 1, "E")
    assert [node["token"] for node in view.children([0])] == ["<b_0>", "<b_1>", "<b_2>", "<b_3>"]


@pytest.mark.parametrize("prefix", [[9], [0, 0, 0], ["x"], [0.5], [-1], [[0]]])
def test_what_is_no_inner_node_is_refused(tokenizer, prefix):
    with pytest.raises(ValueError, match=r"no inner node|begins with"):
        CatalogueView(tokenizer).children(prefix)


def test_choices_are_titles_of_offered_items(tokenizer):
    tokenizer.remove_items(["i0"])
    choices = CatalogueView(tokenizer).choices(limit=100)
    assert len(choices) == 23 and "i0" not in dict(map(reversed, choices))
    assert ("Twins (1988) · id i6", "i6") in choices and ("Film 01 (1971)", "i1") in choices
    assert len(CatalogueView(tokenizer).choices(limit=5)) == 5


@pytest.mark.parametrize(
    ("typed", "item"),
    [
        ("i3", "i3"),
        (" film 03 (1973) ", "i3"),
        ("Film 03", "i3"),
        ("Film", "Film"),
        ("twins (1988)", "twins (1988)"),
        ("", ""),
    ],
)
def test_what_can_only_mean_one_item_is_completed(tokenizer, typed, item):
    assert CatalogueView(tokenizer).complete(typed) == item


def test_names_in_another_catalogues_words(tokenizer):
    view = CatalogueView(tokenizer)
    assert view.title_of("i3") == TITLES[3] and view.title_of("unknown") == "unknown"
    with pytest.raises(UnknownItemError, match=r"The tree: no item .* 'Film 33'.*Film 03"):
        view.find("Film 33")
