"""A directory and the report of its run, made into a README.md that stands beside the weights."""

from __future__ import annotations

import dataclasses
import json
import os
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import CardData, DatasetCard, ModelCard
from jinja2 import Environment, meta

from ..evaluation.tables import TableSpec, render_table
from ..utils import atomic_write_bytes, atomic_write_text
from .check import check_card
from .facts import catalogue, num_weights, plain, read_config, run_facts, settings_table, systems, table
from .metadata import LICENSE_FILE, licence_fields, model_data

if TYPE_CHECKING:
    from ..evaluation import Report

KINDS = ("tokenizer", "quantizer", "pretrained", "aligned")
# What stands in a card for the repository's id until it is pushed, and the id is known.
PLACEHOLDER = "OWNER/NAME"
# Tokenizer and quantiser say the same things, from two sides.
_TEMPLATES = {"quantizer": "tokenizer"}


def write_card(
    directory: str | os.PathLike,
    report: Report | Mapping[str, Any] | str | os.PathLike,
    *,
    plots_from: str | os.PathLike | None = None,
    **options: Any,
) -> Path:
    """Write the card of a model, tokenizer or quantiser, and copy the plots that it shows.

    Args:
        directory: what `save_checkpoint` or `save_pretrained` wrote; the card goes into it.
        report: of the run: a [`Report`], the content of report.json, or where that lies.
        plots_from: the directory that the report's plots are relative to; where report.json lies, by default.
        **options: of [`render_card`].

    Returns:
        `<directory>/README.md`.

    Raises:
        FileNotFoundError: when directory, report or a plot of the report is missing.
        ValueError: for a report without results, or a card that the checks refuse.

    Example:
        >>> report.save("runs/quickstart")
        >>> write_card("runs/quickstart/model", report, plots_from="runs/quickstart")
    """
    directory = Path(directory)
    if isinstance(report, (str, os.PathLike)):
        path = Path(report) / "report.json" if Path(report).is_dir() else Path(report)
        plots_from = path.parent if plots_from is None else plots_from
        report = path
    content = _content(report)
    plots = content.get("plots", {}) if plots_from is not None else {}
    card = render_card(directory, content | {"plots": plots}, **options)
    for file in plots.values():
        source = Path(plots_from) / file
        if not source.is_file():
            raise FileNotFoundError(f"The report shows {source}, which is missing: make the plots again.")
        atomic_write_bytes(directory / _inside(file), source.read_bytes())
    if card.data.to_dict().get("license_link") == LICENSE_FILE:
        atomic_write_text(directory / LICENSE_FILE, terms(run_facts(content)))
    return atomic_write_text(directory / "README.md", str(card))


def render_card(
    directory: str | os.PathLike,
    report: Report | Mapping[str, Any] | str | os.PathLike,
    *,
    kind: str | None = None,
    name: str | None = None,
    repo_id: str = PLACEHOLDER,
    rows: Sequence[Mapping[str, Any]] = (),
    variant: str | None = None,
    alignment: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    licence: Mapping[str, str] | None = None,
    templates: str | os.PathLike | None = None,
) -> ModelCard:
    """The card as an object, not written.

    Args:
        directory: of the model, tokenizer or quantiser.
        report: see [`write_card`].
        kind: one of `KINDS`; by default what the directory holds, `aligned` where there is an `alignment`.
        name: of the model; by default from kind and data.
        repo_id: where it will stand; filled in by `push_release` when it is left out.
        rows: measured rows (`read_rows`), for the table over seeds; those of the report's data are taken.
        variant: which rows of system `higr` are runs of this very model; they give the spread in the model-index.
        alignment: how the model was aligned, `method` and what else decided it; also from the report's settings.
        base_model, datasets: ids on the Hub of what it was aligned from and on.
        licence: fields `license`, `license_name`, `license_link`, where the data's terms are not what counts.
        templates: directory of the templates, `model_cards/` by default.

    Raises:
        ValueError: for a report without results, an unknown kind, a template that asks for a value that there is not,
            or a card that the checks refuse.
    """
    directory, report = Path(directory), _content(report)
    config = read_config(directory)
    settings = report.get("settings", {})
    alignment = alignment or settings.get("alignment") or {}
    kind = kind or _kind(config, bool(alignment))
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: use one of {', '.join(KINDS)}.")
    facts = run_facts(report)
    rows = [row for row in rows if row["dataset"] == settings.get("source")]
    own_rows = [row for row in rows if row["system"] == "higr" and row["variant"] == variant]
    fields = licence or licence_fields(facts["source"], facts["licence"], str(settings.get("homepage", "")))
    name = plain(name) if name else f"higr-{facts['source']}" + ("" if kind == "pretrained" else f"-{kind}")
    data = model_data(
        name,
        report,
        own_rows,
        licence=fields,
        base_model=base_model,
        datasets=datasets,
        tags=[kind],
        results=kind in ("pretrained", "aligned"),
    )
    values = facts | {
        "kind": kind,
        "name": name,
        "repo_id": repo_id,
        "model_table": settings_table(config),
        "weights": num_weights(directory),
        "slate_size": config.get("slate_size", 5),
        "seeds_table": _seeds_table(rows, report),
        "plots": [(plain(caption), _inside(file)) for caption, file in report.get("plots", {}).items()],
        "alignment_table": table(["setting", "value"], list(alignment.items())),
        "alignment_method": plain(alignment.get("method", "a preference method that the report does not name")),
        "base_model": base_model or "",
        "preferences": list(datasets),
        "catalogue": None if kind == "quantizer" else catalogue(directory),
    }
    return from_template(ModelCard, data, kind, values, templates)


