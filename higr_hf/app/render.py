"""Slates as HTML. Everything that a checkpoint brings along is text here, whatever it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from ..vocabulary_higr import LEVEL_LETTERS
from .slates import Slate


def slates_html(answers: Sequence[tuple[str, Slate | str]]) -> str:
    """One column a checkpoint.

    Args:
        answers: name of the checkpoint, and its slate or what stood against it.

    Example:
        >>> print(slates_html([("model", "no item has the id 'x'")]))
        <div class="slates"><section class="slate" aria-label="Slate of model"><h3>model</h3><p class="notice" \
role="alert">no item has the id &#x27;x&#x27;</p></section></div>
    """
    # By title: the item ids of two catalogues are two languages.
    sets = [{_name(place) for place in slate.places} for _, slate in answers if isinstance(slate, Slate)]
    compared = len(answers) > 1 and len(sets) == len(answers)
    common = set.intersection(*sets) if compared else None
    columns = "".join(_column(name, answer, common) for name, answer in answers)
    return f'{_context(answers)}<div class="slates">{columns}</div>'


def _context(answers: Sequence[tuple[str, Slate | str]]) -> str:
    """What the slates answer to and how they are read, once for all of them."""
    slate = next((answer for _, answer in answers if isinstance(answer, Slate)), None)
    if slate is None:
        return ""
    history = " → ".join(escape(item["title"]) for item in slate.history)
    asked = f"After {history}." if history else "Without a history: a new user."
    return f'<p class="context">{asked} Scores are log-probabilities; bars compare them within a slate.</p>'


def _column(name: str, answer: Slate | str, common: set[str] | None) -> str:
    heading = f"<h3>{escape(name)}</h3>"
    if isinstance(answer, str):
        body = f'<p class="notice" role="alert">{escape(answer)}</p>'
    else:
        best = max((place["score"] for place in answer.places), default=0.0)
        places = "".join(_place(place, best, common) for place in answer.places)
        body = (f'<ol class="places">{places}</ol>' if places else "") + _shortfall(answer)
        if common is not None:
            heading += f'<p class="shared">{len(common)} of {len(answer.places)} items in both slates</p>'
    return f'<section class="slate" aria-label="Slate of {escape(name)}">{heading}{body}</section>'


def _shortfall(slate: Slate) -> str:
    if not slate.missing:
        return ""
    wanted = len(slate.places) + slate.missing
    return (
        f'<p class="notice" role="alert">Only {len(slate.places)} of {wanted} places could be filled: history, '
        "exclusions and categories leave no more items. Exclude less, or choose more categories.</p>"
    )


def _place(place: dict[str, Any], best: float, common: set[str] | None) -> str:
    badge = ""
    if common is not None and _name(place) not in common:
        badge = '<span class="badge">only here</span>'
    codes = "".join(f"&lt;{LEVEL_LETTERS[level]}_{code}&gt;" for level, code in enumerate(place["codes"]))
    share = 100 * math.exp(min(0.0, place["score"] - best))
    return (
        f'<li class="place" data-item="{escape(place["item_id"])}">'
        f'<div class="line"><span class="title">{escape(_name(place))}</span>{_score(place["score"])}</div>'
        f'<div class="bar" aria-hidden="true"><span style="width:{share:.0f}%"></span></div>'
        f'<div class="about">{badge}{_chips(place["categories"])}<code title="Semantic ID">{codes}</code></div>'
        f"{_alternates(place)}</li>"
    )


def _alternates(place: dict[str, Any]) -> str:
    if not place["alternates"]:
        return ""
    lines = "".join(
        f'<li><div class="line"><span class="other">{escape(_name(other))}</span>{_score(other["score"])}</div>'
        f'<div class="about">{_chips(other["categories"])}</div></li>'
        for other in place["alternates"]
    )
    count = len(place["alternates"])
    label = f"{count} alternate{'s' if count > 1 else ''} for place {place['slot'] + 1}"
    return f'<details><summary>{label}</summary><ol class="alternates">{lines}</ol></details>'


def _name(place: dict[str, Any]) -> str:
    return place["title"] or place["item_id"]


def _score(score: float) -> str:
    return f'<span class="score" title="Log-probability">{score:.2f}</span>'.replace("-", "−")


def _chips(categories: Sequence[str]) -> str:
    return "".join(f'<span class="chip">{escape(name)}</span>' for name in categories)
