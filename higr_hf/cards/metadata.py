"""The YAML at the top of a card: licence, tags and measured results."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from .facts import plain, systems

TAGS = ("higr", "recommender-system", "slate-recommendation", "generative-retrieval", "semantic-ids")
LICENSE_FILE = "LICENSE"
# Licences that the Hub knows by an id, among those that data sources carry.
_KNOWN = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odc-by"}


def licence_fields(source: str, licence: str, homepage: str) -> dict[str, str]:
    """`license` and what belongs to it, from the terms of the data.

    Weights and tables are made from the data, so the data's terms go with them; the Apache licence covers the code.
    Terms without an id on the Hub become `other`, with a link to the data's home, or to the file `LICENSE` beside the
    card where no home is known.

    Example:
        >>> licence_fields("kuairand-pure", "CC BY-SA 4.0", "https://kuairand.com")
        {'license': 'cc-by-sa-4.0'}
    """
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    if slug in _KNOWN:
        return {"license": slug}
    name = re.sub(r"[^a-z0-9.]+", "-", source.lower()).strip("-") or "data"
    link = homepage if homepage.startswith(("https://", "http://")) else LICENSE_FILE
    return {"license": "other", "license_name": f"{name}-terms", "license_link": link}


def model_data(
    name: str,
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    licence: Mapping[str, str],
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    results: bool = True,
) -> ModelCardData:
    """The metadata of a model's card.

    Args:
        name: of the model, for the model-index.
        report: content of report.json.
        rows: measured rows of this system and variant on the same data, one a seed.
        licence: what [`licence_fields`] returns.
        base_model, datasets: ids on the Hub, where there are such.
        tags: beside the usual ones.
        results: whether the report's metrics are this model's.
    """
    evaluated = evaluation_results(report, rows) if results else []
    return ModelCardData(
        **licence,
        base_model=base_model,
        datasets=list(datasets) or None,
        library_name="transformers",
        tags=[*TAGS, *tags],
        model_name=name if evaluated else None,
        eval_results=evaluated or None,
    )


def evaluation_results(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> list[EvalResult]:
    """The first system's metrics, each with its interval over users and, from `rows`, its spread over seeds.

    A metric that exists for no user is left out.
    """
    entry, settings = next(iter(systems(report).values())), report.get("settings", {})
    source = plain(settings.get("source", "unknown"))
    users = (entry.get("counts") or {}).get("users")
    results = []
    for metric, value in entry["metrics"].items():
        if value is None or not math.isfinite(value):
            continue
        arguments: dict[str, Any] = {"seed": report.get("seed")} | ({"users": users} if users else {})
        interval = (entry.get("intervals") or {}).get(metric)
        if interval:
            arguments["interval_95"] = [round(float(bound), 6) for bound in interval]
        measured = {row["seed"]: row["metrics"][metric] for row in rows if metric in row["metrics"]}
        if len(measured) > 1:
            values = np.array(list(measured.values()), dtype=np.float64)
            arguments |= {
                "seeds": len(values),
                "mean_over_seeds": round(float(values.mean()), 6),
                "std_over_seeds": round(float(values.std(ddof=1)), 6),
            }
        results.append(
            EvalResult(
                task_type="slate-recommendation",
                task_name="Slate recommendation",
                dataset_type=source,
                dataset_name=source,
                dataset_split=plain(settings.get("split", "test")),
                metric_type=plain(metric),
                metric_name=plain(metric),
                metric_value=round(float(value), 6),
                metric_args=arguments,
            )
        )
    return results
