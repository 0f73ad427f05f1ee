"""What is wrong with a card, found without a network: by huggingface_hub's own reading of it, and a few rules more."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from huggingface_hub import DatasetCard, EvalResult, ModelCard, SpaceCard

_CARDS = {"model": ModelCard, "dataset": DatasetCard, "space": SpaceCard}


def check_card(text: str, repo_type: str = "model") -> list[str]:
    """Problems of a card, a sentence each; empty for a good one.

    The Hub makes its own check, of licence names for example, when a card is uploaded.

    Args:
        text: the whole README.md.
        repo_type: `model`, `dataset` or `space`.

    Example:
        >>> check_card("# No metadata")
        ['The card has no metadata between two lines of `---` at its top.']
    """
    try:
        card = _CARDS[repo_type](text)
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        return [f"The card's metadata cannot be read: {' '.join(str(error).split())}."]
    metadata = card.data.to_dict()
    if not metadata:
        return ["The card has no metadata between two lines of `---` at its top."]
    problems = [*_licence(metadata)]
    if not re.search(r"^# \S", card.text, re.MULTILINE):
        problems.append("The card has no title, a line that starts with `# `.")
    for result in getattr(card.data, "eval_results", None) or []:
        problems += _result(result)
    return problems


def _licence(metadata: dict[str, Any]) -> list[str]:
    licence = metadata.get("license")
    if not isinstance(licence, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        return [f"`license` is {licence!r}: name one of the Hub's licences, or `other` with license_name and _link."]
    missing = [name for name in ("license_name", "license_link") if not metadata.get(name)]
    return [f"`license: other` needs {' and '.join(missing)}."] if licence == "other" and missing else []


def _result(result: EvalResult) -> list[str]:
    value, name = result.metric_value, f"{result.dataset_name}/{result.metric_type}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return [f"The model-index gives {value!r} for {name}: leave a metric without a value out."]
    return []
