"""How well items are recommended that joined after training, apart from those the model was trained on.

    python -m training.study_cold_items

A share of the items, drawn at random, is hidden from the quantiser, the training and the popularity counts. Then they
join: semantic IDs from the fitted quantiser, no training. Test slates are judged once on the targets that the model
was trained on (warm) and once on those it was not (cold). The same model trained with every item in the log says what
the cold targets' quality would be if they were not cold. Rows go to `results/benchmark.jsonl`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import set_seed

from higr_hf.baselines import Popularity
from higr_hf.data.embeddings import item_embeddings
from higr_hf.data.encoding import FeatureEdges
from higr_hf.evaluation import SlateEvaluator, append_rows, make_row
from higr_hf.evaluation.cold_items import hide_items, restrict_targets
from higr_hf.experiment import Experiment, ExperimentSettings
from higr_hf.living import add_items
from higr_hf.recommender import SlateRecommender
from higr_hf.semantic_ids import fit_semantic_ids
from higr_hf.tokenization_higr import HiGRTokenizer

from ._args import TrainerArguments, mapping, numbers, parse_recipe, run
from ._data import DataArguments, load_splits

if TYPE_CHECKING:
    from datasets import DatasetDict

    from higr_hf.evaluation.evaluator import Batch

RECIPE = Path(__file__).parent / "recipes" / "study_cold_items.yaml"


@dataclass
class StudyArguments:
    """What is hidden, the model, and where the rows go."""

    _argument_group_name = "study"

    cold_share: float = field(default=0.1, metadata={"help": "Share of the items that join after training."})
    embeddings: str = field(
        default="text", metadata={"help": "text, or a .npy file: what is known of an item nobody has met yet."}
    )
    codebook_sizes: str = field(default="[64, 64, 64]", metadata={"help": "Codes of every level."})
    preset: str = field(default="tiny", metadata={"help": "tiny, small or base."})
    model: str = field(default="{}", metadata={"help": "Further fields of HiGRConfig."})
    collator: str = field(default="{}", metadata={"help": "Fields of SlateCollator."})
    generation: str = field(default="{}", metadata={"help": "Arguments of generate."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})

    def __post_init__(self) -> None:
        if self.embeddings in ("collaborative", "both"):
            raise ValueError("--embeddings must be known before anybody meets an item: text, or a .npy file")
        if not 0 < self.cold_share < 1:
            raise ValueError(f"--cold_share must lie between 0 and 1, got {self.cold_share}")


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train with and without the cold items, let them join, measure; returns the metrics by variant."""
    study, data, arguments = parse_recipe(
        (StudyArguments, DataArguments, TrainerArguments), argv, description=__doc__ or "", default_recipe=RECIPE
    )
    arguments.remove_unused_columns = False
    log, splits = load_splits(data)
    embeddings = item_embeddings(log.items, kind=study.embeddings)
    draw = np.random.default_rng(arguments.seed)
    cold = np.sort(draw.choice(len(log.items), max(1, round(study.cold_share * len(log.items))), replace=False))
    cold_ids = {log.item_ids[row] for row in cold.tolist()}
    warm = np.setdiff1d(np.arange(len(log.items)), cold)

    known, seconds = splits_without(splits, cold_ids), {}
    print(f"\n== Training without {len(cold)} of {len(log.items)} items", flush=True)
    began = time.perf_counter()
    experiment, quantizer = train(study, data, arguments, known, log.item_ids, embeddings, warm)
    seconds["cold"] = time.perf_counter() - began
    model, tokenizer = experiment.model, experiment.tokenizer
    add_items(model, tokenizer, quantizer, [log.item_ids[row] for row in cold.tolist()], embeddings[cold])
    joined = SlateRecommender(model, tokenizer, data.slate_size, generation=mapping("generation", study.generation))
    only_cold = np.zeros(tokenizer.num_items, dtype=bool)
    only_cold[len(warm) :] = True
    among_cold = replace(joined, generation={**joined.generation, "allowed": torch.from_numpy(only_cold)})

    def one_slot_for_them(batch: Batch) -> np.ndarray:
        """All slots but the last as ever, the last from the items that joined."""
        first = replace(joined, slate_size=data.slate_size - 1)(batch)
        taken = [np.append(items, row) for items, row in zip(batch["exclude_indices"], first, strict=True)]
        last = replace(among_cold, slate_size=1)({**batch, "exclude_indices": taken})
        return np.concatenate([first, last], axis=1)

    print("\n== Training with every item", flush=True)
    began = time.perf_counter()
    everything, _ = train(study, data, arguments, splits, log.item_ids, embeddings, np.arange(len(log.items)))
    seconds["all"] = time.perf_counter() - began
    trained = everything.recommender()
    popular = Popularity(tokenizer.item_ids).fit(known["train"])

    def popularity(batch):
        return popular(batch, data.slate_size)

    targets = {"cold": cold_ids, "warm": set(log.item_ids) - cold_ids}
    results, rows = {}, []
    for system, label, recommend, item_ids, training in (
        ("higr", "joined after training", joined, tokenizer.item_ids, "cold"),
        ("higr", "joined after training, only they allowed", among_cold, tokenizer.item_ids, "cold"),
        ("higr", "joined after training, last slot theirs", one_slot_for_them, tokenizer.item_ids, "cold"),
        ("higr", "trained on all items", trained, everything.tokenizer.item_ids, "all"),
        ("popularity", "counted without them", popularity, tokenizer.item_ids, "cold"),
    ):
        for kind, wanted in targets.items():
            if kind == "warm" and recommend is among_cold:
                continue
            rows_of_kind = restrict_targets(splits["test"], wanted)
            evaluator = SlateEvaluator(
                rows_of_kind, item_ids, slate_size=data.slate_size, exclude_history=True, num_resamples=0,
                progress=False,
            )  # fmt: skip
            result = evaluator.evaluate(recommend)
            is_cold = np.isin(np.array(item_ids), list(cold_ids))
            metrics = dict(result.metrics)
            metrics["cold_share"] = float(is_cold[result.slates[result.slates >= 0]].mean())
            if recommend is among_cold:
                # The expected recall of five cold items drawn at random.
                metrics["chance_recall@5"] = data.slate_size / len(cold)
            variant = f"{kind} targets, {label}"
            results[f"{system}: {variant}"] = metrics
            print(f"{system}: {variant}: " + " ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            rows.append(
                make_row(
                    study="benchmark", dataset=f"{data.name}-cold-items", system=system, variant=variant,
                    metrics=metrics, seed=arguments.seed, seconds=seconds[training], n_users=len(rows_of_kind),
                )
            )  # fmt: skip
    append_rows(rows, study.results)
    return results


def splits_without(splits: DatasetDict, items: set[str]) -> DatasetDict:
    """All three splits as if the items did not exist."""
    from datasets import DatasetDict

    return DatasetDict({name: hide_items(split, items) for name, split in splits.items()})


def train(study, data, arguments, splits, item_ids, embeddings, rows):
    """Quantiser, tokenizer and model of the items `rows`; the experiment and the quantiser."""
    set_seed(arguments.seed)
    fitted = fit_semantic_ids(
        embeddings[rows],
        codebook_sizes=numbers("codebook_sizes", study.codebook_sizes),
        seed=arguments.seed,
        progress=False,
    )
    tokenizer = HiGRTokenizer.from_codes(
        [item_ids[row] for row in rows.tolist()], fitted.codes, list(fitted.codebook_sizes)
    )
    settings = ExperimentSettings(
        preset=study.preset,
        model=mapping("model", study.model),
        collator=mapping("collator", study.collator),
        generation=mapping("generation", study.generation),
    )
    experiment = Experiment(
        splits, tokenizer, FeatureEdges(), settings, slate_size=data.slate_size, seed=arguments.seed
    )
    experiment.trainer(arguments).train()
    return experiment, fitted.model


if __name__ == "__main__":
    run(main)
