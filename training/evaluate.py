"""Judge a trained model on a split: slate metrics with intervals, beside popularity.

    python -m training.evaluate --recipe training/recipes/evaluate.yaml

Leaves `report.json`, `report.md` and the slates in `--output_dir`, prints the table, and appends a row to the
directory of results that `--results` names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from higr_hf.baselines import Popularity
from higr_hf.checkpoint import load_checkpoint
from higr_hf.evaluation import EvaluationResult, Report, SlateEvaluator, append_rows, make_row
from higr_hf.evaluation.results import current_command
from higr_hf.recommender import SlateRecommender

from ._args import check_output, parse_recipe, run
from ._data import DataArguments, aligned, diversity_vectors, load_splits
from ._model import check_unseen, check_wish, generation_of


@dataclass
class EvaluateArguments:
    """What is judged, and how slates are decoded."""

    _argument_group_name = "evaluation"

    model: str = field(default="", metadata={"help": "Directory with model and tokenizer."})
    split: str = field(default="test", metadata={"help": "validation or test."})
    generation: str = field(default="{}", metadata={"help": "Arguments of generate, as YAML or JSON."})
    wish: int | None = field(default=None, metadata={"help": "Feedback level asked for."})
    exclude_history: bool = field(default=True, metadata={"help": "Never recommend an item of the history."})
    diversity_embeddings: str = field(
        default="text",
        metadata={"help": "What slate diversity is measured on: text, collaborative, both, a .npy file, or none."},
    )
    batch_size: int = field(default=128, metadata={"help": "Users decoded at once."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; a GPU where there is one."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap, and the run's own in the result row."})
    output_dir: str = field(default="runs/evaluation", metadata={"help": "Where the report and the slates go."})
    results: str | None = field(default=None, metadata={"help": "Append a row to this directory of results."})
    variant: str = field(default="none", metadata={"help": "What tells the row apart."})

    def __post_init__(self) -> None:
        if self.split not in ("validation", "test"):
            raise ValueError(f"--split is {self.split!r}: use validation or test")


def main(argv: list[str] | None = None) -> EvaluationResult:
    """Evaluate; returns the model's result."""
    options, data = parse_recipe((EvaluateArguments, DataArguments), argv, description=__doc__ or "")
    if not options.model:
        raise SystemExit("error: --model is missing: the directory that training wrote, such as runs/quickstart/model")
    model, tokenizer = load_checkpoint(options.model)
    generation = generation_of(options.generation, type(model))
    check_unseen(data.slate_size, model)
    output = check_output(options.output_dir)
    model.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recommender = SlateRecommender(model, tokenizer, data.list_size, options.wish, generation)
    check_wish(options.wish, recommender.edges)
    log, splits = load_splits(data)
    vectors = diversity_vectors(log, splits, options.diversity_embeddings)
    evaluator = SlateEvaluator(
        splits[options.split],
        tokenizer.item_ids,
        slate_size=data.list_size,
        embeddings=None if vectors is None else aligned(vectors, log.item_ids, tokenizer.item_ids),
        exclude_history=options.exclude_history,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    result = evaluator.evaluate(recommender, desc="Decoding slates")
    popular = Popularity(tokenizer.item_ids).fit(splits["train"])
    name = model.config.model_type
    systems = {
        name: result,
        "popularity": evaluator.evaluate(lambda batch: popular(batch, data.list_size), desc="Popularity"),
    }
    report = Report(
        f"{options.model} on {data.name}, {options.split} split",
        systems,
        seed=options.seed,
        seconds={"Decoding": result.timings["seconds"]},
        commands=[current_command()],
        settings={
            "source": data.name,
            "licence": log.info.licence,
            "protocol": data.protocol,
            "slate_size": data.slate_size,
            "list_size": data.list_size,
            "generation": generation,
            "wish": options.wish,
            "exclude_history": options.exclude_history,
        },
        notes=[
            f"{result.primary_metric} against popularity, paired over users: {result.compare(systems['popularity'])}."
        ],
    )
    result.save(output / "slates")
    report.save(output)
    print(report.metrics_table())
    if options.results:
        rows = [
            make_row(
                study="benchmark",
                dataset=data.name if options.split == "test" else f"{data.name}-{options.split}",
                system=system,
                variant=options.variant if system == name else "none",
                metrics=judged.known_metrics,
                seed=options.seed,
                seconds=judged.timings["seconds"],
                n_users=judged.counts["users"],
            )
            for system, judged in systems.items()
        ]
        append_rows(rows, options.results)
    return result


if __name__ == "__main__":
    run(main)
