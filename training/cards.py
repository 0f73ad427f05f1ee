"""The cards of a quickstart and of what was aligned from it: beside the parts themselves, and gathered in one folder.

    python -m training.cards --aligned runs/align-orpo-sum --output_dir model_cards/movielens-100k

`--run` is what `make quickstart` left. `--aligned` is what `training.align` left; its `test/report.json` is what
`training.evaluate --model <aligned>/model --output_dir <aligned>/test` wrote. Nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from higr_hf.cards import write_card, write_dataset_card
from higr_hf.evaluation.plots import plot_training
from higr_hf.utils import atomic_write_bytes, atomic_write_text

from ._args import parse_recipe, run

# Part of the run -> name of its gathered card.
PARTS = {"tokenizer": "tokenizer", "quantizer": "quantizer", "model": "pretrained"}
CODE_USAGE = "plots/code_usage.png"
TEST = "test"
KEPT = {"aligned": "the aligned model", "start": "the starting model: no checkpoint was better on validation"}


@dataclass
class CardArguments:
    """Where the runs are, and where their cards are gathered."""

    run: str = field(default="runs/quickstart", metadata={"help": "What the quickstart left."})
    aligned: str | None = field(default=None, metadata={"help": "What training.align left, judged in its test/."})
    output_dir: str | None = field(default=None, metadata={"help": "Gather the cards and their plots here."})


def main(argv: list[str] | None = None) -> list[Path]:
    """Write the cards; returns where they are."""
    (options,) = parse_recipe((CardArguments,), argv, description=__doc__ or "")
    source = Path(options.run)
    report = _read(source / "report.json", "make quickstart")
    of_codes = {caption: file for caption, file in report["plots"].items() if file == CODE_USAGE}
    cards = {}
    for part, name in PARTS.items():
        plots = report["plots"] if part == "model" else of_codes
        cards[name] = write_card(source / part, {**report, "plots": plots}, plots_from=source)
    if options.aligned:
        cards |= aligned_cards(Path(options.aligned), report)
    for path in cards.values():
        print(f"wrote {path}")
    if options.output_dir is None:
        return list(cards.values())
    return [gathered(path, name, Path(options.output_dir)) for name, path in cards.items()]


def aligned_cards(folder: Path, before: Mapping[str, Any]) -> dict[str, Path]:
    """The cards of an aligned model, which shows its start beside it, and of its preference pairs.

    Args:
        folder: of the alignment.
        before: the report of the run that it started from, on the same data.

    Raises:
        SystemExit: for a file that is missing, or a model judged on other data.
    """
    record = _read(folder / "alignment.json", "python -m training.align")
    judged = _read(folder / TEST / "report.json", f"python -m training.evaluate --output_dir {folder / TEST}")
    settings, about = before["settings"], judged["settings"]
    if about["source"] != settings["source"]:
        raise SystemExit(f"error: {folder} was judged on {about['source']}, the run is of {settings['source']}")
    name, own = next(iter(judged["systems"].items()))
    systems = {name: own, "before alignment": before["systems"]["higr"], **dict(list(judged["systems"].items())[1:])}
    (folder / "plots").mkdir(exist_ok=True)
    metric = own.get("primary_metric")
    plot_training(record["log"], folder / "plots" / "alignment.png", metric)
    preferences = record["preferences"]
    alignment = {
        "method": record["method"],
        "kept": KEPT[record["kept"]],
        "pairs": json.dumps(preferences.get("pairs", {})),
        "seconds": round(record["seconds"]),
        **{f"validation {key}": f"{start:.4f} before, {now:.4f} after" for key, start, now in _main(record)},
    }
    known = ("homepage", "citation", "view_rule", "protocol", "parameters")
    report = {
        **judged,
        "systems": systems,
        "settings": {**about, **{key: settings[key] for key in known}, "alignment": alignment},
        "plots": {"Alignment and validation": "plots/alignment.png"},
        "notes": [*judged.get("notes", []), *([f"Kept was {KEPT['start']}."] if record["kept"] == "start" else [])],
        "commands": [*before["commands"][-1:], record["command"], *judged["commands"]],
    }
    pairs = write_dataset_card(
        folder / "preferences",
        source=settings["source"],
        licence=settings["licence"],
        homepage=settings["homepage"],
        citation=settings["citation"],
        tokenizer=f"that of higr-{settings['source']}",
        commands=(record["command"],),
    )
    return {
        "aligned": write_card(folder / "model", report, plots_from=folder),
        "preference_dataset": pairs / "README.md",
    }


def gathered(card: Path, name: str, output: Path) -> Path:
    """A copy of a card, and of the plots that it shows."""
    for plot in sorted(card.parent.glob("plots/*.png")):
        if f"(plots/{plot.name})" in card.read_text(encoding="utf-8"):
            atomic_write_bytes(output / "plots" / plot.name, plot.read_bytes())
    return atomic_write_text(output / f"{name}.md", card.read_text(encoding="utf-8"))


def _main(record: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """NDCG on validation before and after, where both were measured."""
    start = record["start"] or {}
    after = {key: value for key, value in record["metrics"].items() if key.startswith("ndcg@")}
    return [(key, start[key], value) for key, value in after.items() if key in start]


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SystemExit(f"error: there is no {path}: run `{command}` first") from None


if __name__ == "__main__":
    run(main)
