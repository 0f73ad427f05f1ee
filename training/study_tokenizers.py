"""Compare RQ-KMeans, RQ-VAE and CRQ-VAE on the same embeddings, and append the rows to `results/tokenizers.jsonl`.

    python -m training.study_tokenizers --datasets movielens-1m,complete-journey

Then `python -m higr_hf.evaluation.tables render docs/semantic_ids.md` fills in the tables. All metrics are of the raw
codes, before any collision rule. Categories are read by the metrics alone.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from higr_hf.data import leave_last_out, load_source
from higr_hf.data.filters import k_core
from higr_hf.evaluation.results import append_rows, make_row
from higr_hf.semantic_ids import cosine_neighbours, fit_semantic_ids

from ._args import parse_recipe, run
from .fit_tokenizer import positives, vectors


@dataclass
class StudyArguments:
    """What is compared, and on what."""

    study: str = field(default="training/recipes/study_tokenizers.yaml", metadata={"help": "YAML file of the plan."})
    datasets: str = field(default="movielens-1m,complete-journey", metadata={"help": "Comma-separated sources."})
    variants: str = field(default="", metadata={"help": "Comma-separated embedding variants; all when empty."})
    methods: str = field(default="", metadata={"help": "Comma-separated methods of the plan; all when empty."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})


def main(argv: list[str] | None = None) -> None:
    """Run the plan, one fit after the other."""
    (options,) = parse_recipe((StudyArguments,), argv, description=__doc__ or "")
    plan = yaml.safe_load(Path(options.study).read_text(encoding="utf-8"))
    for dataset in options.datasets.split(","):
        log = load_source(dataset)
        if plan["min_item_events"][dataset] > 1:
            log = k_core(log, min_user_events=1, min_item_events=plan["min_item_events"][dataset])
        train = leave_last_out(log, slate_size=5)["train"]
        categories = [list(names) for names in log.items["categories"]]
        for variant, choice in plan["variants"][dataset].items():
            if options.variants and variant not in options.variants.split(","):
                continue
            embeddings = vectors(log, train, choice["embeddings"])
            table = positives(log, train, choice["positives"], embeddings)
            bounds = bounds_of(embeddings, categories)
            for name, settings in plan["methods"].items():
                if options.methods and name not in options.methods.split(","):
                    continue
                for seed in plan["seeds"]:
                    began = time.perf_counter()
                    fitted = fit_semantic_ids(
                        embeddings,
                        codebook_sizes=plan["codebooks"][dataset],
                        positives=table,
                        categories=categories,
                        seed=seed,
                        progress=sys.stderr.isatty(),
                        **settings,
                    )
                    row = make_row(
                        study="tokenizers",
                        dataset=dataset,
                        # Rows name the recommender; which of its tokenizers it is stands in the variant.
                        system="higr",
                        variant=f"{name}, {variant}",
                        seed=seed,
                        metrics={**fitted.metrics, **bounds, "n_items": len(embeddings)},
                        n_users=len(train),
                        seconds=time.perf_counter() - began,
                    )
                    append_rows([row], options.results)
                    shown = ("collision", "consistency", "concentration", "multi_item_prefixes")
                    print(dataset, variant, name, seed, *(f"{n} {fitted.metrics[n]:.4f}" for n in shown), flush=True)


def bounds_of(embeddings: np.ndarray, categories: list[list[str]]) -> dict[str, float]:
    """What the embeddings themselves allow: collisions no quantiser can avoid, and how pure neighbourhoods are.

    `collision_floor` counts the items whose embedding another item has too; `neighbour_consistency` is the chance that
    an item shares a category with its nearest neighbour, which a grouping by these embeddings alone hardly exceeds.
    """
    distinct = len(np.unique(embeddings.round(5), axis=0))
    nearest = cosine_neighbours(embeddings, max_neighbours=1, min_neighbours=1)[:, 0]
    pairs = [
        (set(categories[a]), set(categories[b])) for a, b in enumerate(nearest) if categories[a] and categories[b]
    ]
    return {
        "collision_floor": 1 - distinct / len(embeddings),
        "neighbour_consistency": float(np.mean([bool(a & b) for a, b in pairs])),
    }


if __name__ == "__main__":
    run(main)
