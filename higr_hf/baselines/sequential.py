"""SASRec, BERT4Rec and HSTU as RecTools implements them, trained and applied by a process of its environment."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ..data.embeddings import training_sequences
from ..utils import atomic_write_json
from .base import Arrays, ScoringBaseline
from .early_stopping import Judgement

if TYPE_CHECKING:
    from datasets import Dataset

WORKER = Path(__file__).with_name("rectools_worker.py")
PYTHON_VARIABLE = "HIGR_RECTOOLS_PYTHON"
DEFAULT_PYTHON = Path(".venv-rectools/bin/python")


@dataclass(frozen=True)
class SequentialSettings:
    """Size and training of a sequential model, in this package's words.

    Attributes:
        factors: width.
        blocks: transformer blocks.
        heads: attention heads.
        dropout: rate.
        max_history: newest events the model reads.
        learning_rate: of Adam.
        batch_size: sequences a step.
        epochs: most passes over the training sequences.
        eval_every: epochs between two judgements on validation.
        patience: judgements without a better NDCG before training stops; 0 to never stop early.
        loss: `softmax` over the catalogue, or `BCE`, `gBCE`, `sampled_softmax` with `negatives` drawn ones.
        negatives: drawn items a position, for the losses that have them.
        split_long: train on all of a long history, in runs of `max_history` events, instead of its end alone.
        mask_rate: share of masked items, BERT4Rec only.
        temperature: that the cosine is divided by, HSTU only.
        slate_size: M of the validation slates.
        exclude_history: whether validation slates may repeat the history.
        seed: of weights, order and dropout.
    """

    factors: int = 64
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.2
    max_history: int = 50
    learning_rate: float = 1e-3
    batch_size: int = 128
    epochs: int = 60
    eval_every: int = 5
    patience: int = 4
    loss: str = "softmax"
    negatives: int = 1
    split_long: bool = True
    mask_rate: float = 0.2
    temperature: float = 0.05
    slate_size: int = 5
    exclude_history: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in ("softmax", "BCE", "gBCE", "sampled_softmax"):
            raise ValueError(f"loss is {self.loss!r}: use softmax, BCE, gBCE or sampled_softmax.")
        if self.factors % self.heads:
            raise ValueError(f"factors ({self.factors}) must be a multiple of heads ({self.heads}).")


class SequentialBaseline(ScoringBaseline):
    """A sequential transformer of RecTools; its next-item scores rank the catalogue, the M best are the slate.

    RecTools needs NumPy below 2 and higr_hf does not run there, so `fit` and `recommend` start the interpreter that
    `HIGR_RECTOOLS_PYTHON` names, by default `.venv-rectools/bin/python`, which `make rectools` builds.

    Args:
        item_ids: the catalogue; the place in it is the item index.
        **settings: fields of [`SequentialSettings`].

    Raises:
        ValueError: for a loss that does not exist, or heads that do not divide the width.
        RuntimeError: without an interpreter that has RecTools, or when its process fails, with what it said.
    """

    def __init__(self, item_ids: Sequence[str], **settings: Any) -> None:
        super().__init__(item_ids, **asdict(SequentialSettings(**settings)))
        self.state: Arrays = {}
        self.outcome: dict[str, Any] = {}

    def fit(self, train: Dataset, validation: Dataset | None = None) -> SequentialBaseline:
        """Train in RecTools' environment; with a validation split the best epoch is kept."""
        events, lengths = training_sequences(train, self.item_ids)
        inputs = {"events": events, "lengths": lengths}
        for prefix, column in (("validation", "history_item_ids"), ("target", "target_item_ids")):
            rows = [] if validation is None else self._indices(validation[column])
            inputs |= {
                f"{prefix}_{name}": array for name, array in zip(("events", "lengths"), _flat(rows), strict=True)
            }
        with tempfile.TemporaryDirectory(prefix="higr_rectools_") as name:
            folder = Path(name)
            self._run(folder, "fit", inputs)
            self.state = load_file(folder / "state.safetensors")
            self.outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        self.history = [Judgement(*row) for row in self.outcome["history"]]
        return self

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """See [`ScoringBaseline.scores`]; each call starts a process, so ask for many users at once."""
        return np.concatenate([np.empty((0, self.num_items), dtype=np.float32), *self.score_blocks(histories)])

    def score_blocks(
        self, histories: Sequence[np.ndarray], times: Sequence[int] | None = None
    ) -> Iterator[np.ndarray]:
        """Scores of one process for all users, `block_size` rows at a time."""
        if not self.state:
            raise RuntimeError(f"This {self.kind} has not been fitted.")
        if not len(histories):
            return
        with tempfile.TemporaryDirectory(prefix="higr_rectools_") as name:
            folder = Path(name)
            save_file(self.state, folder / "state.safetensors")
            self._run(folder, "score", dict(zip(("events", "lengths"), _flat(histories), strict=True)))
            for path in sorted(folder.glob("scores-*.safetensors")):
                yield load_file(path)["scores"]

    def num_parameters(self) -> int:
        """Weights of the network."""
        return int(self.outcome.get("parameters", 0))

    def arrays(self) -> Arrays:
        """The network's weights, the items it knows in its own order, and their counts."""
        # Settings rebuild the network but for its sizes by catalogue, which RecTools keeps in a schema.
        outcome = np.frombuffer(json.dumps(self.outcome).encode(), dtype=np.uint8)
        return {**self.state, "outcome_json": outcome}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up weights and schema."""
        if "outcome_json" not in arrays or "item_order" not in arrays:
            raise ValueError(f"A saved {self.kind} lacks its schema or items: fit and save it again.")
        self.state = {name: array for name, array in arrays.items() if name != "outcome_json"}
        self.outcome = json.loads(arrays["outcome_json"].tobytes())

    def _indices(self, rows: Sequence[Sequence[str]]) -> list[np.ndarray]:
        index = {item: row for row, item in enumerate(self.item_ids)}
        return [np.array([index[item] for item in items if item in index], dtype=np.int64) for items in rows]

    def _run(self, folder: Path, action: str, inputs: Arrays) -> None:
        job = {
            "action": action,
            "kind": self.kind,
            "settings": self.settings,
            "num_items": self.num_items,
            "block_size": self.block_size,
            "schema": self.outcome.get("schema"),
            "checkpoint": None if self.checkpoint is None else str(Path(self.checkpoint).absolute()),
        }
        atomic_write_json(folder / "job.json", job)
        save_file({name: np.ascontiguousarray(array) for name, array in inputs.items()}, folder / "inputs.safetensors")
        # -I: neither this checkout nor the caller's PYTHONPATH may shadow the environment's packages.
        command = [str(rectools_python()), "-I", str(WORKER), str(folder)]
        # As many threads there as here: what the two take is compared.
        threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=threads)
        if done.returncode:
            raise RuntimeError(
                f"{self.kind} failed in RecTools' environment (status {done.returncode}):\n{done.stderr[-2000:]}"
            )


class SASRec(SequentialBaseline):
    """SASRec (Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018); see [`SequentialBaseline`]."""

    kind = "sasrec"


class BERT4Rec(SequentialBaseline):
    """BERT4Rec (Sun et al., CIKM 2019, arXiv 1904.06690); see [`SequentialBaseline`]."""

    kind = "bert4rec"


class HSTU(SequentialBaseline):
    """HSTU (Zhai et al., ICML 2024, arXiv 2402.17152), positions only; see [`SequentialBaseline`]."""

    kind = "hstu"


def rectools_python() -> Path:
    """The interpreter of RecTools' environment.

    Raises:
        RuntimeError: when there is none, saying how to make one.
    """
    path = Path(os.environ.get(PYTHON_VARIABLE) or DEFAULT_PYTHON)
    if not path.is_file():
        raise RuntimeError(
            f"SASRec, BERT4Rec and HSTU run in an environment with RecTools, and {path} is no interpreter: make one "
            f"with `make rectools`, or name another in {PYTHON_VARIABLE}."
        )
    return path.absolute()  # not resolved: the link inside the environment is what makes it that environment


def _flat(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Events of all rows one after the other, and each row's number of them; int64."""
    events = [np.asarray(items, dtype=np.int64) for items in rows]
    return np.concatenate([np.empty(0, dtype=np.int64), *events]), np.array(list(map(len, events)), dtype=np.int64)
