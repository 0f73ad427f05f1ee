"""The benchmark's units on disk: one directory a trained system, written whole, taken up again when it is there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from higr_hf.evaluation import EvaluationResult
from higr_hf.utils import atomic_directory, atomic_write_json

_OUTCOME = "unit.json"


@dataclass(frozen=True)
class Outcome:
    """What a unit came to.

    Attributes:
        settings: what it was trained with, seed and ids included.
        validation: metrics on the validation split.
        seconds: of the training.
        parameters: learned numbers.
        machine: that it was trained on; `None` in outcomes from before this was noted.
    """

    settings: dict[str, Any]
    validation: dict[str, float]
    seconds: float
    parameters: int
    machine: str | None = None


class Unit:
    """One system with one setting and one seed on one dataset.

    Its directory is named by its settings' fingerprint, so that a changed plan never takes up an old outcome.

    Args:
        root: the benchmark's output directory.
        dataset, system: names in the plan.
        settings: everything that decides the outcome.
        seed: of the training.
    """

    def __init__(self, root: Path, dataset: str, system: str, settings: Mapping[str, Any], seed: int) -> None:
        text = json.dumps(settings, sort_keys=True)
        self.settings = dict(settings)
        self.folder = root / dataset / system / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}-seed{seed}"
        self.model, self.test = self.folder / "model", self.folder / "test"
        self.work = self.folder.with_name(f"{self.folder.name}.work")

    @property
    def outcome(self) -> Outcome | None:
        """What was written last of all; `None` while the unit is not done."""
        path = self.folder / _OUTCOME
        if not path.is_file():
            return None
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))

    def finish(self, save: Any, outcome: Outcome) -> Outcome:
        """Keep a trained system: `save(directory)` writes the model, the outcome goes beside it, both or neither."""
        with atomic_directory(self.folder) as folder:
            save(folder / "model")
            atomic_write_json(folder / _OUTCOME, asdict(outcome))
        shutil.rmtree(self.work, ignore_errors=True)
        return outcome

    @property
    def test_result(self) -> EvaluationResult | None:
        """The judgement on the test split, if it was made."""
        return EvaluationResult.load(self.test) if self.test.is_dir() else None
