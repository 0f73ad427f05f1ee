from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from higr_hf import HiGRConfig
from higr_hf.data.collators import QUERY, PromptCollator, SlateCollator
from higr_hf.data.encoding import EncodedSequence, FeatureEdges, TokenLayout
from higr_hf.layout_higr import SlateLayout, SlateQueries

CODES = np.stack(np.unravel_index(np.arange(60), (3, 4, 5)), axis=1).astype(np.int64)
CONFIG = HiGRConfig(codebook_sizes=(3, 4, 5), num_feedback_levels=3, num_time_buckets=2)
LAYOUT = TokenLayout(CODES, CONFIG.level_offsets, CONFIG.feature_offset, CONFIG.num_feedback_levels)


def sequence(length: int, features: bool = True) -> EncodedSequence:
    items = np.arange(length) % 60
    feedback = np.arange(length) % 3 if features else np.full(length, -1)
    time = np.where(np.arange(length) > 0, np.arange(length) % 2, -1) if features else np.full(length, -1)
    return EncodedSequence(items, feedback, time)


def test_tokens_put_features_behind_their_item():
    row = EncodedSequence(np.array([7, 0]), np.array([2, -1]), np.array([-1, 1]))
    a, b, c = CONFIG.level_offsets
    code = CODES[7]
    first = CONFIG.feature_offset
    expected = [a + code[0], b + code[1], c + code[2], first + 2, a, b, c, first + 3 + 1]
    assert LAYOUT.tokens(row).tolist() == expected
    assert LAYOUT.prompt(row, wish=1).tolist() == [1, *expected, 3, first + 1]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    starts=st.one_of(st.none(), st.integers(1, 6)),
    windows=st.integers(0, 5),
    shuffle=st.sampled_from([0.0, 0.5, 1.0]),
    blind=st.sampled_from([0.0, 0.5, 1.0]),
    dropout=st.sampled_from([0.0, 0.5]),
)
def test_queries_are_well_formed(lengths, starts, windows, shuffle, blind, dropout):
    collator = SlateCollator(
        LAYOUT, slate_size=4, max_history=10, num_starts=starts, num_windows=windows, shuffle=shuffle,
        plan_once_rate=blind, slot_dropout=dropout, wish_rate=0.5, seed=1,
    )  # fmt: skip
    batch = collator([sequence(length) for length in lengths])
    layout = SlateLayout.parse(batch["input_ids"], batch["attention_mask"], CONFIG)
    queries = SlateQueries.unpack(batch["slate_queries"])
    for row, length in enumerate(lengths):
        real = queries.window[row] >= 0
        kept = int(layout.num_units[row]) - 1
        assert kept == length if length <= 14 else 1 <= kept <= 14
        assert (~real | (queries.context[row] >= 1)).all()
        context, slot, target, previous = (
            getattr(queries, name)[row][real] for name in ("context", "slot", "target", "previous")
        )
        # Every target lies in the window that begins where the context ends, and none is asked twice.
        assert ((target >= context) & (target < context + 4) & (target <= kept)).all()
        pairs = list(zip(context.tolist(), target.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        assert (slot == 0).sum() == (kept if starts is None else min(starts, kept))
        by_place = {(int(c), int(s)): int(t) for c, s, t in zip(context, slot, target, strict=True)}
        for c, s, p in zip(context.tolist(), slot.tolist(), previous.tolist(), strict=True):
            assert p == -1 or (s > 0 and p == by_place[c, s - 1])
        if blind == 1.0:
            assert (previous == -1).all()
        if not shuffle:
            assert target.equal(context + slot)
    padding = batch["slate_queries"][queries.window < 0]
    assert (padding[:, QUERY["target"]] == -1).all()


def test_whole_windows_know_the_items_before():
    batch = SlateCollator(LAYOUT, slate_size=3, num_windows=99)([sequence(4)])
    fields = [QUERY[name] for name in ("context", "slot", "previous", "target")]
    assert batch["slate_queries"][0][:, fields].tolist() == [
        [1, 0, -1, 1], [1, 1, 1, 2], [1, 2, 2, 3],
        [2, 0, -1, 2], [2, 1, 2, 3], [2, 2, 3, 4],
        [3, 0, -1, 3], [3, 1, 3, 4],
        [4, 0, -1, 4],
    ]  # fmt: skip


def test_the_wish_is_the_level_the_target_received():
    batch = SlateCollator(LAYOUT, slate_size=2, num_windows=0, wish_rate=1.0)([sequence(5)])
    wish = batch["slate_queries"][0][:, QUERY["wish"]]
    assert (wish - CONFIG.feature_offset).tolist() == [0, 1, 2, 0, 1]


def test_evaluation_asks_for_the_last_slate_of_the_newest_events():
    collator = SlateCollator(LAYOUT, slate_size=3, max_history=4, shuffle=1.0, plan_once_rate=1.0).for_evaluation()
    batch = collator([sequence(20), sequence(2)])
    long, short = batch["slate_queries"]
    assert long[:, QUERY["target"]].tolist() == [5, 6, 7]
    assert long[:, QUERY["context"]].tolist() == [5, 5, 5]
    assert long[:, QUERY["previous"]].tolist() == [-1, 5, 6]
    layout = SlateLayout.parse(batch["input_ids"], None, CONFIG)
    assert layout.codes[0, 1:].tolist() == CODES[13:20].tolist()
    assert short[:, QUERY["target"]].tolist() == [1, 2, -1]


def receipts(*sizes: int) -> EncodedSequence:
    """Lists of these sizes, one after the other."""
    row = sequence(sum(sizes), features=False)
    return replace(row, lists=np.repeat(np.arange(len(sizes)), sizes))


def test_list_bounds():
    begins, ends = receipts(1, 3, 2)[2:].list_bounds()
    assert begins.tolist() == [0, 0, 2, 2]  # the second list has lost its first event
    assert ends.tolist() == [2, 2, 4, 4]
    begins, ends = sequence(2).list_bounds()
    assert begins.tolist() == [0, 1]
    assert ends.tolist() == [1, 2]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    starts=st.one_of(st.none(), st.integers(1, 6)),
    windows=st.integers(0, 5),
)
def test_items_of_a_list_are_asked_for_from_before_it(sizes, starts, windows):
    collator = SlateCollator(
        LAYOUT, slate_size=4, max_history=100, num_starts=starts, num_windows=windows, whole_lists=True
    )
    row = receipts(*sizes)
    begins, ends = row.list_bounds()
    queries = SlateQueries.unpack(collator([row])["slate_queries"])
    fields = (queries.context, queries.slot, queries.window, queries.previous, queries.target)
    slates: dict[int, list[tuple[int, ...]]] = {}
    for context, slot, window, previous, target in zip(*(field[0].tolist() for field in fields), strict=True):
        assert context == begins[target - 1] + 1
        slates.setdefault(window, []).append((slot, target, previous))
    count = min(len(row), starts or len(row))
    assert len(slates) == count
    lengths = []
    for window, slate in slates.items():
        slots, targets, fed = zip(*sorted(slate), strict=True)
        size = ends[window - 1] - begins[window - 1]
        assert targets[0] == window
        assert list(slots) == list(range(len(slots)))
        assert len(set(targets)) == len(targets) <= min(size, 4)
        assert {begins[target - 1] for target in targets} == {begins[window - 1]}
        assert list(fed) == [-1, *targets[:-1]]
        lengths.append(len(targets) == min(size, 4))
    assert sum(lengths) >= min(windows, count)


def test_the_rest_of_a_list_stands_in_random_order():
    collator = SlateCollator(LAYOUT, slate_size=3, num_windows=99, whole_lists=True)
    seen = set()
    for epoch in range(200):
        collator.set_epoch(epoch)
        queries = collator([receipts(2, 4)])["slate_queries"][0]
        slate = queries[queries[:, QUERY["window"]] == 4, QUERY["target"]]
        seen.add(tuple(slate.tolist()))
    assert seen == {(4, one, other) for one in (3, 5, 6) for other in (3, 5, 6) if one != other}


def test_evaluation_asks_for_the_last_list_in_its_order():
    collator = SlateCollator(LAYOUT, slate_size=3, max_history=9, whole_lists=True).for_evaluation()
    queries = collator([receipts(3, 5), receipts(2, 2), sequence(0, features=False)])["slate_queries"]
    fields = [QUERY[name] for name in ("context", "slot", "previous", "target")]
    assert queries[0][:, fields].tolist() == [[4, 0, -1, 4], [4, 1, 4, 5], [4, 2, 5, 6]]
    assert queries[1][:2, fields].tolist() == [[3, 0, -1, 3], [3, 1, 3, 4]]
    assert queries[1:, :, QUERY["target"]].tolist() == [[3, 4, -1], [-1, -1, -1]]


def test_every_event_of_a_long_sequence_is_drawn_as_often():
    collator = SlateCollator(LAYOUT, slate_size=2, max_history=5)
    row, drawn = sequence(30), np.zeros(30)
    for number in range(4000):
        kept = collator._crop(row, np.random.default_rng(number)).items
        assert kept.tolist() == list(range(kept[0], kept[0] + len(kept)))
        assert len(kept) == 7 or kept[0] == 0 or kept[-1] == 29
        drawn[kept] += 1
    # 7 of 36 places cover each event, the first and the last too.
    assert np.abs(drawn / 4000 - 7 / 36).max() < 0.03
    assert [collator.num_runs(length) for length in (1, 7, 8, 29, 30)] == [1, 1, 2, 5, 5]


def test_targets_are_counted_without_drawing_them():
    for starts, windows in ((None, 99), (3, 2), (None, 0)):
        collator = SlateCollator(LAYOUT, slate_size=2, max_history=5, num_starts=starts, num_windows=windows)
        for length in (1, 4, 7, 20):
            asked = (collator([sequence(length)])["slate_queries"][..., QUERY["target"]] >= 0).sum()
            # A window that begins with a sequence's last event has no second slot.
            assert 0 <= collator.num_targets(length) - asked <= 1


def test_draws_repeat_for_the_same_epoch_and_differ_between_epochs():
    rows = [sequence(40), sequence(30)]
    collator = SlateCollator(LAYOUT, max_history=20, shuffle=1.0, num_starts=5, seed=3)
    results = []
    for epoch in (0, 1, 0):
        collator.set_epoch(epoch)
        results.append(collator(rows)["slate_queries"])
    assert results[0].equal(results[2])
    assert results[0].shape != results[1].shape or not results[0].equal(results[1])


def test_feature_dropout_removes_the_features_of_whole_sequences():
    rows = [sequence(6) for _ in range(40)]
    tokens = SlateCollator(LAYOUT, feature_dropout=0.5)(rows)["attention_mask"].sum(1)
    assert set(tokens.tolist()) == {1 + 18, 1 + 18 + 6 + 5}


def test_prompts_keep_the_newest_events():
    batch = PromptCollator(LAYOUT, max_history=2, wish=0)([sequence(5, features=False), sequence(0)])
    a, b, c = CONFIG.level_offsets
    newest = [(a + CODES[i][0], b + CODES[i][1], c + CODES[i][2]) for i in (3, 4)]
    wish = CONFIG.feature_offset
    assert batch["input_ids"][0].tolist() == [1, *newest[0], *newest[1], 3, wish]
    assert batch["input_ids"][1].tolist() == [0] * 6 + [1, 3, wish]
    assert batch["attention_mask"].sum(1).tolist() == [9, 3]


def test_edges_cut_feedback_and_time():
    edges = FeatureEdges(feedback=(2.0, 4.0), time=(10.0,))
    assert (edges.num_feedback_levels, edges.num_time_buckets) == (3, 2)
    assert edges.feedback_levels([1, 2, 3.9, 4, float("nan")]).tolist() == [0, 1, 1, 2, -1]
    assert edges.time_buckets([0, 5, 15, 16]).tolist() == [-1, 0, 1, 0]
    assert FeatureEdges().feedback_levels([1.0]).tolist() == [-1]
    with pytest.raises(ValueError, match="must ascend"):
        FeatureEdges(feedback=(3.0, 3.0))


def test_collated_batches_train(tester):
    """The collator's queries are what the model reads: the loss of each query equals its own flat reading."""
    model = tester.model(dense_loss_weight=0.0)
    config = model.config
    layout = TokenLayout(tester.codes.numpy(), config.level_offsets, config.feature_offset, config.num_feedback_levels)
    row = EncodedSequence(np.array([3, 4, 5, 6, 7]), np.full(5, -1), np.full(5, -1))
    batch = SlateCollator(layout, slate_size=3, num_windows=99)([row])
    losses = []
    for start in range(1, 6):
        history, slate = row.items[: start - 1], row.items[start - 1 : start + 2]
        flat = torch.tensor([tester.flat(config, history.tolist(), slate.tolist())])
        with torch.no_grad():
            logits = model(flat).logits[:, :-1].log_softmax(-1)
        picked = logits.gather(-1, flat[:, 1:, None]).squeeze(-1)[0]
        begin = 1 + 3 * (start - 1)
        losses.append(-picked[begin : begin + 3 * len(slate)])
    assert model(**batch).loss.item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
