"""Which choices make quality: train the same small model under one changed choice at a time, judge on validation.

    python -m training.study_model --recipe training/recipes/study_model.yaml --variants base,text,collaborative

Every variant sees the same data, steps and seed; a row a decoding mode is appended to `results/benchmark.jsonl`.
The test split is never touched.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from transformers import TrainingArguments, set_seed

from higr_hf.data import leave_last_out, load_source
from higr_hf.data.embeddings import item_embeddings
from higr_hf.data.encoding import FeatureEdges
from higr_hf.evaluation import append_rows, make_row
from higr_hf.experiment import Experiment, ExperimentSettings
from higr_hf.semantic_ids import fit_semantic_ids
from higr_hf.tokenization_higr import HiGRTokenizer

from ._args import parse_recipe


@dataclass
class StudyArguments:
    """What is compared, and on what."""

    source: str = field(default="movielens-1m", metadata={"help": "Name of a ready source."})
    study: str = field(
        default="training/recipes/study_model_variants.yaml",
        metadata={"help": "YAML file: the common settings, and what each variant changes."},
    )
    variants: str = field(default="", metadata={"help": "Comma-separated variants to run; all when empty."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})


def main(argv: list[str] | None = None) -> None:
    """Run the variants one after the other."""
    study, arguments = parse_recipe((StudyArguments, TrainingArguments), argv, description=__doc__ or "")
    arguments.remove_unused_columns = False
    plan = yaml.safe_load(Path(study.study).read_text(encoding="utf-8"))
    chosen = [name for name in study.variants.split(",") if name] or list(plan["variants"])
    unknown = set(chosen) - set(plan["variants"])
    if unknown:
        raise SystemExit(f"{study.study} has no variants {sorted(unknown)}; there are {sorted(plan['variants'])}")
    log = load_source(study.source)
    splits = leave_last_out(log, slate_size=plan["slate_size"])
    text = item_embeddings(log.items, splits["train"], kind="text")
    fitted: dict[tuple, tuple[np.ndarray, list[int]]] = {}
    for name in chosen:
        settings = _merged(plan["common"], plan["variants"][name] or {})
        set_seed(arguments.seed)
        edges = FeatureEdges(tuple(settings["feedback_edges"]), tuple(settings["time_edges"]))
        wanted = (settings["ids"], settings["method"], tuple(settings["codebook_sizes"]))
        if wanted not in fitted:
            fitted[wanted] = _semantic_ids(log, splits, settings, arguments.seed)
        tokenizer = HiGRTokenizer.from_codes(
            list(log.items["item_id"]),
            *fitted[wanted],
            num_feedback_levels=edges.num_feedback_levels,
            num_time_buckets=edges.num_time_buckets,
        )
        experiment = Experiment(
            splits,
            tokenizer,
            edges,
            ExperimentSettings(
                preset=settings["preset"],
                model=settings["model"],
                collator=settings["collator"],
                eval_users=plan["eval_users"],
            ),
            embeddings=text,
            slate_size=plan["slate_size"],
            seed=arguments.seed,
        )
        began = time.perf_counter()
        experiment.trainer(arguments).train()
        seconds = time.perf_counter() - began
        for label, generation in plan["decoding"].items():
            if generation.get("rerank_weight") and not experiment.config.dense_head:
                continue
            for wish in [None, *settings["wishes"]]:
                recommender = experiment.recommender(generation=generation, wish=wish)
                metrics = experiment.evaluator("validation", num_resamples=0).evaluate(recommender).metrics
                variant = f"{name}, {label}" + ("" if wish is None else f", wish {wish}")
                append_rows(
                    [
                        make_row(
                            study="benchmark",
                            dataset=f"{study.source}-validation",
                            system="higr",
                            variant=variant,
                            metrics=metrics,
                            seed=arguments.seed,
                            seconds=seconds,
                            n_users=len(splits["validation"]),
                        )
                    ],
                    study.results,
                )
                print(variant, " ".join(f"{key} {value:.4f}" for key, value in metrics.items()), flush=True)


def _merged(common: dict, change: dict) -> dict:
    """One level of nested mappings merged; everything else replaced."""
    return {
        key: {**value, **change.get(key, {})} if isinstance(value, dict) else change.get(key, value)
        for key, value in common.items()
    }


def _semantic_ids(log, splits, settings: dict, seed: int) -> tuple[np.ndarray, list[int]]:
    """Codes int64 `[N, L]` and the levels' sizes."""
    sizes, number = list(settings["codebook_sizes"]), len(log.items)
    if settings["ids"] == "random":
        draw = np.random.default_rng(seed).choice(int(np.prod(sizes)), number, replace=False)
        return np.stack(np.unravel_index(draw, sizes), axis=1).astype(np.int64), sizes
    embeddings = item_embeddings(log.items, splits["train"], kind=settings["ids"])
    fitted = fit_semantic_ids(embeddings, method=settings["method"], codebook_sizes=sizes, seed=seed, progress=False)
    return fitted.codes, list(fitted.codebook_sizes)


if __name__ == "__main__":
    main()
