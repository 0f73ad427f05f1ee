from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from higr_hf.data import DataError, split_report
from tests.training.workspace import COLUMNS, write_log
from training._args import parse_recipe
from training._data import DataArguments, aligned, diversity_vectors, load_splits


def arguments(folder, kind: str = "csv", **options) -> DataArguments:
    own = {"interactions": str(folder / f"log.{kind}"), "items": str(folder / f"items.{kind}"), "columns": COLUMNS}
    return DataArguments(**{**own, **options})


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ones_own_log_is_the_log_that_was_written(tmp_path, kind, capsys):
    written = write_log(tmp_path, kind, num_users=8)
    log, splits = load_splits(arguments(tmp_path, kind, view_rule="rating >= 4", negative_rule="rating <= 2"))
    assert log.item_ids == written.item_ids
    assert list(log.items["title"]) == list(written.items["title"])
    assert list(log.items["categories"]) == list(written.items["categories"])
    pd.testing.assert_frame_equal(log.interactions, written.interactions)
    assert (log.info.name, log.info.feedback) == ("log", "rating")
    assert len(splits["test"][0]["target_item_ids"]) == 5
    said = capsys.readouterr().out.splitlines()
    counts = f"160 events, {len(log.items)} items; rows: 8 train, 8 validation, 8 test"
    assert said == ["log: licence unknown", counts]


def test_rules_and_split_options_reach_the_log_and_the_protocol(tmp_path):
    write_log(tmp_path, num_users=8)
    log, splits = load_splits(
        arguments(tmp_path, slate_size=3, split_options="{max_history: 4}", engaged_rule="rating >= 4")
    )
    assert len(splits["test"][0]["target_item_ids"]) == 3
    assert max(len(row) for row in splits["test"]["history_item_ids"]) == 4
    assert log.interactions["engaged"].equals(log.interactions["rating"] >= 4)
    assert log.interactions.loc[log.interactions["engaged"], "view"].all()


def test_rare_items_are_dropped_before_the_split(tmp_path):
    write_log(tmp_path, num_users=8)
    whole, _ = load_splits(arguments(tmp_path))
    log, splits = load_splits(arguments(tmp_path, slate_size=2, min_item_events=3))
    assert 0 < len(log.items) < len(whole.items)
    assert log.interactions["item_id"].value_counts().min() >= 3
    assert {item for row in splits["test"]["target_item_ids"] for item in row} <= set(log.item_ids)
    with pytest.raises(ValueError, match="--min_item_events must be at least 1"):
        arguments(tmp_path, min_item_events=0)


def test_the_feedback_column_is_found_under_the_persons_own_name(tmp_path):
    write_log(tmp_path, num_users=8)
    table = pd.read_csv(tmp_path / "log.csv").rename(columns={"rating": "stars"})
    table.to_csv(tmp_path / "log.csv", index=False)
    log, _ = load_splits(arguments(tmp_path, columns={**COLUMNS, "rating": "stars"}))
    assert log.info.feedback == "rating"
    log, splits = load_splits(arguments(tmp_path))
    assert log.info.feedback is None
    assert "history_feedback" not in splits["train"].column_names
    log, _ = load_splits(arguments(tmp_path, feedback="stars"))
    assert log.info.feedback == "stars"


