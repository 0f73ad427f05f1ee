"""A person's own log as files, a tokenizer for it, and the options of a run that takes seconds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from higr_hf import HiGRForSlateGeneration, HiGRTokenizer, save_checkpoint
from higr_hf.architectures import architecture
from higr_hf.data import InteractionLog, leave_last_out, synthetic_log

ROOT = Path(__file__).parents[2]
COLUMNS = {"user_id": "uid", "timestamp": "when"}
SLATE_SIZE = 5


def write_log(folder: Path, kind: str = "csv", num_users: int = 64, **sizes: Any) -> InteractionLog:
    """Write `log.<kind>` and `items.<kind>` with column names of their own; returns the log that they hold.

    Topics are longer than histories, so that the next item of the walk is never one of the history.
    """
    log = synthetic_log(num_users=num_users, num_items=120, num_topics=4, **{"length": 20, **sizes})
    events = log.interactions[["user_id", "item_id", "timestamp", "rating"]]
    events = events.rename(columns=COLUMNS)
    items = log.items.to_pandas()
    items["categories"] = items["categories"].map("|".join)
    _write(events, folder / f"log.{kind}")
    _write(items, folder / f"items.{kind}")
    return log


def _write(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)


def write_tokenizer(folder: Path, log: InteractionLog, num_feedback_levels: int = 0, shift: int = 0) -> HiGRTokenizer:
    """Save a tokenizer for the log: the topic, then a place in it; `shift` makes it another one."""
    codes = np.array(list(itertools.product(range(4), range(6), range(5))))
    place = [(number % 4) * 30 + (number // 4 + shift) % 30 for number in (int(item[1:]) for item in log.item_ids)]
    tokenizer = HiGRTokenizer.from_codes(
        log.item_ids,
        codes[place],
        [4, 6, 5],
        num_feedback_levels=num_feedback_levels,
        titles=list(log.items["title"]),
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    return tokenizer


def write_checkpoint(
    path: Path, tokenizer: HiGRTokenizer, system: str = "higr", **config: Any
) -> HiGRForSlateGeneration:
    """A small model of `write_tokenizer`'s items that has learnt nothing, saved where training would have left one."""
    torch.manual_seed(0)
    config_class, model_class = architecture(system)
    sizes = {"codebook_sizes": list(tokenizer.codebook_sizes), "num_items": tokenizer.num_items}
    model = model_class(config_class.from_preset("tiny", **{**sizes, **config}))
    model.set_catalog(torch.as_tensor(np.array(tokenizer.codes)))
    save_checkpoint(path, model, tokenizer)
    return model


def write_recipe(folder: Path, **options: Any) -> list[str]:
    """Write a recipe of the common options with these changes; returns the arguments that name it."""
    settings = {
        "interactions": str(folder / "log.csv"),
        "items": str(folder / "items.csv"),
        "columns": COLUMNS,
        "view_rule": "rating >= 4",
        "diversity_embeddings": "collaborative",
        "model": {"hidden_size": 32, "intermediate_size": 64, "max_history": 20},
        "tokenizer": str(folder / "tokenizer"),
        "output_dir": str(folder / "run"),
        "eval_users": 16,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.005,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, **options}))
    return ["--recipe", str(path)]


def losses(log: Sequence[dict[str, float]] | Path) -> list[float]:
    """The logged training losses, of a log or of a `validation.json`."""
    entries = json.loads(log.read_text())["log"] if isinstance(log, Path) else log
    return [entry["loss"] for entry in entries if "loss" in entry]


def train_rows(log: InteractionLog) -> list[tuple[str, ...]]:
    """The training sequences, as item ids."""
    return [tuple(row) for row in leave_last_out(log, slate_size=SLATE_SIZE)["train"]["history_item_ids"]]
