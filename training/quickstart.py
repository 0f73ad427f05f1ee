"""From a real log to slates in minutes: MovieLens-100K, semantic IDs, training, decoding, evaluation.

    make quickstart

Leaves `tokenizer/`, `quantizer/`, `model/` (loads by itself), `report.json`, `report.md` and plots in `--output_dir`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import TrainingArguments, set_seed

from higr_hf.baselines import Popularity
from higr_hf.checkpoint import save_checkpoint
from higr_hf.data import leave_last_out, load_source
from higr_hf.data.embeddings import item_embeddings
from higr_hf.data.encoding import FeatureEdges
from higr_hf.evaluation import EvaluationResult, Report, SlateExample
from higr_hf.evaluation.plots import plot_code_usage, plot_diversity, plot_training
from higr_hf.evaluation.results import current_command
from higr_hf.experiment import Experiment, ExperimentSettings
from higr_hf.semantic_ids import fit_semantic_ids
from higr_hf.tokenization_higr import HiGRTokenizer
from higr_hf.utils import atomic_directory

from ._args import mapping, parse_recipe, parsed

RECIPE = Path(__file__).parent / "recipes" / "quickstart.yaml"


@dataclass
class QuickstartArguments:
    """The data, the semantic IDs and the model; `TrainingArguments` decide the training."""

    source: str = field(default="movielens-100k", metadata={"help": "Name of a ready source with titles."})
    slate_size: int = field(default=5, metadata={"help": "M, items a slate."})
    embeddings: str = field(default="both", metadata={"help": "text, collaborative or both."})
    codebook_sizes: str = field(default="[64, 64, 64]", metadata={"help": "Codes of every level."})
    tokenizer_settings: str = field(default="{}", metadata={"help": "Further arguments of fit_semantic_ids."})
    feedback_edges: str = field(default="[]", metadata={"help": "Ascending cuts of ratings into levels."})
    wish: int | None = field(default=None, metadata={"help": "Feedback level asked for when decoding."})
    preset: str = field(default="tiny", metadata={"help": "Size of the model."})
    model: str = field(default="{}", metadata={"help": "Further fields of HiGRConfig."})
    collator: str = field(default="{}", metadata={"help": "Fields of SlateCollator."})
    generation: str = field(default="{}", metadata={"help": "Arguments of generate."})
    eval_users: int | None = field(default=None, metadata={"help": "Validation users judged while training."})
    examples: int = field(default=3, metadata={"help": "Users whose slates are printed by title."})


class _Stages:
    """Wall-clock seconds a stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"\n== {name}", flush=True)
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def main(argv: list[str] | None = None) -> dict[str, EvaluationResult]:
    """Run all stages; returns the test results of HiGR and popularity."""
    options, arguments = parse_recipe(
        (QuickstartArguments, TrainingArguments), argv, description=__doc__ or "", default_recipe=RECIPE
    )
    output = Path(arguments.output_dir)
    arguments.output_dir, arguments.remove_unused_columns = str(output / "checkpoints"), False
    seed, stage = arguments.seed, _Stages()
    set_seed(seed)

    with stage("Data"):
        log = load_source(options.source)
        splits = leave_last_out(log, slate_size=options.slate_size)
        print(f"{len(splits['train'])} users, {len(log.items)} items; {log.info.licence}")
    with stage("Item embeddings"):
        vectors = item_embeddings(log.items, splits["train"], kind=options.embeddings)
        text = item_embeddings(log.items, splits["train"], kind="text")
    with stage("Semantic IDs"):
        fitted = fit_semantic_ids(
            vectors,
            codebook_sizes=parsed(options.codebook_sizes),
            categories=log.items["categories"],
            seed=seed,
            **mapping("tokenizer_settings", options.tokenizer_settings),
        )
        edges = FeatureEdges(tuple(parsed(options.feedback_edges)))
        tokenizer = HiGRTokenizer.from_codes(
            list(log.items["item_id"]),
            fitted.codes,
            list(fitted.codebook_sizes),
            num_feedback_levels=edges.num_feedback_levels,
            titles=list(log.items["title"]),
            collision_rule=fitted.collision_rule,
        )
        for name, thing in (("tokenizer", tokenizer), ("quantizer", fitted.model)):
            with atomic_directory(output / name) as folder:
                thing.save_pretrained(folder)
    with stage("Training"):
        settings = ExperimentSettings(
            preset=options.preset,
            model=mapping("model", options.model),
            collator=mapping("collator", options.collator),
            generation=mapping("generation", options.generation),
            wish=options.wish,
            eval_users=options.eval_users,
        )
        experiment = Experiment(
            splits, tokenizer, edges, settings, embeddings=text, slate_size=options.slate_size, seed=seed
        )
        trainer = experiment.trainer(arguments)
        trainer.train()
        save_checkpoint(output / "model", experiment.model, tokenizer)
    with stage("Evaluation"):
        evaluator = experiment.evaluator("test")
        popular = Popularity(tokenizer.item_ids).fit(splits["train"])
        results = {
            "higr": experiment.evaluate("test"),
            "popularity": evaluator.evaluate(lambda batch: popular(batch, options.slate_size), desc="Popularity"),
        }
    plots = _plots(output, trainer, tokenizer, results["higr"], evaluator)
    examples = _examples(splits["test"], tokenizer, results["higr"], options.examples)
    gain = results["higr"].compare(results["popularity"])
    report = Report(
        f"HiGR on {options.source}",
        results,
        seed=seed,
        seconds=stage.seconds,
        commands=["make quickstart", current_command()],
        settings={
            "source": options.source,
            "licence": log.info.licence,
            "protocol": f"leave-last-{options.slate_size}-out, test split, history excluded, full catalogue",
            "embeddings": options.embeddings,
            "parameters": experiment.model.num_parameters(),
            "model": mapping("model", options.model),
            "generation": mapping("generation", options.generation),
            **{f"semantic IDs: {name}": round(value, 4) for name, value in fitted.metrics.items()},
        },
        plots=plots,
        examples=examples,
        notes=[f"Against popularity, paired over users: {gain}."],
    )
    report.save(output)
    print("\n" + report.metrics_table())
    for example in examples:
        print(f"\nUser {example.user_id}\n  had   " + "\n        ".join(example.history[-8:]))
        hits = ["  (hit)" if title in example.target else "" for title in example.slate]
        print("  slate " + "\n        ".join(title + hit for title, hit in zip(example.slate, hits, strict=True)))
    print(f"\n{sum(stage.seconds.values()):.0f} s; everything is in {output}/, see report.md")
    return results


