"""What a catalogue looks like: its tree of semantic IDs, single items and prefixes, and what is legal below them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .semantic_ids.metrics import code_usage

if TYPE_CHECKING:
    from .configuration_higr import HiGRConfig
    from .tokenization_higr import HiGRTokenizer


def describe(tokenizer: HiGRTokenizer, config: HiGRConfig | None = None) -> dict[str, Any]:
    """Sizes, version and tree of a catalogue, and the model that reads it where its configuration is given.

    Returns:
        A dictionary that JSON can hold.

    Example:
        >>> import numpy as np
        >>> from higr_hf import HiGRTokenizer
        >>> tokenizer = HiGRTokenizer.from_codes(["milk", "bread"], np.array([[0, 1], [0, 0]]), [2, 2])
        >>> [level["children"] for level in describe(tokenizer)["tree"]]
        [1.0, 2.0]
    """
    codes = tokenizer.codes
    usage, perplexity = code_usage(codes, tokenizer.codebook_sizes)
    tree, parents = [], 1
    for level, size in enumerate(tokenizer.codebook_sizes):
        _, items = np.unique(codes[:, : level + 1], axis=0, return_counts=True)
        tree.append(
            {
                "level": level,
                "codes": size,
                "used": round(usage[level], 4),
                "perplexity": round(perplexity[level], 2),
                "prefixes": len(items),
                "children": round(len(items) / parents, 2),
                "items_below_mean": round(float(items.mean()), 2),
                "items_below_max": int(items.max()),
            }
        )
        parents = len(items)
    content: dict[str, Any] = {
        "items": tokenizer.num_items,
        "removed": int((~tokenizer.active).sum()),
        "version": tokenizer.catalog_version,
        "fingerprint": tokenizer.fingerprint,
        "titles": tokenizer.titles is not None,
        "collision_rule": tokenizer.collision_rule,
        "vocabulary": len(tokenizer),
        "feedback_levels": tokenizer.num_feedback_levels,
        "time_buckets": tokenizer.num_time_buckets,
        "tree": tree,
    }
    if config is not None:
        fields = ("hidden_size", "encoder_layers", "planner_layers", "generator_layers", "slate_size", "slate_mode")
        content["model"] = {name: getattr(config, name) for name in fields}
        content["model"]["belongs"] = config.tokenizer_fingerprint in (None, tokenizer.fingerprint)
    return content


def describe_item(tokenizer: HiGRTokenizer, index: int, limit: int = 20) -> dict[str, Any]:
    """An item's semantic ID, whether it may be recommended, and the items nearest to it in the tree."""
    codes = tokenizer.codes[index]
    shared = (tokenizer.codes == codes).cumprod(axis=1).sum(axis=1)
    shared[index] = -1
    near = np.argsort(-shared, kind="stable")[:limit]
    return {
        **_named(tokenizer, index),
        "index": int(index),
        "codes": codes.tolist(),
        "text": tokenizer.encode_items([int(index)]),
        "legal": bool(tokenizer.active[index]),
        "nearest": [{**_named(tokenizer, row), "shared_levels": int(shared[row])} for row in near if shared[row] > 0],
    }


def describe_prefix(tokenizer: HiGRTokenizer, prefix: Sequence[int], limit: int = 20) -> dict[str, Any]:
    """What lies below a prefix: its children, its items, and how many of them may be recommended.

    A prefix is legal for the decoder when an item that was not removed lies below it.
    """
    depth = len(prefix)
    below = np.flatnonzero((tokenizer.codes[:, :depth] == np.array(prefix, dtype=np.int64)).all(axis=1))
    legal = below[tokenizer.active[below]]
    content: dict[str, Any] = {
        "codes": list(prefix),
        "items": len(below),
        "legal": bool(len(legal)),
        "legal_items": len(legal),
        "examples": [_named(tokenizer, row) for row in below[:limit]],
    }
    if depth < tokenizer.num_levels:
        codes, counts = np.unique(tokenizer.codes[below, depth], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        content["children"] = [
            {
                "code": int(codes[child]),
                "items": int(counts[child]),
                "legal_items": int((tokenizer.codes[legal, depth] == codes[child]).sum()),
            }
            for child in order[:limit]
        ]
        content["more_children"] = max(0, len(codes) - limit)
    return content


def parse_prefix(tokenizer: HiGRTokenizer, text: str) -> list[int]:
    """Codes of `'12,3'` or `'<a_12><b_3>'`.

    Raises:
        ValueError: for something else, more codes than levels, or a code that its level does not have.
    """
    text = text.strip()
    if text.startswith("<"):
        tokens = tokenizer.tokenize(text, add_special_tokens=False)
        ids = tokenizer.convert_tokens_to_ids(tokens)
        codes = [token - offset for token, offset in zip(ids, tokenizer.level_offsets, strict=False)]
    else:
        try:
            codes = [int(code) for code in text.split(",") if code.strip()]
        except ValueError:
            raise ValueError(f"{text!r} is no prefix: write codes, '12,3', or tokens, '<a_12><b_3>'.") from None
        ids = codes
    if len(ids) > tokenizer.num_levels:
        raise ValueError(f"{text!r} has {len(ids)} codes, semantic IDs have {tokenizer.num_levels}.")
    for level, (code, size) in enumerate(zip(codes, tokenizer.codebook_sizes, strict=False)):
        if not 0 <= code < size:
            raise ValueError(f"{text!r} is no prefix of a semantic ID: level {level} has the codes 0 to {size - 1}.")
    return codes


def to_text(content: dict[str, Any], indent: int = 0) -> str:
    """A dictionary as indented lines; lists of dictionaries as tables."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            lines += [f"{'':{indent}}{key}", to_text(value, indent + 2)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{'':{indent}}{key}", *_table(value, indent + 2)]
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{'':{indent}}{key.replace('_', ' '):<16} {_word(shown)}")
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], indent: int) -> list[str]:
    header = list(rows[0])
    cells = [[name.replace("_", " ") for name in header], *([_word(row[name]) for name in header] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return [
        " " * indent + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _word(value: Any) -> str:
    words = {"True": "yes", "False": "no", "None": "-"}  # by name: 1 equals True
    return words.get(str(value), str(value))


def _named(tokenizer: HiGRTokenizer, index: int) -> dict[str, Any]:
    title = tokenizer.titles[index] or None if tokenizer.titles else None
    return {"item_id": tokenizer.item_ids[index], "title": title}
