"""Judge a trained model on a split: slate metrics with intervals, beside popularity.

    python -m training.evaluate --recipe training/recipes/evaluate.yaml --model runs/movielens-1m/model

Writes a report and the slates, prints the table, and appends a row to the directory of results that `--results` names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from higr_hf.baselines import Popularity
from higr_hf.checkpoint import load_checkpoint
from higr_hf.data import leave_last_out, load_source
from higr_hf.data.embeddings import item_embeddings
from higr_hf.evaluation import EvaluationResult, Report, SlateEvaluator, append_rows, make_row
from higr_hf.recommender import SlateRecommender

from ._args import mapping, parse_recipe


@dataclass
class EvaluateArguments:
    """What is judged, on what, and how slates are decoded."""

    model: str = field(default="", metadata={"help": "Directory with model and tokenizer."})
    source: str = field(default="movielens-1m", metadata={"help": "Name of a ready source."})
    local_path: str | None = field(default=None, metadata={"help": "Folder the source is read from instead."})
    split: str = field(default="test", metadata={"help": "validation or test."})
    slate_size: int = field(default=5, metadata={"help": "M, items a slate."})
    generation: str = field(default="{}", metadata={"help": "Arguments of generate, as YAML or JSON."})
    wish: int | None = field(default=None, metadata={"help": "Feedback level asked for."})
    exclude_history: bool = field(default=True, metadata={"help": "Never recommend an item of the history."})
    batch_size: int = field(default=128, metadata={"help": "Users decoded at once."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap, and the run's own in the result row."})
    output_dir: str = field(default="runs/evaluation", metadata={"help": "Where the report and the slates go."})
    results: str | None = field(default=None, metadata={"help": "Append a row to this directory of results."})
    variant: str = field(default="none", metadata={"help": "What tells the row apart."})


def main(argv: list[str] | None = None) -> EvaluationResult:
    """Evaluate; returns the model's result."""
    (options,) = parse_recipe((EvaluateArguments,), argv, description=__doc__ or "")
    if not options.model:
        raise SystemExit("--model is missing: the directory that training wrote, such as runs/quickstart/model")
    model, tokenizer = load_checkpoint(options.model)
    log = load_source(options.source, **({"local_path": options.local_path} if options.local_path else {}))
    splits = leave_last_out(log, slate_size=options.slate_size)
    evaluator = SlateEvaluator(
        splits[options.split],
        tokenizer.item_ids,
        slate_size=options.slate_size,
        embeddings=_aligned(item_embeddings(log.items, kind="text"), log.items["item_id"], tokenizer.item_ids),
        exclude_history=options.exclude_history,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    recommender = SlateRecommender(
        model, tokenizer, options.slate_size, options.wish, mapping("generation", options.generation)
    )
    result = evaluator.evaluate(recommender, desc="Decoding slates")
    popular = Popularity(tokenizer.item_ids).fit(splits["train"])
    systems = {
        "higr": result,
        "popularity": evaluator.evaluate(lambda batch: popular(batch, options.slate_size), desc="Popularity"),
    }
    report = Report(
        f"{options.model} on {options.source}, {options.split} split", systems, seed=options.seed,
        settings={"generation": options.generation, "wish": options.wish, "users": result.counts["users"]},
    )  # fmt: skip
    result.save(Path(options.output_dir) / "slates")
    report.save(options.output_dir)
    print(report.metrics_table())
    if options.results:
        row = make_row(
            study="benchmark",
            dataset=options.source if options.split == "test" else f"{options.source}-{options.split}",
            system="higr",
            variant=options.variant,
            metrics=result.metrics,
            seed=options.seed,
            seconds=result.timings["seconds"],
            n_users=result.counts["users"],
        )
        append_rows([row], options.results)
    return result


def _aligned(vectors, item_ids, catalogue):
    """Rows of `vectors` in the order of the tokenizer's catalogue."""
    place = {item: row for row, item in enumerate(item_ids)}
    missing = [item for item in catalogue if item not in place]
    if missing:
        raise SystemExit(
            f"the source has no item {missing[0]!r} of the model's catalogue: is it the model's own source?"
        )
    return vectors[[place[item] for item in catalogue]]


if __name__ == "__main__":
    main()
