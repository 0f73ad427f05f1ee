"""The page as a Space of the Hub: a folder that runs by itself, with the package, and checkpoints that lie on disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, SpaceCard, SpaceCardData

from ..checkpoint import may_be_hub_id
from ..hub.files import model_files
from ..utils import atomic_directory

SETTINGS_FILE = "space.json"
TAGS = ("higr", "slate-recommendation", "semantic-ids")
# What the page imports; the Hub itself brings gradio, in the version that the card names.
_NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "scipy", "scikit-learn")
_PACKAGE = Path(__file__).parents[1]
_ASSETS = Path(__file__).parent / "assets"
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def write_space(
    directory: str | os.PathLike,
    models: Sequence[str],
    revisions: Sequence[str | None] = (),
    title: str = "HiGR slates",
) -> Path:
    """Write `app.py`, `requirements.txt`, the card, the package's code, and what is shown.

    A checkpoint that is a directory is copied; one on the Hub is named, and loaded when the Space starts.

    Args:
        directory: where to; replaced as a whole.
        models: one checkpoint, or two to compare: directories or ids on the Hub.
        revisions: one a checkpoint, for those on the Hub.
        title: of the page and the Space.

    Returns:
        The directory. `python app.py` in it serves the page; `push_space` uploads it.

    Raises:
        FileNotFoundError: for a path where no checkpoint lies.
        CheckpointError: for a directory that is not whole.

    Example:
        >>> folder = write_space("runs/space", ["runs/quickstart/model"])
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'app.py', 'higr_hf', 'model-1', 'requirements.txt', 'space.json']
    """
    revisions = list(revisions) or [None] * len(models)
    shown, ids = [], []
    with atomic_directory(directory) as folder:
        for number, (place, revision) in enumerate(zip(models, revisions, strict=True), start=1):
            if Path(place).is_dir() or not may_be_hub_id(place):
                for file in model_files(place):
                    target = folder / f"model-{number}" / file.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.content())
                name = "/".join(Path(place).resolve().parts[-2:])
                shown.append({"place": f"model-{number}", "revision": None, "name": name})
            else:
                ids.append(place)
                shown.append({"place": place, "revision": revision, "name": place})
        shutil.copyfile(_ASSETS / "space_app.py", folder / "app.py")
        (folder / SETTINGS_FILE).write_text(json.dumps({"title": title, "models": shown}, indent=2) + "\n", "utf-8")
        (folder / "requirements.txt").write_text(_requirements(), "utf-8")
        (folder / "README.md").write_text(str(_card(title, ids, _licence(folder))), "utf-8")
        shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return Path(directory)


def _requirements() -> str:
    """The ranges that the package itself asks for, and PyTorch's build for machines without a GPU."""
    wanted = {re.split(r"[^\w-]", line, maxsplit=1)[0]: line for line in importlib.metadata.requires("higr_hf") or ()}
    return "\n".join([f"--extra-index-url {_CPU_INDEX}", *(wanted[name] for name in _NEEDED)]) + "\n"


def _card(title: str, ids: Sequence[str], licence: dict[str, str]) -> SpaceCard:
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=importlib.metadata.version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        models=list(ids) or None,
        tags=list(TAGS),
        short_description="Slates written by a generative recommender",
        **licence,
    )
    text = (_ASSETS / "space_card.md").read_text(encoding="utf-8")
    return SpaceCard(f"---\n{data.to_yaml()}\n---\n{text.replace('TITLE', title)}")


def _licence(folder: Path) -> dict[str, str]:
    """What the cards of the copied checkpoints say; the code's own where nothing was copied."""
    for card in sorted(folder.glob("model-*/README.md")):
        found = ModelCard(card.read_text(encoding="utf-8")).data.to_dict()
        if found.get("license"):
            fields = {name: found[name] for name in ("license", "license_name", "license_link") if name in found}
            if fields.get("license_link") == "LICENSE":
                shutil.copyfile(card.parent / "LICENSE", folder / "LICENSE")
            return fields
    return {"license": "apache-2.0"}
