"""Feedback rules are read by hand, never evaluated as code."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from higr_hf.data import DataError
from higr_hf.data.rules import apply_rule

TABLE = pd.DataFrame({"rating": [5.0, 2.0, np.nan, 4.0], "like": [0, 1, None, 1], "hate": [0, 0, 0, 1]})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("rating >= 4", [True, False, False, True]),
        ("rating <= 2", [False, True, False, False]),
        ("rating != 5", [False, True, False, True]),
        ("like", [False, True, False, True]),
        ("not like", [True, False, False, False]),
        ("rating > 4 or like", [True, True, False, True]),
        ("like and not hate or rating == 5", [True, True, False, False]),
    ],
)
def test_rules_and_unknown_values(rule, expected):
    assert apply_rule(rule, TABLE).tolist() == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("rating => 4", "cannot read the condition"),
        ("__import__('os')", "cannot read the condition"),
        ("stars >= 4", "'stars'"),
        ("rating >= high", "'high'"),
    ],
)
def test_bad_rules_are_named(rule, message):
    with pytest.raises(DataError, match=message):
        apply_rule(rule, TABLE)
