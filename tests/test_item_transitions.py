"""Moments by pairs of events: against the regression's rows, written down."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf.item_transitions import transition_moments


def by_rows(sequences, size, decays, slate_size, max_events):
    """Every position's inputs and target, as the regression defines them."""
    gram, cross = np.zeros((len(decays) * size,) * 2), np.zeros((len(decays) * size, size))
    for sequence in sequences:
        for position in range(1, len(sequence)):
            seen = sequence[max(position - max_events, 0) : position]
            inputs = np.zeros((len(decays), size))
            for channel, decay in enumerate(decays):
                weights = np.exp(-np.arange(len(seen))[::-1] / decay)
                np.add.at(inputs[channel], seen, weights / np.linalg.norm(weights))
            target = np.zeros(size)
            np.add.at(target, sequence[position : position + slate_size], 1.0)
            gram += np.outer(inputs, inputs)
            cross += np.outer(inputs, target)
    return gram, cross


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 4), max_size=9), min_size=1, max_size=4),
    decays=st.lists(st.sampled_from([0.7, 2.0, 9.0]), min_size=1, max_size=3, unique=True),
    slate_size=st.integers(1, 4),
    max_events=st.integers(1, 11),
)
def test_pairs_of_events_add_up_to_the_rows(sequences, decays, slate_size, max_events):
    events, lengths = np.concatenate([np.array(row, dtype=np.int64) for row in sequences]), [len(x) for x in sequences]
    gram, cross = transition_moments(events, lengths, 5, decays, slate_size, max_events)
    expected_gram, expected_cross = by_rows([list(row) for row in sequences], 5, decays, slate_size, max_events)
    np.testing.assert_allclose(gram, expected_gram, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cross, expected_cross, rtol=1e-5, atol=1e-6)
    assert gram.dtype == cross.dtype == np.float32


def test_moments_by_hand():
    # Items 0, 1, 2 at decay 1, two of the next items told: position 1 has seen 0, position 2 has seen 0 and then 1.
    gram, cross = transition_moments(np.array([0, 1, 2]), np.array([3]), 3, [1.0], slate_size=2, max_events=5)
    old, new = np.exp(-1) / np.sqrt(1 + np.exp(-2)), 1 / np.sqrt(1 + np.exp(-2))
    np.testing.assert_allclose(gram, [[1 + old**2, old * new, 0], [old * new, new**2, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(cross, [[0, 1, 1 + old], [0, 0, new], [0, 0, 0]], rtol=1e-6)


def test_no_events_have_no_moments():
    gram, cross = transition_moments(np.array([], dtype=np.int64), np.array([0, 0]), 2, [3.0], 5, 60)
    assert not gram.any() and not cross.any()
