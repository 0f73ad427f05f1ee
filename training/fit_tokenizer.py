"""Fit semantic IDs to a catalogue and write its tokenizer.

    python -m training.fit_tokenizer --recipe training/recipes/tokenizer_movielens-1m.yaml

The output directory holds `tokenizer/` (loads with AutoTokenizer), `quantizer/` (loads with AutoModel; new items get
their semantic IDs from it) and `tokenizer_report.json`. A fit that was killed goes on from `checkpoint/`.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from higr_hf.configuration_crq_vae import CRQVAEConfig
from higr_hf.data import InteractionLog, item_embeddings
from higr_hf.data.embeddings import text_embeddings
from higr_hf.data.encoding import FeatureEdges
from higr_hf.evaluation.results import current_command
from higr_hf.semantic_ids import (
    FitSettings,
    cooccurrence_neighbours,
    cosine_neighbours,
    fit_semantic_ids,
    merge_positives,
)
from higr_hf.tokenization_higr import HiGRTokenizer
from higr_hf.utils import atomic_directory, atomic_write_json, environment_info

from ._args import check_output, mapping, numbers, parse_recipe, run
from ._data import DataArguments, load_splits

if TYPE_CHECKING:
    from datasets import Dataset

EMBEDDINGS = ("title", "text", "collaborative", "both", "random")
POSITIVES = ("embedding", "title", "cooccurrence")


@dataclass
class FitArguments:
    """What is quantised, how, and where it goes. Lists and mappings are written as YAML or JSON."""

    _argument_group_name = "semantic IDs"

    output_dir: str = field(default="runs/tokenizer", metadata={"help": "Directory to write."})
    embeddings: str = field(default="both", metadata={"help": f"{', '.join(EMBEDDINGS)}, or a file of your own."})
    method: str = field(default="crq-vae", metadata={"help": "crq-vae, rq-vae or rq-kmeans."})
    codebook_sizes: str | None = field(
        default=None, metadata={"help": "K of every level, '[128, 128, 128]'; by default from the number of items."}
    )
    positives: str = field(
        default="embedding+cooccurrence",
        metadata={"help": f"What CRQ-VAE pulls together, joined by +: {', '.join(POSITIVES)}."},
    )
    collision_rule: str = field(default="nearest-free", metadata={"help": "nearest-free or extra-token."})
    feedback_edges: str = field(default="[]", metadata={"help": "Ascending cuts of raw feedback into levels."})
    time_edges: str = field(default="[]", metadata={"help": "Ascending cuts of time gaps, in seconds."})
    fit: str = field(default="{}", metadata={"help": "Fields of FitSettings, '{epochs: 100}'."})
    config: str = field(default="{}", metadata={"help": "Further fields of CRQVAEConfig, '{latent_size: 64}'."})
    seed: int = field(default=0, metadata={"help": "Of the whole fit."})
    device: str = field(default="cpu", metadata={"help": "Where the quantiser trains."})


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, write, and return the tokenizer's metrics."""
    options, data = parse_recipe((FitArguments, DataArguments), argv, description=__doc__ or "")
    sizes = None if options.codebook_sizes is None else numbers("codebook_sizes", options.codebook_sizes)
    settings = mapping("fit", options.fit, [entry.name for entry in fields(FitSettings)])
    config = mapping("config", options.config, CRQVAEConfig.__annotations__)
    edges = FeatureEdges(
        tuple(numbers("feedback_edges", options.feedback_edges)), tuple(numbers("time_edges", options.time_edges))
    )
    output = check_output(options.output_dir)
    began = time.perf_counter()
    log, splits = load_splits(data)
    started = time.process_time()
    embeddings = vectors(log, splits["train"], options.embeddings, seed=options.seed)
    similar = None
    if options.method == "crq-vae":
        similar = positives(log, splits["train"], options.positives, embeddings)
    fitted = fit_semantic_ids(
        embeddings,
        method=options.method,
        codebook_sizes=sizes,
        positives=similar,
        categories=log.items["categories"],
        collision_rule=options.collision_rule,
        seed=options.seed,
        config=config,
        device=options.device,
        checkpoint_dir=output / "checkpoint",
        **settings,
    )
    processor_seconds = time.process_time() - started
    tokenizer = HiGRTokenizer.from_codes(
        list(log.items["item_id"]),
        fitted.codes,
        list(fitted.codebook_sizes),
        num_feedback_levels=edges.num_feedback_levels,
        num_time_buckets=edges.num_time_buckets,
        titles=list(log.items["title"]),
        collision_rule=fitted.collision_rule,
    )
    for name, thing in (("quantizer", fitted.model), ("tokenizer", tokenizer)):
        with atomic_directory(output / name) as folder:
            thing.save_pretrained(folder)
    report = {
        "arguments": {**vars(options), **vars(data)},
        "codebook_sizes": list(fitted.codebook_sizes),
        "num_items": len(fitted.codes),
        "metrics": {name: None if math.isnan(value) else value for name, value in fitted.metrics.items()},
        "history": fitted.history,
        "seconds": time.perf_counter() - began,
        "processor_seconds": processor_seconds,
        "command": current_command(),
        "environment": environment_info(),
    }
    atomic_write_json(output / "tokenizer_report.json", report)
    shutil.rmtree(output / "checkpoint", ignore_errors=True)
    print(" ".join(f"{name} {value:.4f}" for name, value in fitted.metrics.items()))
    return fitted.metrics


def vectors(log: InteractionLog, train: Dataset, kind: str, cache_dir: str | None = None, seed: int = 0) -> np.ndarray:
    """Embeddings float32 `[N, E]`.

    `title` reads the titles alone, which hold no category names; `random` are a control, ids of which say nothing.
    """
    if kind == "random":
        return np.random.default_rng(seed).normal(size=(len(log.items), 64)).astype(np.float32)
    if kind == "title":
        return text_embeddings(list(log.items["title"]), cache_dir=cache_dir)
    return item_embeddings(log.items, train, kind=kind, cache_dir=cache_dir)


def positives(log: InteractionLog, train: Dataset, kinds: str, embeddings: np.ndarray) -> np.ndarray:
    """Positives int64 `[N, P]`: kinds are joined by `+`, see `POSITIVES`."""
    tables = []
    for kind in kinds.split("+"):
        if kind == "cooccurrence":
            index = {item_id: row for row, item_id in enumerate(log.items["item_id"])}
            tables.append(cooccurrence_neighbours(train["history_item_ids"], index))
        elif kind in ("embedding", "title"):
            source = embeddings if kind == "embedding" else vectors(log, train, "title")
            tables.append(cosine_neighbours(source))
        else:
            raise SystemExit(f"error: --positives has no kind {kind!r}: join any of {', '.join(POSITIVES)} by +")
    return merge_positives(*tables)


if __name__ == "__main__":
    run(main)
