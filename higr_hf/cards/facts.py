"""What a card can say: read from a directory and from the report of the run, as plain values for the templates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ..semantic_ids.metrics import code_usage, multi_item_groups
from ..tokenization_higr import HiGRTokenizer
from ..vocabulary_higr import LEVEL_LETTERS

SID_PREFIX = "semantic IDs: "
# Settings that a card shows in a place of their own.
_OWN_PLACE = ("source", "licence", "citation", "homepage", "protocol", "view_rule", "alignment", "parameters")
_SID_NAMES = {
    "collision": "collisions before the rule",
    "consistency": "consistency (any shared category)",
    "consistency_chance": "the same by chance",
    "concentration": "concentration",
    "multi_item_prefixes": "prefix groups of more than one item",
    "prefix_cosine": "mean cosine inside prefix groups",
}
_MODEL_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "encoder_layers",
    "planner_layers",
    "generator_layers",
    "encoder_attention",
    "pooling",
    "item_embedding",
    "dense_head",
    "catalog_prior",
    "item_item_decays",
    "item_item_scales",
    "item_item_neighbours",
    "repeat_decays",
    "trend_days",
    "trend_scale",
    "slate_size",
    "max_history",
    "slate_mode",
    "num_beams",
    "rerank_weight",
    "feedback_edges",
    "time_edges",
)
_QUANTIZER_FIELDS = (
    "input_size",
    "latent_size",
    "hidden_sizes",
    "codebook_sizes",
    "autoencoder",
    "quantization_loss",
    "quantization_weight",
    "commitment_weight",
    "contrastive_weight",
    "temperature",
    "normalize_latent",
)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; cells are text of other people and can break neither rows nor columns."""
    lines = [[_cell(cell) for cell in row] for row in [header, *rows]]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: Any) -> str:
    """Somebody else's words on one line, without HTML."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace(">", "&gt;")


def read_config(directory: Path) -> dict[str, Any]:
    """config.json, or nothing where a tokenizer stands alone."""
    path = directory / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def catalogue(directory: Path) -> dict[str, Any]:
    """The tokenizer's catalogue: sizes, and how its codes are used.

    Returns:
        `num_items`, `num_removed`, `catalog_version`, `num_levels`, `codebook_sizes`, `collision_rule`, `titles`
        (bool), `fingerprint`, `example` (an item as text), `usage_table`.
    """
    tokenizer = HiGRTokenizer.from_pretrained(directory, local_files_only=True)
    usage, perplexity = code_usage(tokenizer.codes, tokenizer.codebook_sizes)
    rows = []
    for level, size in enumerate(tokenizer.codebook_sizes):
        prefixes = len(np.unique(tokenizer.codes[:, : level + 1], axis=0))
        rows.append(
            [
                f"{level + 1} (`{LEVEL_LETTERS[level]}`)",
                size,
                f"{usage[level]:.1%}",
                f"{perplexity[level]:.1f}",
                prefixes,
            ]
        )
    return {
        "num_items": tokenizer.num_items,
        "num_removed": int((~tokenizer.active).sum()),
        "catalog_version": tokenizer.catalog_version,
        "num_levels": tokenizer.num_levels,
        "codebook_sizes": list(tokenizer.codebook_sizes),
        "feedback_levels": tokenizer.num_feedback_levels,
        "time_buckets": tokenizer.num_time_buckets,
        "collision_rule": plain(tokenizer.collision_rule or "not stated"),
        "prefix_groups": multi_item_groups(tokenizer.codes),
        "has_titles": tokenizer.titles is not None,
        "fingerprint": tokenizer.fingerprint,
        "usage_table": table(["level", "codes", "used", "perplexity", "distinct prefixes"], rows),
    }


def settings_table(config: Mapping[str, Any]) -> str:
    """The fields of a model's or quantiser's configuration that decide what it is."""
    names = _QUANTIZER_FIELDS if config.get("model_type") == "crq_vae" else _MODEL_FIELDS
    return table(["setting", "value"], [[f"`{name}`", config[name]] for name in names if name in config])


def num_weights(directory: Path) -> int:
    """Numbers in the weight files, catalogue tables included; only the files' headers are read."""
    total = 0
    for path in sorted(directory.glob("model*.safetensors")):
        with safe_open(str(path), framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def run_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says, as values for a template.

    Returns:
        `source`, `licence`, `homepage`, `citation`, `protocol`, `view_rule`, `parameters`, `metrics_table`,
        `primary_line`, `notes`, `sid_table`, `settings_table`, `seconds_table`, `commands`, `seed`, `machine`,
        `versions`, `commit`; empty where the report does not say.
    """
    settings = dict(report.get("settings", {}))
    facts = {name: plain(settings.get(name, "")) for name in _OWN_PLACE if name != "alignment"}
    versions = report.get("versions", {})
    return facts | {
        "source": plain(settings.get("source", "data that the report does not name")),
        "metrics_table": metrics_table(report),
        "primary_line": _primary(report),
        "notes": [plain(note) for note in report.get("notes", [])],
        "sid_table": _sid_table(settings),
        "run_table": table(
            ["setting", "value"],
            [[key, value] for key, value in settings.items() if key not in _OWN_PLACE and SID_PREFIX not in key],
        ),
        "seconds_table": table(["stage", "seconds"], [[k, f"{v:.1f}"] for k, v in report.get("seconds", {}).items()]),
        "commands": [str(command) for command in report.get("commands", [])],
        "seed": report.get("seed", "not stated"),
        "machine": plain(report.get("machine", "not stated")),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": plain(report.get("commit") or "not stated"),
    }


def systems(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """System -> its entry of report.json; the first is the one the card is about.

    Raises:
        ValueError: for something that is no report.
    """
    found = report.get("systems")
    if not isinstance(found, Mapping) or not found or not all("metrics" in entry for entry in found.values()):
        raise ValueError(
            "The report has no `systems` with `metrics`: give the report.json of a run, or a `Report` of "
            "higr_hf.evaluation."
        )
    return dict(found)


def metrics_table(report: Mapping[str, Any]) -> str:
    """Metrics against systems, the first system with its 95 % intervals."""
    entries = systems(report)
    first = next(iter(entries))
    intervals = entries[first].get("intervals") or {}
    names = dict.fromkeys(name for entry in entries.values() for name in entry["metrics"])
    header = ["metric", first, *(["95 % interval"] if intervals else []), *list(entries)[1:]]
    rows = []
    for name in names:
        bounds = intervals.get(name)
        shown = [f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else "–"] if intervals else []
        values = [_number(entry["metrics"].get(name)) for entry in entries.values()]
        rows.append([f"`{name}`", values[0], *shown, *values[1:]])
    return table(header, rows)


def _primary(report: Mapping[str, Any]) -> str:
    first, entry = next(iter(systems(report).items()))
    name = entry.get("primary_metric")
    value = entry["metrics"].get(name) if name else None
    if value is None:
        return ""
    others = [(system, other["metrics"].get(name)) for system, other in list(systems(report).items())[1:]]
    beside = ", ".join(f"{system} {other:.4f}" for system, other in others if other is not None)
    return f"`{name}` {value:.4f} ({plain(first)})" + (f"; {plain(beside)}" if beside else "")


def _sid_table(settings: Mapping[str, Any]) -> str:
    found = {key.removeprefix(SID_PREFIX): value for key, value in settings.items() if key.startswith(SID_PREFIX)}
    return table(["measure", "value"], [[label, found[key]] for key, label in _SID_NAMES.items() if key in found])


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _cell(value: Any) -> str:
    return plain(value).replace("|", "\\|")