def from_template(
    card_class: type[ModelCard] | type[DatasetCard],
    data: CardData,
    kind: str,
    values: Mapping[str, Any],
    templates: str | os.PathLike | None = None,
) -> ModelCard | DatasetCard:
    """Fill in a template, and check what came out.

    Raises:
        ValueError: when the template asks for a value that is not given, or the card does not pass [`check_card`].
    """
    path = template_path(kind, templates)
    wanted = meta.find_undeclared_variables(Environment().parse(path.read_text(encoding="utf-8")))
    missing = sorted(wanted - {*values, "card_data"})
    if missing:
        # jinja2 would leave a hole in their place.
        raise ValueError(f"{path} asks for {', '.join(missing)}, which a card of this kind does not have.")
    card = card_class.from_template(data, template_path=str(path), **values)
    problems = check_card(str(card), card.repo_type)
    if problems:
        raise ValueError(f"The card made from {path} is not right: {' '.join(problems)}")
    return card


def template_path(kind: str, templates: str | os.PathLike | None = None) -> Path:
    """Where the template of a kind of card lies: in the given directory, the repository, or what pip installed.

    Raises:
        FileNotFoundError: when it is nowhere.
    """
    name = f"{_TEMPLATES.get(kind, kind)}.md"
    installed = Path(sysconfig.get_path("data")) / "share" / "higr_hf" / "model_cards"
    places = [Path(templates)] if templates is not None else [Path(__file__).parents[2] / "model_cards", installed]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(
        f"There is no card template {name} in {' or '.join(map(str, places))}: give `templates`, the directory "
        "model_cards/ of the repository."
    )


def _content(report: Report | Mapping[str, Any] | str | os.PathLike) -> dict[str, Any]:
    """The content of report.json."""
    if isinstance(report, (str, os.PathLike)):
        path = Path(report) / "report.json" if Path(report).is_dir() else Path(report)
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no report {path}: give the report.json of the run.") from None
        except ValueError as error:
            raise ValueError(f"{path} is truncated or corrupt ({error}): run again.") from error
    elif dataclasses.is_dataclass(report):
        report = report.to_dict()
    if not isinstance(report, Mapping):
        raise ValueError(f"A report is a mapping, as report.json holds one; got {type(report).__name__}.")
    systems(report)
    return dict(report)


def _kind(config: Mapping[str, Any], aligned: bool) -> str:
    if not config:
        return "tokenizer"
    if config.get("model_type") == "crq_vae":
        return "quantizer"
    return "aligned" if aligned else "pretrained"


def _seeds_table(rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> str:
    """All systems measured on these data, mean ± standard deviation over seeds; empty without rows."""
    if not rows:
        return ""
    entry = next(iter(systems(report).values()))
    known = {name for row in rows for name in row["metrics"]}
    metrics = tuple(name for name in entry["metrics"] if name in known)
    sort = entry.get("primary_metric")
    spec = TableSpec(rows[0]["study"], metrics, sort=sort if sort in metrics else None)
    return render_table(list(rows), spec).rstrip() if metrics else ""


def _inside(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"The report's plot {file!r} lies outside the report's directory.")
    return str(path)


def terms(facts: Mapping[str, Any]) -> str:
    """The file LICENSE, where the data's terms have no home to link to."""
    return (
        f"The Python files here are part of higr_hf and are licensed under Apache-2.0.\n\n"
        f"Weights, tables and item names were made from {facts['source']}, whose terms are:\n\n"
        f"{facts['licence'] or 'not stated'}\n"
    )
