"""What int8 and bfloat16 cost a trained model in quality, and save in memory, on a CPU.

    make quickstart
    python -m training.study_precision --source movielens-100k

Judges the same weights in float32, bfloat16 and int8 (weights alone, and multiplied as integers) on the test split.
`same_items` is the share of slots that hold the item float32 put there. Rows go to `results/benchmark.jsonl`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from higr_hf.checkpoint import load_checkpoint
from higr_hf.deployment import multiply_in_int8, quantize_int8
from higr_hf.deployment.int8 import size_in_megabytes
from higr_hf.evaluation import SlateEvaluator, append_rows, make_row
from higr_hf.recommender import SlateRecommender

from ._args import mapping, parse_recipe, run
from ._data import DataArguments, load_splits


@dataclass
class StudyArguments:
    """Which model, and how slates are decoded."""

    _argument_group_name = "study"

    model: str = field(default="runs/quickstart/model", metadata={"help": "Directory with model and tokenizer."})
    generation: str = field(
        default="{slate_mode: sequential, num_beams: 20}",
        metadata={"help": "Arguments of generate, as YAML or JSON."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the model's training, for the result rows."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure; returns the metrics by precision."""
    study, data = parse_recipe((StudyArguments, DataArguments), argv, description=__doc__ or "")
    generation = mapping("generation", study.generation)
    _, splits = load_splits(data)
    precisions = {
        "float32": lambda model: model.float(),
        "bfloat16": lambda model: model.to(torch.bfloat16),
        "int8 weights": quantize_int8,
        "int8 products": lambda model: multiply_in_int8(quantize_int8(model)),
    }
    results, rows, reference = {}, [], None
    for name, convert in precisions.items():
        model, tokenizer = load_checkpoint(study.model)
        model = convert(model)
        evaluator = SlateEvaluator(
            splits["test"],
            tokenizer.item_ids,
            slate_size=data.slate_size,
            exclude_history=True,
            num_resamples=0,
            progress=False,
        )
        result = evaluator.evaluate(SlateRecommender(model, tokenizer, data.slate_size, generation=generation))
        reference = result.slates if reference is None else reference
        metrics = {
            **result.metrics,
            "megabytes": size_in_megabytes(model),
            "same_items": float(np.mean(result.slates == reference)),
        }
        results[name] = metrics
        print(f"{name}: " + " ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()), flush=True)
        rows.append(
            make_row(
                study="benchmark",
                dataset=f"{data.name}-precision",
                system="higr",
                variant=name,
                metrics=metrics,
                seed=study.seed,
                seconds=result.timings["seconds"],
                n_users=result.counts["users"],
            )
        )
    append_rows(rows, study.results)
    return results


if __name__ == "__main__":
    run(main)
