"""A Space is a folder that runs by itself: with its own copy of the package, and nothing its requirements lack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from higr_hf import save_checkpoint
from higr_hf.app.space import write_space
from higr_hf.cards import check_card
from higr_hf.checkpoint import CheckpointError
from higr_hf.item_categories import CATEGORIES_FILE
from tests.app.conftest import CATEGORIES, make_checkpoint
from tests.hub import card_rules

CARD = "---\nlicense: other\nlicense_name: films-terms\nlicense_link: LICENSE\n---\n# Films\n"

ALONE = """
import sys
for absent in ("trl", "datasets", "accelerate", "evaluate", "pyarrow", "peft", "matplotlib"):
    sys.modules[absent] = None
import app, higr_hf
app.serve = lambda page: print("SERVED", page.title, higr_hf.__file__)
app.main()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    extra = {CATEGORIES_FILE: json.dumps(CATEGORIES), "README.md": CARD, "LICENSE": "research only"}
    return save_checkpoint(tmp_path_factory.mktemp("runs") / "model", *make_checkpoint(), extra)


@pytest.fixture(scope="module")
def space(checkpoint, tmp_path_factory) -> Path:
    return write_space(tmp_path_factory.mktemp("space") / "page", [str(checkpoint), "me/other"], [None, "v1"], "Films")


def test_a_space_runs_by_itself(space, checkpoint, tmp_path):
    alone = write_space(tmp_path / "alone", [str(checkpoint)], title="Films")
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=alone, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"SERVED Films {alone / 'higr_hf' / '__init__.py'}" in done.stdout


def test_what_is_shown_is_copied_or_named(space):
    shown = json.loads((space / "space.json").read_text())
    assert shown["title"] == "Films"
    assert [(entry["place"], entry["revision"]) for entry in shown["models"]] == [
        ("model-1", None),
        ("me/other", "v1"),
    ]
    copied = {path.name for path in (space / "model-1").iterdir()}
    assert {"model.safetensors", "items.json", CATEGORIES_FILE, "config.json"} <= copied
    assert not list(space.rglob("__pycache__")) and (space / "higr_hf" / "app" / "assets" / "tree.js").is_file()
    _, *lines = (space / "requirements.txt").read_text().splitlines()
    ranges = {requirement.name: str(requirement.specifier) for requirement in map(Requirement, lines)}
    assert ">=" in ranges["torch"] and "trl" not in ranges


def test_the_card_is_a_spaces(space):
    text = (space / "README.md").read_text(encoding="utf-8")
    assert card_rules.validate(text, "space") == ([], []) and check_card(text, "space") == []
    found = yaml.safe_load(text.split("---\n")[1])
    assert (found["sdk"], found["app_file"], found["models"]) == ("gradio", "app.py", ["me/other"])
    # The data's terms go where the weights go.
    assert (found["license_name"], found["license_link"]) == ("films-terms", "LICENSE")
    assert (space / "LICENSE").read_text() == "research only"


def test_what_is_no_checkpoint_makes_no_space(tmp_path, checkpoint):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint directory"):
        write_space(tmp_path / "space", [str(tmp_path / "nothing")])
    (tmp_path / "half").mkdir()
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        write_space(tmp_path / "space", [str(checkpoint), str(tmp_path / "half")])
    assert not (tmp_path / "space").exists()
