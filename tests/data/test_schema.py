"""Reading a log: every kind of input, and every kind of bad row."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from higr_hf.data import DataError, LogInfo, drop_repeats, k_core, read_log, read_table

EVENTS = pd.DataFrame(
    {
        "user_id": [1, 2, 1, 1],
        "item_id": ["b", "a", "a", "b"],
        "timestamp": [30, 10, 20, 30],
        "rating": [5.0, 3.0, 1.0, 5.0],
    }
)
ITEMS = pd.DataFrame({"item_id": ["a", "b", "unused"], "title": ["A", "B", "C"], "categories": ["x|y", None, "x"]})


def events(**changes):
    return EVENTS.assign(**changes)


def test_log_is_sorted_deduplicated_and_counted():
    log = read_log(EVENTS, ITEMS)
    assert log.interactions[["user_id", "item_id", "timestamp"]].to_numpy().tolist() == [
        ["1", "a", 20],
        ["1", "b", 30],
        ["2", "a", 10],
    ]
    assert log.items["item_id"][:] == ["a", "b"]
    assert log.items["categories"][:] == [["x", "y"], []]
    assert log.items["text"][:] == ["A. x, y", "B"]
    assert log.info.feedback == "rating"
    assert (log.counts["duplicate_events"], log.counts["unsorted_events"], log.counts["unused_items"]) == (1, 1, 1)


def test_equal_times_keep_the_order_of_their_rows():
    table = pd.DataFrame({"user_id": "u", "item_id": list("cabd"), "timestamp": [5, 5, 1, 5]})
    assert read_log(table).interactions["item_id"].tolist() == ["b", "c", "a", "d"]


def test_milliseconds_order_events_of_one_second():
    table = pd.DataFrame({"user_id": "u", "item_id": ["late", "early"], "timestamp": [1999, 1001]})
    log = read_log(table, time_unit="ms")
    assert log.interactions["item_id"].tolist() == ["early", "late"]
    assert log.interactions["timestamp"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["pandas", "arrow", "dataset", "datasetdict", "csv", "gzip", "parquet", "folder"])
def test_every_kind_of_input_gives_the_same_log(kind, tmp_path):
    table = EVENTS
    if kind == "arrow":
        table = pa.Table.from_pandas(EVENTS)
    elif kind == "dataset":
        table = Dataset.from_pandas(EVENTS)
    elif kind == "datasetdict":
        table = DatasetDict(train=Dataset.from_pandas(EVENTS))
    elif kind in ("csv", "gzip"):
        table = tmp_path / ("log.csv" if kind == "csv" else "log.csv.gz")
        EVENTS.to_csv(table, index=False)
    elif kind in ("parquet", "folder"):
        EVENTS[:2].to_parquet(tmp_path / "0.parquet")
        EVENTS[2:].to_parquet(tmp_path / "1.parquet")
        table = tmp_path
        if kind == "parquet":
            table = str(tmp_path / "all.parquet")
            EVENTS.to_parquet(table)
    pd.testing.assert_frame_equal(read_log(table).interactions, read_log(EVENTS).interactions)


def test_polars_frames():
    polars = pytest.importorskip("polars")
    frame = polars.from_pandas(EVENTS)
    for table in (frame, frame.lazy()):
        pd.testing.assert_frame_equal(read_log(table).interactions, read_log(EVENTS).interactions)


def test_dates_are_read_as_utc():
    dates = ["1970-01-01T00:00:30Z", "1970-01-01T00:00:10Z", "1970-01-01T01:00:20+01:00", "1970-01-01T00:00:30Z"]
    naive = pd.to_datetime(EVENTS["timestamp"], unit="s")
    for timestamp in (dates, naive, naive.dt.strftime("%Y-%m-%d %H:%M:%S")):
        pd.testing.assert_frame_equal(
            read_log(events(timestamp=timestamp)).interactions, read_log(EVENTS).interactions
        )


def test_a_hub_dataset_is_loaded_by_its_id(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return Dataset.from_pandas(EVENTS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(read_table("owner/name", split="all")) == len(EVENTS)
    assert asked == [(("owner/name", None), {"split": "all"})]


def test_columns_are_mapped_also_onto_taken_names():
    table = EVENTS.rename(columns={"item_id": "movie"}).assign(item_id="something else")
    log = read_log(table, columns={"item_id": "movie"})
    assert set(log.interactions["item_id"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (EVENTS.drop(columns="timestamp"), {}, "'timestamp' is missing"),
        (EVENTS, {"columns": {"user_id": "uid"}}, "'uid' does not exist"),
        (EVENTS[:0], {}, "no rows"),
        (events(user_id=[1, None, 2, 3]), {}, "user_id is missing in row 1"),
        (events(user_id=[1.0, 2.5, 2, 3]), {}, r"user_id is not a whole number in row 1 \(found 2.5\)"),
        (events(item_id=["a", "", "b", "c"]), {}, "item_id is an empty string in row 1"),
        (events(timestamp=[1.0, 2.0, float("inf"), 3.0]), {}, "timestamp is not finite in row 2"),
        (events(timestamp=[1.0, None, 2.0, 3.0]), {}, "timestamp is missing in row 1"),
        (
            events(timestamp=["2020-01-01", "soon", "2020-01-02", "2020"]),
            {},
            r"not a date .* in row 1 \(found 'soon'\)",
        ),
        (events(timestamp=[1650882384975] * 4), {}, "pass time_unit='ms'"),
        (EVENTS, {"time_unit": "min"}, "time_unit is 'min'"),
        (events(rating=["5", "good", "1", "2"]), {}, r"rating is not a number in row 1 \(found 'good'\)"),
        (events(rating=[1.0, float("inf"), 2.0, 3.0]), {}, "rating is infinite in row 1"),
        (events(watch_ratio=[0.5, -1.0, 0.1, 0.2]), {}, "watch_ratio is negative in row 1"),
        (events(click=[0, 1, 2, 1]), {}, r"click is neither 0 nor 1 in row 2 \(found 2\)"),
        (events(view=1), {}, "taken by derived flags"),
        (events(exposed_only=1), {}, "no event is engaged"),
        (42, {}, "cannot read a table from int"),
    ],
)
def test_bad_interactions_name_column_and_row(table, options, message):
    with pytest.raises(DataError, match=message):
        read_log(table, **options)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (ITEMS[1:], "1 items have events but no row, e.g. 'a'"),
        (pd.concat([ITEMS, ITEMS[:1]]), "'a' is listed more than once"),
        (ITEMS.assign(categories=3), "categories in row 0 is 3"),
        (ITEMS.drop(columns="item_id"), "items: the column 'item_id' is missing"),
    ],
)
def test_bad_items_are_named(items, message):
    with pytest.raises(DataError, match=message):
        read_log(EVENTS, items)


def test_missing_items_are_dropped_or_added_on_request():
    dropped = read_log(EVENTS, ITEMS[1:], missing_items="drop")
    assert set(dropped.interactions["item_id"]) == {"b"}
    assert dropped.counts["events_of_missing_items"] == 2
    added = read_log(EVENTS, ITEMS[1:], missing_items="add")
    assert added.items["item_id"][:] == ["b", "a"]
    with pytest.raises(DataError, match="no event is left"):
        read_log(EVENTS, ITEMS[2:], missing_items="drop")


@pytest.mark.parametrize("content", ["", "a,b\n1,2,3\n4"])
def test_broken_files_are_named(content, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=r"log\.csv"):
        read_log(path)
    truncated = tmp_path / "log.parquet"
    EVENTS.to_parquet(truncated)
    truncated.write_bytes(truncated.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"log\.parquet"):
        read_log(truncated)


@pytest.mark.parametrize("path", ["nowhere/log.csv", "nowhere", "./a/b"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_dataset(path):
    with pytest.raises(DataError, match="no such file"):
        read_table(path)


def test_rules_of_an_exposure_log():
    table = pd.DataFrame(
        {
            "user_id": "u",
            "item_id": list("abc"),
            "timestamp": [1, 2, 3],
            "click": [1, 0, 1],
            "like": [0, 0, 1],
            "exposed_only": [0, 1, 0],
        }
    )
    log = read_log(table, info=LogInfo(engaged_rule="click", view_rule="like", negative_rule="exposed_only"))
    assert log.interactions["engaged"].tolist() == [True, False, True]
    assert log.interactions["view"].tolist() == [False, False, True]
    assert log.interactions["negative"].tolist() == [False, True, False]
    assert log.items["item_id"][:] == ["a", "b", "c"], "an item that was only exposed belongs to the catalogue"


def test_k_core_is_a_fixed_point_and_shrinks_the_catalogue():
    table = pd.DataFrame(
        [
            (u, i, t)
            for t, (u, i) in enumerate([*((u, i) for u in "uvw" for i in "abc"), ("x", "d"), ("x", "a"), ("y", "d")])
        ],
        columns=["user_id", "item_id", "timestamp"],
    )
    core = k_core(read_log(table), min_user_events=2, min_item_events=2)
    # y has one event; without it d has one, without d x has one: all three fall, one after the other.
    assert set(core.interactions["user_id"]) == set("uvw")
    assert core.items["item_id"][:] == list("abc")
    with pytest.raises(DataError, match="no event is left"):
        k_core(core, min_user_events=4)


def test_drop_repeats():
    table = pd.DataFrame({"user_id": "u", "item_id": list("abab"), "timestamp": [1, 2, 3, 4]})
    log = read_log(table)
    assert drop_repeats(log).interactions["timestamp"].tolist() == [1, 2]
    last = drop_repeats(log, keep="last")
    assert last.interactions["timestamp"].tolist() == [3, 4]
    assert last.counts["repeated_events"] == 2
