"""Trains and applies RecTools' sequential models. Run by an interpreter that has RecTools, never imported.

    python -I rectools_worker.py JOB_DIRECTORY

RecTools wants an older NumPy than higr_hf, so the two never share a process: `job.json` and `inputs.safetensors` come
in, `state.safetensors` and `outcome.json` (or blocks of scores) go out. Source: github.com/MobileTeleSystems/RecTools.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset, IdMap
from rectools.dataset.dataset import DatasetSchema
from rectools.models import BERT4RecModel, HSTUModel, SASRecModel
from rectools.models.nn.transformers.data_preparator import SequenceDataset
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader

MODELS = {"sasrec": SASRecModel, "bert4rec": BERT4RecModel, "hstu": HSTUModel}


def _sibling(path: str) -> ModuleType:
    """A file of higr_hf that needs NumPy at most; the package itself cannot be imported here."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parents[1] / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ranking = _sibling("baselines/ranking.py")
early_stopping = _sibling("baselines/early_stopping.py")
metrics = _sibling("evaluation/metrics.py")
atomic = _sibling("utils/atomic.py")
training_checkpoint = _sibling("baselines/training_checkpoint.py")


class LightningModule(TransformerLightningModule):
    """RecTools' own, its full softmax computed only where there is a target.

    The loss is the same number where there is any target. RecTools scores the catalogue at padded and unmasked places
    too and takes the softmax along a strided axis, which is several times slower on a CPU.
    """

    def training_step(self, batch, batch_idx):
        """As the parent's."""
        if self.loss != "softmax":
            return super().training_step(batch, batch_idx)
        network, known = self.torch_model, batch["y"] != 0
        items = network.item_model.get_all_embeddings()
        states = network.encode_sessions(batch, items)[known]
        logits = network.similarity_module(states, items) / self.logits_t
        losses = torch.nn.functional.cross_entropy(logits, batch["y"][known], reduction="none")
        # A small batch may have no masked item at all: RecTools divides by zero there, and its weights become NaN.
        return (losses * batch["yw"][known]).sum() / known.sum().clamp(min=1)


def build(kind: str, settings: dict, trainer=None):
    """The unfitted RecTools model."""
    options = {
        "n_factors": settings["factors"],
        "n_blocks": settings["blocks"],
        "n_heads": settings["heads"],
        "dropout_rate": settings["dropout"],
        "session_max_len": settings["max_history"],
        "lr": settings["learning_rate"],
        "batch_size": settings["batch_size"],
        "loss": settings["loss"],
        "n_negatives": settings["negatives"],
        "get_trainer_func": trainer,
        "recommend_batch_size": 256,
        "lightning_module_type": LightningModule,
    }
    if kind == "bert4rec":
        options["mask_prob"] = settings["mask_rate"]
    if kind == "hstu":
        # The time of the request, which relative time attention asks for, is told to no system here.
        options |= {"relative_time_attention": False, "relative_pos_attention": True}
        options["lightning_module_kwargs"] = {"logits_t": settings["temperature"]}
    return MODELS[kind](**options)


