"""The arithmetic of slate preferences: token log-probabilities, log-odds, and the dense head's regulariser."""

from __future__ import annotations

import torch
from torch import nn

from ..layout_higr import SlateLayout

CERTAIN = -1e-6
"""The largest log-probability that log-odds are taken of: nearer to 1 a token's odds are those of 1 - 1e-6."""


def log_odds(log_probs: torch.Tensor) -> torch.Tensor:
    """log[p / (1 - p)] from log p, finite for every p up to and including 1.

    At p = 1 the log-odds are infinite, and infinity minus infinity is not a number. A code level with one legal code
    gives such tokens in every slate. Rule: log p counts as at most -1e-6, so that log-odds end at about 13.8; a token
    there is as good as certain and passes no gradient. p = 0 stays minus infinity's neighbour, log p itself.

    Args:
        log_probs (`FloatTensor [...]`): log p, at most 0.

    Returns:
        `FloatTensor [...]`, in float32 or better.

    Source: HiGR (arXiv 2512.24787), the listwise preference objective; ORPO (arXiv 2403.07691).

    Example:
        >>> log_odds(torch.tensor([0.5, 1.0]).log())
        tensor([ 0.0000, 13.8155])
    """
    exact = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    exact = exact.clamp(max=CERTAIN)
    # log(1 - p), by whichever of two forms keeps its digits.
    near_one = exact > -0.6931471805599453
    small, large = torch.where(near_one, exact, -1.0), torch.where(near_one, -1.0, exact)
    rest = torch.where(near_one, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
    return exact - rest


def token_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every labelled token.

    Args:
        logits (`FloatTensor [B, T, V]`): position t predicts token t + 1.
        labels (`LongTensor [B, T]`): -100 where no token counts.

    Returns:
        `FloatTensor [B, T - 1]` in float32, 0 where no token counts, and the mask `BoolTensor [B, T - 1]`.
    """
    labels = labels[:, 1:]
    mask = labels != -100
    logits = logits[:, :-1].float()
    chosen = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(mask, chosen - logits.logsumexp(-1), 0), mask


def dense_slate_loss(model: nn.Module, plans: torch.Tensor, items: torch.Tensor, layout: SlateLayout) -> torch.Tensor:
    """The dense head's cross-entropy over the slates of some rows: plan vector · item vector, over the catalogue.

    TRL's losses see the head over codes only, and would let the dense head, which re-ranks a beam's items, drift away
    from the plans it reads.

    Args:
        model: a `HiGRForSlateGeneration` with a dense head.
        plans (`FloatTensor [B, U, d]`): of its base model, one a unit.
        items (`LongTensor [B, U]`): catalogue index of every unit, -1 for none.
        layout: the units.

    Returns:
        `FloatTensor []`: mean over the slates' known items; 0 where there is none.
    """
    unit = torch.arange(layout.size - 1, device=plans.device)
    asked = (unit >= layout.num_history[:, None]) & (items[:, 1:] >= 0)
    scores = (plans[:, :-1] @ model.item_vectors().T).float()
    target = torch.where(asked, items[:, 1:], -100)
    total = nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="sum")
    return total / asked.sum().clamp(min=1)
