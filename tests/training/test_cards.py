"""The cards of a run are written in one command, and the committed ones are good."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from higr_hf.cards import check_card
from tests.hub import card_rules
from tests.hub.conftest import REPORT, make_parts
from tests.training.workspace import ROOT
from training import cards

COMMITTED = sorted((ROOT / "model_cards").glob("*/*.md"))
SETTINGS = {
    "source": "toy", "licence": "CC BY 4.0", "homepage": "https://x.org", "citation": "X 2020.",
    "view_rule": "rating >= 4", "protocol": "leave-last-5-out, test split", "parameters": 4321,
}  # fmt: skip
RECORD = {
    "method": "orpo-sum",
    "command": "python -m training.align --method orpo-sum",
    "kept": "aligned",
    "start": {"ndcg@5": 0.25, "coverage": 0.5},
    "metrics": {"ndcg@5": 0.375, "coverage": 0.5},
    "preferences": {"pairs": {"ranking": 3, "interest": 2}},
    "seconds": 61.2,
    "log": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_ndcg@5": 0.375}],
}


@pytest.fixture
def runs(tmp_path) -> Path:
    """A quickstart and an alignment of it, both tiny."""
    run = make_parts(tmp_path / "run")
    report = REPORT | {"settings": SETTINGS, "commands": ["make quickstart"], "machine": "a machine", "commit": "abc"}
    (run / "report.json").write_text(json.dumps(report))
    aligned = tmp_path / "aligned"
    for part in ("model", "preferences"):
        shutil.copytree(run / part, aligned / part)
    (aligned / "alignment.json").write_text(json.dumps(RECORD))
    judged = {**report, "plots": {}, "notes": [], "commands": ["python -m training.evaluate"]}
    judged["systems"] = {
        "higr": {"metrics": {"ndcg@5": 0.5}, "intervals": {"ndcg@5": [0.4, 0.6]}, "primary_metric": "ndcg@5"},
        "popularity": {"metrics": {"ndcg@5": 0.125}},
    }
    (aligned / "test").mkdir()
    (aligned / "test" / "report.json").write_text(json.dumps(judged))
    return tmp_path


def write(runs: Path) -> dict[str, Path]:
    options = [f"--run={runs / 'run'}", f"--aligned={runs / 'aligned'}", f"--output_dir={runs / 'cards'}"]
    return {path.stem: path for path in cards.main(options)}


def test_one_command_writes_every_card(runs):
    written = write(runs)
    assert set(written) == {"tokenizer", "quantizer", "pretrained", "aligned", "preference_dataset"}
    for name, path in written.items():
        kind = "dataset" if name == "preference_dataset" else "model"
        text = path.read_text(encoding="utf-8")
        assert check_card(text, kind) == [] and card_rules.validate(text, kind) == ([], [])
    assert (runs / "run" / "tokenizer" / "README.md").read_text() == written["tokenizer"].read_text()
    assert {path.name for path in (runs / "cards" / "plots").iterdir()} == {"training.png", "alignment.png"}
    assert (
        "training.png" in written["pretrained"].read_text() and "training.png" not in written["tokenizer"].read_text()
    )


def test_an_aligned_card_shows_what_it_started_from(runs):
    text = write(runs)["aligned"].read_text(encoding="utf-8")
    assert "| `ndcg@5` | 0.5000 | 0.4000 to 0.6000 | 0.2500 | 0.1250 |" in text and "before alignment" in text
    for fact in (
        "| method | orpo-sum |",
        "| validation ndcg@5 | 0.2500 before, 0.3750 after |",
        "python -m training.align",
    ):
        assert fact in text, fact
    assert "starting model" not in text
    (runs / "aligned" / "alignment.json").write_text(json.dumps({**RECORD, "kept": "start"}))
    text = write(runs)["aligned"].read_text(encoding="utf-8")
    assert "Kept was the starting model: no checkpoint was better on validation." in text


def test_what_is_missing_is_said(runs, tmp_path):
    with pytest.raises(SystemExit, match="run `make quickstart` first"):
        cards.main([f"--run={tmp_path / 'none'}"])
    judged = runs / "aligned" / "test" / "report.json"
    content = json.loads(judged.read_text())
    judged.write_text(json.dumps({**content, "settings": {**SETTINGS, "source": "other"}}))
    with pytest.raises(SystemExit, match="was judged on other, the run is of toy"):
        write(runs)
    judged.unlink()
    with pytest.raises(SystemExit, match=r"run `python -m training.evaluate .*test` first"):
        write(runs)


# ---- the committed cards


def test_cards_of_every_kind_are_committed():
    kinds = {"tokenizer", "quantizer", "pretrained", "aligned", "preference_dataset"}
    assert kinds <= {path.stem for path in COMMITTED}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_cards_are_good(path):
    kind = "dataset" if path.stem == "preference_dataset" else "model"
    text = path.read_text(encoding="utf-8")
    assert check_card(text, kind) == [] and card_rules.validate(text, kind) == ([], [])
    for plot in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (path.parent / plot).is_file(), plot
    if kind == "dataset":
        return
    assert re.search(r"commit [0-9a-f]{40}[;,]", text), "measured on a clean commit"
    index = yaml.safe_load(text.split("---\n")[1]).get("model-index")
    if path.stem in ("pretrained", "aligned"):
        metrics = {entry["type"]: entry for result in index[0]["results"] for entry in result["metrics"]}
        low, high = metrics["ndcg@5"]["args"]["interval_95"]
        assert low < metrics["ndcg@5"]["value"] < high
