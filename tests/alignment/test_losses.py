from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.alignment.losses import CERTAIN, log_odds, token_log_probs


@given(st.floats(min_value=-60.0, max_value=-2e-6))
def test_log_odds_are_the_logit(log_p):
    expected = log_p - math.log(-math.expm1(log_p))
    assert float(log_odds(torch.tensor(log_p, dtype=torch.float64))) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_log_odds_end_at_certainty():
    log_p = torch.tensor([0.0, -1e-9, CERTAIN, -0.5], requires_grad=True)
    values = log_odds(log_p)
    cap = math.log1p(-1e-6) - math.log(1e-6)
    assert values[:3].tolist() == pytest.approx([cap] * 3, abs=1e-3)
    (values[0] - values[1] + values[3]).backward()
    assert log_p.grad.isfinite().all()
    assert log_p.grad[:2].tolist() == [0, 0]
    assert float(log_p.grad[3]) == pytest.approx(1 / (1 - math.exp(-0.5)))


def test_log_odds_of_the_impossible_are_finite_until_minus_infinity():
    assert float(log_odds(torch.tensor(-1e4))) == -1e4
    assert log_odds(torch.tensor([-1.0], dtype=torch.bfloat16)).dtype == torch.float32


def test_a_token_counts_where_it_is_labelled():
    logits = torch.log(torch.tensor([[[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]]))
    log_probs, mask = token_log_probs(logits, torch.tensor([[-100, 1, -100]]))
    assert mask.tolist() == [[True, False]]
    assert log_probs[0].tolist() == pytest.approx([math.log(0.8), 0.0])
