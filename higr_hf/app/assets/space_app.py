"""The page of this Space; space.json says which checkpoints it shows."""

from __future__ import annotations

import json
from pathlib import Path

from higr_hf.app import SlateModel
from higr_hf.app.page import build_page, serve

HERE = Path(__file__).parent


def main() -> None:
    """Load the checkpoints and serve the page."""
    settings = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
    models = []
    for entry in settings["models"]:
        copied = HERE / entry["place"]
        place = str(copied) if copied.is_dir() else entry["place"]
        models.append(SlateModel.load(place, entry["revision"], name=entry["name"]))
    serve(build_page(models, settings["title"]))


if __name__ == "__main__":
    main()