def test_real_baskets_become_targets(tmp_path):
    write_log(tmp_path, num_users=8)
    table = pd.read_csv(tmp_path / "log.csv")
    table["basket_id"] = table["uid"] + "-" + (table.groupby("uid").cumcount() // 4).astype(str)
    table.to_csv(tmp_path / "log.csv", index=False)
    _, splits = load_splits(arguments(tmp_path, protocol="baskets", split_options="{max_items: 4}"))
    assert split_report(splits)["protocol"] == "baskets"
    user = table[table["uid"] == "u0"]["item_id"].tolist()
    row = next(row for row in splits["test"] if row["user_id"] == "u0")
    assert row["target_item_ids"] == list(dict.fromkeys(user[16:]))
    assert row["history_item_ids"] == user[:16]


def test_a_ready_source_shows_its_licence_and_citation_once(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    ratings = [f"{user}\t{item}\t{1 + item % 5}\t{880000000 + item}" for user in (1, 2) for item in range(1, 13)]
    films = [f"{item}|Film {item} (1990)|01-Jan-1990||http|" + "|".join("01" + "0" * 17) for item in range(1, 13)]
    (folder / "u.data").write_text("\n".join(ratings) + "\n")
    (folder / "u.item").write_text("\n".join(films) + "\n", encoding="latin-1")
    options = {"source": "movielens-100k", "local_path": str(folder)}
    log, _ = load_splits(DataArguments(**options))
    assert log.items[0]["title"] == "Film 1 (1990)"
    said = capsys.readouterr().out
    assert said.count("GroupLens") == 1
    assert "Cite: F. Maxwell Harper and Joseph A. Konstan." in said
    assert DataArguments(**options).name == "movielens-100k"
    monkeypatch.setenv("RANK", "1")
    load_splits(DataArguments(**options))
    assert capsys.readouterr().out == ""


def test_bad_options_are_refused_by_name(tmp_path, capsys):
    write_log(tmp_path, num_users=8)
    with pytest.raises(DataError, match="no source is called 'movielens'"):
        load_splits(DataArguments(source="movielens"))
    with pytest.raises(SystemExit, match="the source movielens-100k has no such option"):
        load_splits(DataArguments(source="movielens-100k", source_options="{category: All_Beauty}"))
    with pytest.raises(SystemExit, match="--split_options has no setting 'min_histroy'; did you mean 'min_history'"):
        load_splits(arguments(tmp_path, split_options="{min_histroy: 2}"))
    with pytest.raises(SystemExit, match="--split_options has no setting 'slate_size'"):
        load_splits(arguments(tmp_path, split_options="{slate_size: 2}"))
    with pytest.raises(DataError, match="the column 'user_id' is missing"):
        load_splits(arguments(tmp_path, columns="{}"))
    with pytest.raises(DataError, match=r"nothing\.csv: no such file"):
        load_splits(arguments(tmp_path, interactions=str(tmp_path / "nothing.csv")))
    with pytest.raises(DataError, match="no basket_id"):
        load_splits(arguments(tmp_path, protocol="baskets"))
    for argv, message in (
        (["--protocol", "random"], "--protocol is 'random': use one of ['baskets', 'leave-last-out']"),
        (["--slate_size", "0"], "--slate_size must be at least 1, got 0"),
        (["--list_size", "0"], "--list_size must be at least 1, got 0"),
        (["--view_rule", "rating >= 4"], "--view_rule describes your own log: name that with --interactions"),
    ):
        with pytest.raises(SystemExit):
            parse_recipe((DataArguments,), argv)
        assert message in capsys.readouterr().err


def test_the_sources_own_errors_are_not_taken_for_bad_options(monkeypatch):
    def broken(name: str, **options):
        raise TypeError("unsupported operand")

    monkeypatch.setattr("training._data.load_source", broken)
    with pytest.raises(TypeError, match="unsupported operand"):
        load_splits(DataArguments())


def test_diversity_embeddings(tmp_path):
    write_log(tmp_path, num_users=8)
    log, splits = load_splits(arguments(tmp_path))
    assert diversity_vectors(log, splits, "none") is None
    np.save(tmp_path / "mine.npy", np.arange(1.0, 2 * len(log.items) + 1).reshape(-1, 2))
    mine = diversity_vectors(log, splits, str(tmp_path / "mine.npy"))
    assert mine.shape == (len(log.items), 2)
    turned = aligned(mine, log.item_ids, log.item_ids[::-1])
    assert np.array_equal(turned, mine[::-1])
    with pytest.raises(SystemExit, match=r"the data have no item 'x' of the tokenizer's catalogue \(1 of 2"):
        aligned(mine, log.item_ids, [log.item_ids[0], "x"])
    log, splits = load_splits(arguments(tmp_path, items=None))
    with pytest.raises(SystemExit, match="neither titles nor texts: measure diversity with --diversity_embeddings"):
        diversity_vectors(log, splits, "text")
