"""Collision rules: every item keeps a semantic ID of its own, and the ones given out never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.semantic_ids import assign_new, resolve_collisions
from tests.test_modeling_crq_vae import identity_model


def line_model():
    """Prefixes at 0 and 100, under each of them codes at 0, 1 and 5."""
    return identity_model([[0.0], [100.0]], [[0.0], [1.0], [5.0]])


def resolve(model, values, **options):
    x = torch.tensor(values).reshape(-1, 1)
    return resolve_collisions(model, x, model.encode(x).numpy(), **options)


def test_without_collisions_nothing_moves():
    codes, sizes = resolve(line_model(), [0.0, 1.0, 105.0])
    assert codes.tolist() == [[0, 0], [0, 1], [1, 2]] and sizes == [2, 3]


def test_the_nearest_item_keeps_the_code_and_the_next_takes_the_nearest_free_one():
    # All three are nearest to code 0, in the order 0.1, 0.2, 0.4: the second takes code 1, the third what is left.
    codes, _ = resolve(line_model(), [0.4, 0.1, 0.2])
    assert codes[1].tolist() == [0, 0]
    assert codes[2].tolist() == [0, 1]
    assert codes[0].tolist() == [0, 2]


def test_identical_items_go_by_row():
    codes, _ = resolve(line_model(), [0.0, 0.0, 0.0])
    assert codes.tolist() == [[0, 0], [0, 1], [0, 2]]


def test_an_item_whose_prefix_is_full_goes_to_the_nearest_prefix_with_space():
    codes, _ = resolve(line_model(), [0.0, 0.1, 0.2, 0.3, 100.0])
    assert len({tuple(code) for code in codes.tolist()}) == 5
    assert codes[3].tolist() == [1, 1]
    # The item that belongs there keeps its own code.
    assert codes[4].tolist() == [1, 0]


def test_the_overflow_waits_for_those_under_their_own_prefix():
    # Three collide at 100: they fill that prefix, although three at 0 look for space there.
    codes, _ = resolve(line_model(), [0.0, 0.0, 0.0, 100.0, 100.0, 100.0])
    assert codes[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_catalogue_of_one_item():
    assert resolve(line_model(), [4.0])[0].tolist() == [[0, 2]]
    codes, sizes = resolve(line_model(), [3.0], rule="extra-token")
    assert codes.shape == (1, 3) and codes[0, 2] == 0 and sizes == [2, 3, 1]


def test_too_many_items_are_refused():
    with pytest.raises(ValueError, match="7 items do not fit into the 6 semantic IDs"):
        resolve(line_model(), [0.0] * 7)


def test_extra_token_is_the_rank_in_the_bucket():
    codes, sizes = resolve(line_model(), [0.2, 0.1, 101.0, 0.0], rule="extra-token")
    assert codes.tolist() == [[0, 0, 2], [0, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert sizes == [2, 3, 3]


def test_extra_token_may_leave_room():
    assert resolve(line_model(), [0.0, 0.0], rule="extra-token", extra_capacity=4)[1] == [2, 3, 4]
    with pytest.raises(ValueError, match="extra_capacity=1"):
        resolve(line_model(), [0.0, 0.0], rule="extra-token", extra_capacity=1)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="shift"):
        resolve(line_model(), [0.0], rule="shift")


@given(st.lists(st.sampled_from([0.0, 0.1, 1.0, 4.0, 100.0, 103.0]), min_size=1, max_size=6))
def test_every_item_gets_its_own_and_codes_stay_in_range(values):
    codes, sizes = resolve(line_model(), values)
    assert len(np.unique(codes, axis=0)) == len(values)
    assert (codes >= 0).all() and (codes < np.array(sizes)).all()
    extra, sizes = resolve(line_model(), values, rule="extra-token")
    assert len(np.unique(extra, axis=0)) == len(values) and (extra < np.array(sizes)).all()


class TestNewItems:
    def test_they_take_what_is_free(self):
        model, taken = line_model(), np.array([[0, 0], [0, 2]])
        new = assign_new(model, np.array([[0.0], [0.2], [104.0]]), taken)
        assert new.tolist() == [[0, 1], [1, 0], [1, 2]]

    def test_a_free_code_is_kept(self):
        assert assign_new(line_model(), np.array([[101.0]]), np.array([[0, 0]])).tolist() == [[1, 1]]

    def test_no_new_items(self):
        with pytest.raises(ValueError, match="shape"):
            assign_new(line_model(), np.zeros((0, 1)), np.array([[0, 0]]))

    def test_the_extra_level_is_filled_up_first(self):
        taken = np.array([[0, 0, 0], [0, 0, 2]])
        new = assign_new(line_model(), np.array([[0.0], [0.0]]), taken, [2, 3, 3])
        assert new.tolist() == [[0, 0, 1], [0, 1, 0]]

    def test_a_full_catalogue_is_an_error(self):
        taken = np.array([[a, b] for a in range(2) for b in range(3)])
        with pytest.raises(ValueError, match="only 0 free"):
            assign_new(line_model(), np.array([[0.0]]), taken)

    def test_a_table_of_another_width_is_an_error(self):
        with pytest.raises(ValueError, match="codebook_sizes"):
            assign_new(line_model(), np.array([[0.0]]), np.array([[0, 0, 0]]))

    def test_nan_names_its_row(self):
        with pytest.raises(ValueError, match="row 1"):
            assign_new(line_model(), np.array([[0.0], [np.nan]]), np.array([[0, 0]]))