def _plots(output: Path, trainer, tokenizer: HiGRTokenizer, result: EvaluationResult, evaluator) -> dict[str, str]:
    folder = output / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    plot_training(trainer.state.log_history, folder / "training.png", "ndcg@5")
    plot_code_usage(tokenizer.codes, tokenizer.codebook_sizes, folder / "code_usage.png")
    plot_diversity(result.per_user["diversity"], evaluator.history_diversity(), folder / "diversity.png")
    return {
        "Training and validation": "plots/training.png",
        "Code usage a level": "plots/code_usage.png",
        "Slate diversity against history diversity": "plots/diversity.png",
    }


def _examples(split, tokenizer: HiGRTokenizer, result: EvaluationResult, number: int) -> list[SlateExample]:
    """Users spread over the split, by title."""
    titles = np.array(tokenizer.titles, dtype=object)
    chosen = np.linspace(0, len(split) - 1, number).astype(int).tolist() if number else []
    return [
        SlateExample(
            user_id=split[user]["user_id"],
            history=titles[tokenizer.items_to_indices(split[user]["history_item_ids"])].tolist(),
            slate=titles[[item for item in result.slates[user] if item >= 0]].tolist(),
            target=titles[tokenizer.items_to_indices(split[user]["target_item_ids"])].tolist(),
        )
        for user in chosen
    ]


if __name__ == "__main__":
    main()
