"""Categories travel in a file beside the model, and are found there by whoever filters."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from higr_hf.item_categories import (
    CATEGORIES_FILE,
    categories_file,
    find_categories,
    items_of,
    names_of,
    read_categories,
)

ITEMS = {"item_id": ["a", "b", "c"], "categories": [["War", "Drama"], [], ["Ænglisch"]]}
FOUND = dict(zip(ITEMS["item_id"], ITEMS["categories"], strict=True))


def test_what_is_written_is_found(tmp_path):
    for name, text in categories_file(Dataset.from_dict(ITEMS)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert find_categories(str(tmp_path)) == FOUND
    assert names_of(FOUND) == ["Drama", "War", "Ænglisch"]


def test_a_catalogue_without_categories_has_no_file(tmp_path):
    assert categories_file(Dataset.from_dict({"item_id": ["a"], "categories": [[]]})) == {}
    assert find_categories(str(tmp_path)) is None


def test_any_wanted_category_will_do():
    assert items_of(FOUND, ["drama", "ænglisch"], ["c", "b", "a", "unknown"]) == ["c", "a"]
    with pytest.raises(ValueError, match="no item has the category 'x' or 'y'; there are Drama, War, Ænglisch"):
        items_of(FOUND, ["x", "y"], FOUND)


@pytest.mark.parametrize("content", ["[]", '{"a": "War"}', '{"a": [1]}', "{"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / CATEGORIES_FILE).write_text(content)
    with pytest.raises(ValueError, match=CATEGORIES_FILE):
        find_categories(str(tmp_path))


def test_tables_are_read_too(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,categories\na,War|Drama\nb,\n")
    (tmp_path / "items.jsonl").write_text(json.dumps({"item_id": "a", "categories": ["War"]}) + "\n")
    assert read_categories(tmp_path / "items.csv") == {"a": ["War", "Drama"], "b": []}
    assert read_categories(tmp_path / "items.jsonl") == {"a": ["War"]}
    (tmp_path / "items.xls").write_text("")
    with pytest.raises(ValueError, match="item tables are"):
        read_categories(tmp_path / "items.xls")
