"""Splits: nothing leaks, nothing is reordered, nothing is lost."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.data import DataError, LogInfo, basket_splits, leave_last_out, read_log, split_report

INFO = LogInfo(feedback="rating", engaged_rule="click", view_rule="rating >= 4", negative_rule="rating <= 2")


def log_of(rows, info=INFO, **columns):
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "rating", "click"])
    return read_log(table.assign(**columns), info=info)


@st.composite
def logs(draw):
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from("uvw"),
                st.sampled_from("abcdefgh"),
                st.integers(0, 40),
                st.sampled_from([1.0, 3.0, 5.0]),
                st.sampled_from([1, 1, 1, 0]),
            ),
            min_size=1,
            max_size=60,
        )
    )
    # A guaranteed user with enough engaged events, so that there is something to split.
    rows += [("full", item, time, 5.0, 1) for time, item in enumerate("abcdefgh")]
    return log_of(rows)


def engaged_sequences(log):
    engaged = log.interactions[log.interactions["engaged"]]
    return {user: list(events["item_id"]) for user, events in engaged.groupby("user_id", sort=False)}


@given(
    log=logs(), slate_size=st.integers(1, 3), min_history=st.integers(1, 3), short=st.sampled_from(["train", "drop"])
)
def test_leave_last_out_cuts_every_sequence_once(log, slate_size, min_history, short):
    if max(map(len, engaged_sequences(log).values())) < 2 * slate_size + min_history:
        with pytest.raises(DataError, match="every user has fewer"):
            leave_last_out(log, slate_size, min_history=min_history)
        return
    splits = leave_last_out(log, slate_size, min_history=min_history, short_users=short)
    parts = {name: {row["user_id"]: row for row in part} for name, part in splits.items()}
    seen = set()
    for user, sequence in engaged_sequences(log).items():
        long_enough = len(sequence) >= 2 * slate_size + min_history
        assert (user in parts["validation"]) == (user in parts["test"]) == long_enough
        assert (user in parts["train"]) == (long_enough or short == "train")
        seen.add(user)
        if not long_enough:
            if short == "train":
                assert parts["train"][user]["history_item_ids"] == sequence
            continue
        train, validation, test = (parts[name][user] for name in ("train", "validation", "test"))
        assert train["history_item_ids"] == validation["history_item_ids"]
        assert train["target_item_ids"] == []
        assert validation["history_item_ids"] + validation["target_item_ids"] == test["history_item_ids"]
        assert test["history_item_ids"] + test["target_item_ids"] == sequence
        assert len(test["target_item_ids"]) == len(validation["target_item_ids"]) == slate_size
        assert len(train["history_item_ids"]) >= min_history
        for row in (validation, test):
            assert max(row["history_timestamps"]) <= min(row["target_timestamps"])
    assert set(parts["train"]) <= seen
    report = split_report(splits)
    assert report["users_evaluated"] == len(parts["test"])
    assert report["users_evaluated"] + report["users_short"] == len(seen)


@given(log=logs())
def test_columns_stay_aligned(log):
    splits = leave_last_out(log, 2)
    events = log.interactions
    for part, side in itertools.product(splits.values(), ("history", "target")):
        for row in part:
            for item, time, *flags in zip(
                row[f"{side}_item_ids"],
                row[f"{side}_timestamps"],
                row[f"{side}_views"],
                row[f"{side}_feedback"],
                strict=True,
            ):
                found = (
                    events["user_id"].eq(row["user_id"]) & events["item_id"].eq(item) & events["timestamp"].eq(time)
                )
                assert flags in events[found & events["engaged"]][["view", "rating"]].to_numpy().tolist()


@given(log=logs())
def test_negatives_come_from_before_the_target_and_were_not_enjoyed_since(log):
    splits = leave_last_out(log, 2)
    for name, part in splits.items():
        for row in part:
            events = log.interactions[log.interactions["user_id"] == row["user_id"]].reset_index(drop=True)
            engaged = events.index[events["engaged"]]
            position = len(row["history_item_ids"])
            end = engaged[position] if position < len(engaged) else len(events)
            last = events[:end].drop_duplicates("item_id", keep="last")
            assert row["history_negatives"] == last[last["negative"]]["item_id"].tolist(), name
            position += len(row["target_item_ids"])
            after = engaged[position] if position < len(engaged) else len(events)
            last = events[end:after].drop_duplicates("item_id", keep="last")
            assert row["target_negatives"] == last[last["negative"]]["item_id"].tolist(), name


def test_events_that_are_not_engaged_stay_out_but_count_as_negatives():
    rows = [("u", item, time, 5.0, 1) for time, item in enumerate("abcdef")] + [("u", "skipped", 2, 1.0, 0)]
    row = leave_last_out(log_of(rows), 2)["test"][0]
    assert "skipped" not in row["history_item_ids"]
    assert row["history_negatives"] == ["skipped"] and row["target_negatives"] == []


def test_optional_columns_are_absent_when_the_log_has_none():
    rows = [("u", item, time, 5.0, 1) for time, item in enumerate("abcdef")]
    splits = leave_last_out(log_of(rows, info=LogInfo()), 2)
    optional = {"history_feedback", "target_feedback", "history_negatives", "target_negatives"}
    assert not optional & set(splits["test"].column_names)
    assert all(splits["test"][0]["target_views"]), "without a rule every engaged event is a view"


def test_max_history_cuts_the_oldest_events_of_evaluation_only():
    rows = [("u", item, time, 5.0, 1) for time, item in enumerate("abcdefgh")]
    splits = leave_last_out(log_of(rows), 2, max_history=3)
    assert splits["test"][0]["history_item_ids"] == list("def")
    assert splits["train"][0]["history_item_ids"] == list("abcd")


def test_splits_carry_licence_and_survive_a_round_trip(tmp_path):
    rows = [("u", item, time, 5.0, 1) for time, item in enumerate("abcdef")]
    splits = leave_last_out(log_of(rows, info=LogInfo(licence="CC0", feedback="rating")), 2)
    splits.save_to_disk(tmp_path)
    back = type(splits).load_from_disk(tmp_path)
    assert split_report(back) == split_report(splits)
    assert back["test"].info.license == "CC0"


@pytest.mark.parametrize("options", [{"slate_size": 0}, {"slate_size": 2.0}, {"min_history": 0}, {"max_history": 0}])
def test_sizes_are_checked(options):
    rows = [("u", item, time, 5.0, 1) for time, item in enumerate("abcdef")]
    with pytest.raises(DataError, match=f"{next(iter(options))} is"):
        leave_last_out(log_of(rows), **options)


@st.composite
def receipts(draw):
    """Baskets of a few users; their events may interleave in time, and some belong to no basket."""
    table = pd.DataFrame(
        draw(
            st.lists(
                st.tuples(
                    st.sampled_from("uv"),
                    st.sampled_from("abcdef"),
                    st.integers(0, 30),
                    st.sampled_from([*"123456", None]),
                ),
                min_size=1,
                max_size=60,
            )
        ),
        columns=["user_id", "item_id", "timestamp", "basket_id"],
    )
    fixed = [("full", item, time, str(time // 2)) for time, item in enumerate("abcdefab")]
    return read_log(pd.concat([table, pd.DataFrame(fixed, columns=table.columns)]))


@given(log=receipts(), max_items=st.none() | st.integers(2, 3))
def test_baskets_never_leak(log, max_items):
    splits = basket_splits(log, max_items=max_items)
    events = {user: rows.reset_index(drop=True) for user, rows in log.interactions.groupby("user_id")}
    starts = {}
    for name, part in splits.items():
        for row in part:
            user = events[row["user_id"]]
            basket = user[user["basket_id"] == row["basket_id"]]
            distinct = list(dict.fromkeys(basket["item_id"]))
            assert row["target_item_ids"] == distinct[:max_items]
            assert len(distinct) >= 2
            assert row["history_item_ids"] == user["item_id"][: basket.index[0]].tolist() != []
            starts.setdefault(row["user_id"], []).append((name, basket.index[0], basket.index[-1]))
    for rows in starts.values():
        by_name = {name: [row[1:] for row in rows if row[0] == name] for name in splits}
        assert len(by_name["test"]) == len(by_name["validation"]) <= 1
        if by_name["test"]:
            assert by_name["validation"][0][0] < by_name["test"][0][0]
            assert all(end < by_name["validation"][0][0] for _, end in by_name["train"])


def baskets(*contents):
    rows = [("u", item, time, str(time)) for time, items in enumerate(contents) for item in items]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "basket_id"])
    return read_log(table.assign(line=range(len(table))))


def test_baskets_of_a_hand_made_log():
    # Basket 0 has no history before it, basket 2 holds one item twice: neither is a target, both are history.
    splits = basket_splits(baskets("ab", "cd", "ee", "efe", "gh", "ia"))
    assert splits["train"]["target_item_ids"][:] == [["c", "d"], ["e", "f"]]
    assert splits["validation"][0]["target_item_ids"] == ["g", "h"]
    assert splits["test"][0]["target_item_ids"] == ["i", "a"]
    assert splits["test"][0]["history_item_ids"] == list("abcdeeefegh")
    assert splits["test"][0]["basket_id"] == "5"
    assert (split_report(splits)["lists"], split_report(splits)["lists_too_short"]) == (6, 2)
    assert basket_splits(baskets("ab", "cd", "ef", "gh"), max_history=3)["test"][0]["history_item_ids"] == list("def")


def test_a_lists_negatives_are_told_from_those_before_it():
    ratings = {"d": 1.0, "e": 2.0, "h": 1.0}
    rows = [
        ("u", item, time, ratings.get(item, 5.0), str(time))
        for time, items in enumerate(["ab", "cd", "ef", "gh"])
        for item in items
    ]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "rating", "basket_id"])
    splits = basket_splits(read_log(table, info=LogInfo(negative_rule="rating <= 2")))
    found = {name: (part[0]["history_negatives"], part[0]["target_negatives"]) for name, part in splits.items()}
    assert found == {"train": ([], ["d"]), "validation": (["d"], ["e"]), "test": (["d", "e"], ["h"])}


def test_logs_without_usable_baskets_are_refused():
    with pytest.raises(DataError, match="no user has three usable lists"):
        basket_splits(baskets("ab", "cd", "ef"))
    with pytest.raises(DataError, match="no list has 3 different items"):
        basket_splits(baskets("ab", "cd", "ef", "gh"), min_items=3)
    with pytest.raises(DataError, match="the log has no basket_id"):
        basket_splits(log_of([("u", item, time, 5.0, 1) for time, item in enumerate("abcdef")]))