def sequences(events: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Flat events as one array a user."""
    return np.split(events, np.cumsum(lengths)[:-1]) if len(lengths) else []


def training_dataset(rows: list[np.ndarray], longest: int | None) -> Dataset:
    """A RecTools dataset; `longest` cuts histories into runs of so many events, each one a user of its own."""
    if longest is not None:
        # Runs end where the history ends and share one event, so that every event but the first is a target once.
        rows = [row[max(end - longest, 0) : end] for row in rows for end in range(len(row), 1, 1 - longest)]
    lengths = [len(row) for row in rows]
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(rows)), lengths),
            Columns.Item: np.concatenate(rows),
            Columns.Weight: 1.0,
            # Only the order counts: one second an event keeps it.
            Columns.Datetime: pd.to_datetime(np.concatenate([np.arange(length) for length in lengths]), unit="s"),
        }
    )
    return Dataset.construct(frame)


class Scorer:
    """Scores of all items for histories, in the catalogue's numbering."""

    def __init__(self, model, num_items: int, counts: np.ndarray) -> None:
        self.model, self.counts = model, counts
        known = model.data_preparator.get_known_item_ids()
        self.known = np.asarray(known, dtype=np.int64)
        self.internal = np.full(num_items, -1, dtype=np.int64)
        self.internal[self.known] = model.data_preparator.get_known_items_sorted_internal_ids()

    def __call__(self, histories: list[np.ndarray]) -> np.ndarray:
        """float32 `[U, N]`, -inf for items that training has not seen."""
        inside = [self.internal[items][self.internal[items] >= 0].tolist() for items in histories]
        scores = np.full((len(histories), len(self.internal)), -np.inf, dtype=np.float32)
        rows = np.array([row for row, items in enumerate(inside) if items], dtype=np.int64)
        if len(rows):
            scores[rows[:, None], self.known] = self._known_scores([inside[row] for row in rows])
        # A history of which nothing is known says nothing: those users get the popular items.
        for row in (row for row, items in enumerate(inside) if not items):
            scores[row, self.known] = np.log1p(self.counts[self.known])
        return scores

    def _known_scores(self, sessions: list[list[int]]) -> np.ndarray:
        loader = DataLoader(
            SequenceDataset(sessions, [[1.0] * len(session) for session in sessions]),
            batch_size=256,
            collate_fn=self.model.data_preparator._collate_fn_recommend,
        )
        module = self.model.lightning_model
        users, items = module._get_user_item_embeddings(loader, None)
        with torch.no_grad():
            scores = module.torch_model.similarity_module(users, items.cpu())
        return scores[:, self.internal[self.known]].numpy()


class Validate(Callback):
    """Judges the model every few epochs by the NDCG of validation slates, as the evaluator does.

    After a judgement the training is kept in a file; one that was killed goes on from there. Weights, optimizer and
    judgements are as they were; the order of batches and BERT4Rec's masks are drawn anew.
    """

    def __init__(self, arrays: dict, settings: dict, num_items: int, kept=None) -> None:
        self.histories = sequences(arrays["validation_events"], arrays["validation_lengths"])
        targets = sequences(arrays["target_events"], arrays["target_lengths"])
        self.targets = np.full((len(targets), max(map(len, targets), default=0)), -1, dtype=np.int64)
        for row, items in enumerate(targets):
            self.targets[row, : len(items)] = items
        self.counts = np.bincount(arrays["events"], minlength=num_items)
        self.settings, self.num_items, self.kept = settings, num_items, kept
        self.taken_up = 0
        self.best = early_stopping.KeepBest(settings["patience"])
        self.model = None

    def on_train_start(self, trainer, module) -> None:
        """Only now does the clock run: preparing the data is no training."""
        self.best = early_stopping.KeepBest(self.settings["patience"])
        if self.kept is None:
            return
        epoch, _ = self.kept.take_up(module.torch_model, trainer.optimizers[0], self.best)
        if epoch:
            self.taken_up = epoch
            seed_everything(self.settings["seed"] + epoch, workers=True, verbose=False)  # not the first masks again
            progress = trainer.fit_loop.epoch_progress.current
            progress.ready = progress.started = progress.processed = progress.completed = epoch
            trainer.should_stop |= self.best.done

    def on_train_epoch_end(self, trainer, module) -> None:
        """Judge, keep the best weights, and stop the trainer when there is nothing more to gain."""
        epoch = trainer.current_epoch + 1
        last = epoch == self.settings["epochs"]
        if not self.histories or (epoch % self.settings["eval_every"] and not last):
            return
        weights = module.torch_model.state_dict
        trainer.should_stop |= self.best.judge(epoch, self._ndcg, lambda: {k: v.clone() for k, v in weights().items()})
        module.torch_model.train()
        if self.kept is not None:
            self.kept.keep(module.torch_model, trainer.optimizers[0], self.best, epoch, trainer.global_step)
        print(f"epoch {epoch}: validation ndcg {self.best.history[-1].score:.4f}", file=sys.stderr, flush=True)

    def _ndcg(self) -> float:
        scorer = Scorer(self.model, self.num_items, self.counts)
        scores = scorer(self.histories)
        exclude = self.histories if self.settings["exclude_history"] else None
        slates = ranking.top_items(scores, self.settings["slate_size"], exclude)
        return metrics.mean_over_users(metrics.ndcg_per_user(slates, self.targets))


def fit(folder: Path, job: dict, arrays: dict) -> None:
    """Train; leaves the best weights, what rebuilds the network around them, and the curve."""
    settings, num_items = job["settings"], job["num_items"]
    seed_everything(settings["seed"], workers=True, verbose=False)
    kept = None
    if job["checkpoint"] is not None:
        decides = {name: job[name] for name in ("kind", "settings", "num_items")} | {"events": len(arrays["events"])}
        path = Path(job["checkpoint"])
        kept = training_checkpoint.TrainingCheckpoint(path, decides, atomic.atomic_write_bytes)
    validate = Validate(arrays, settings, num_items, kept)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=settings["epochs"],
            callbacks=[validate],
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = build(job["kind"], settings, trainer)
    validate.model = model
    rows = [row for row in sequences(arrays["events"], arrays["lengths"]) if len(row) > 1]
    data = training_dataset(rows, settings["max_history"] + 1 if settings["split_long"] else None)
    model._build_model_from_dataset(data)
    # RecTools copies its trainer, callbacks included, before it fits: this one must see the judgements.
    trainer().fit(model.lightning_model, model.data_preparator.get_dataloader_train())
    state = validate.best.state or model.torch_model.state_dict()
    arrays = {f"model.{name}": value.detach().cpu().contiguous().numpy() for name, value in state.items()}
    arrays["item_order"] = np.asarray(model.data_preparator.get_known_item_ids(), dtype=np.int64)
    arrays["counts"] = validate.counts
    save_file(arrays, folder / "state.safetensors")
    outcome = {
        "schema": model.lightning_model.dataset_schema,
        "parameters": sum(p.numel() for p in model.torch_model.parameters()),
        "epoch": validate.best.epoch,
        "history": validate.best.history,
        "taken_up": validate.taken_up,
    }
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    if kept is not None:
        kept.remove()


def restore(job: dict, arrays: dict):
    """The fitted model from its settings, its schema and its weights; no dataset and no pickle."""
    model = build(job["kind"], job["settings"])
    preparator = model.data_preparator
    order = [*preparator.item_extra_tokens, *arrays["item_order"].tolist()]
    preparator.item_id_map = IdMap(np.array(order, dtype=object))
    preparator._init_extra_token_ids()
    network = model._init_torch_model(
        model._construct_item_net_from_dataset_schema(DatasetSchema.model_validate(job["schema"]))
    )
    weights = {name.removeprefix("model."): torch.from_numpy(a) for name, a in arrays.items() if name[:6] == "model."}
    network.load_state_dict(weights)
    model._init_lightning_model(network, job["schema"], preparator.item_id_map.external_ids, {})
    model.is_fitted = model.lightning_model.is_fitted = True
    return model


def score(folder: Path, job: dict, arrays: dict) -> None:
    """Scores of all items for the job's histories, `block_size` users a file."""
    state = load_file(folder / "state.safetensors")
    scorer = Scorer(restore(job, state), job["num_items"], state["counts"])
    histories, size = sequences(arrays["events"], arrays["lengths"]), job["block_size"]
    for number, start in enumerate(range(0, len(histories), size)):
        block = scorer(histories[start : start + size])
        save_file({"scores": block}, folder / f"scores-{number:05d}.safetensors")


def main(directory: str) -> None:
    """Do the job of a directory."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    folder = Path(directory)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    {"fit": fit, "score": score}[job["action"]](folder, job, load_file(folder / "inputs.safetensors"))


if __name__ == "__main__":
    main(sys.argv[1])
