"""From a real log to slates in minutes: MovieLens-100K, semantic IDs, training, item-item tables, alignment.

    make quickstart

Leaves `tokenizer/`, `quantizer/`, `model/` (loads by itself), `aligned/` (with its own `model/` and
`preferences/`), `report.json`, `report.md` and plots in `--output_dir`.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from transformers import set_seed

from higr_hf.baselines import Popularity
from higr_hf.cards import write_card
from higr_hf.checkpoint import load_checkpoint, save_checkpoint
from higr_hf.data import InteractionLog, item_embeddings
from higr_hf.evaluation import EvaluationResult, Report, SlateExample
from higr_hf.evaluation.plots import plot_code_usage, plot_diversity, plot_training
from higr_hf.evaluation.results import current_command
from higr_hf.experiment import Experiment
from higr_hf.item_categories import categories_file
from higr_hf.item_item import fit_item_item
from higr_hf.semantic_ids import fit_semantic_ids
from higr_hf.semantic_ids.fit import FitSettings
from higr_hf.tokenization_higr import HiGRTokenizer
from higr_hf.utils import atomic_directory

from . import align
from ._args import TrainerArguments, check_output, mapping, numbers, parse_recipe, run
from ._data import DataArguments, diversity_vectors, load_splits
from ._model import ModelArguments, check_best_metric
from ._resume import checkpoint_to_resume
from .fit_item_item import TABLE_SETTINGS, attach_best, scale_lists

RECIPE = Path(__file__).parent / "recipes" / "quickstart.yaml"
_FIT_SETTINGS = {entry.name for entry in dataclasses.fields(FitSettings)} | (
    set(inspect.signature(fit_semantic_ids).parameters)
    - {"embeddings", "codebook_sizes", "categories", "seed", "settings"}
)


@dataclass
class QuickstartArguments:
    """The semantic IDs and what is shown."""

    _argument_group_name = "quickstart"

    embeddings: str = field(default="both", metadata={"help": "text, collaborative, both, or a .npy file."})
    codebook_sizes: str = field(default="[64, 64, 64]", metadata={"help": "Codes of every level."})
    tokenizer_settings: str = field(default="{}", metadata={"help": "Further arguments of fit_semantic_ids."})
    item_item: str | None = field(
        default=None, metadata={"help": "Options of fit_item_item; no item-item tables when left out."}
    )
    item_item_scales: str = field(
        default="[[20, 20, 3]]", metadata={"help": "Scales of the tables; the best on validation are kept."}
    )
    alignment: str | None = field(
        default=None, metadata={"help": "Recipe of training.align for the last stage; none when left out."}
    )
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
    """Run all stages; returns the test results of HiGR (without tables, with them, aligned) and popularity."""
    options, data, model, arguments = parse_recipe(
        (QuickstartArguments, DataArguments, ModelArguments, TrainerArguments),
        argv,
        description=__doc__ or "",
        default_recipe=RECIPE,
    )
    if arguments.world_size > 1:
        raise SystemExit("error: the quickstart is one process; train on several with training.train")
    settings, edges = model.settings(), model.edges()
    check_best_metric(arguments, data.list_size, model.patience)
    fitting = mapping("tokenizer_settings", options.tokenizer_settings, _FIT_SETTINGS)
    codebook_sizes = numbers("codebook_sizes", options.codebook_sizes)
    output = check_output(arguments.output_dir)
    tables = None if options.item_item is None else mapping("item_item", options.item_item, TABLE_SETTINGS)
    scales = scale_lists("item_item_scales", options.item_item_scales)
    if tables is not None and not settings.model.get("catalog_prior"):
        raise SystemExit("error: --item_item are tables of the catalogue prior: give --model '{catalog_prior: true}'")
    aligning = _alignment(options.alignment, output) if options.alignment else None
    arguments.output_dir, arguments.remove_unused_columns = str(output / "checkpoints"), False
    seed, stage = arguments.seed, _Stages()
    set_seed(seed)

    with stage("Data"):
        log, splits = load_splits(data)
        _check_titles(log)
    with stage("Item embeddings"):
        vectors = item_embeddings(log.items, splits["train"], kind=options.embeddings)
        diversity = diversity_vectors(log, splits, model.diversity_embeddings)
    with stage("Semantic IDs"):
        fitted = fit_semantic_ids(
            vectors, codebook_sizes=codebook_sizes, categories=log.items["categories"], seed=seed, **fitting
        )
        tokenizer = HiGRTokenizer.from_codes(
            log.item_ids,
            fitted.codes,
            list(fitted.codebook_sizes),
            num_feedback_levels=edges.num_feedback_levels,
            num_time_buckets=edges.num_time_buckets,
            titles=list(log.items["title"]),
            collision_rule=fitted.collision_rule,
        )
        for name, thing in (("tokenizer", tokenizer), ("quantizer", fitted.model)):
            with atomic_directory(output / name) as folder:
                thing.save_pretrained(folder)
    with stage("Training"):
        experiment = Experiment(
            splits,
            tokenizer,
            edges,
            settings,
            embeddings=diversity,
            slate_size=data.slate_size,
            list_size=data.list_size,
            seed=seed,
        )
        trainer = experiment.trainer(arguments)
        trainer.train(
            resume_from_checkpoint=checkpoint_to_resume(
                arguments.resume_from_checkpoint, Path(arguments.output_dir), tokenizer
            )
        )
    evaluator, results = experiment.evaluator("test"), {}
    if tables is not None:
        with stage("Item-item tables"):
            results["higr, without tables"] = experiment.evaluate("test")
            asked = {"slate_size": data.slate_size, **tables}
            fitted_tables = fit_item_item(splits["train"], tokenizer.item_ids, **asked)
            attach_best(fitted_tables, scales, experiment.recommender(), experiment.evaluator("validation"))
    save_checkpoint(output / "model", experiment.model, tokenizer, categories_file(log.items))
    with stage("Evaluation"):
        popular = Popularity(tokenizer.item_ids).fit(splits["train"])
        results["higr"] = experiment.evaluate("test")
        popularity = evaluator.evaluate(lambda batch: popular(batch, data.list_size), desc="Popularity")
    if aligning is not None:
        with stage("Alignment"):
            align.align(*aligning[:3], data, aligning[-1])
            model, _ = load_checkpoint(output / "aligned" / "model")
            recommend = replace(experiment.recommender(), model=model)
            results["higr, aligned"] = evaluator.evaluate(recommend, desc="Decoding aligned slates")
    results["popularity"] = popularity  # last: the tables show systems in this order
    plots = _plots(output, trainer, tokenizer, results["higr"], evaluator)
    examples = _examples(splits["test"], tokenizer, results["higr"], options.examples)
    gain = results["higr"].compare(results["popularity"])
    report = Report(
        f"HiGR on {data.name}",
        results,
        seed=seed,
        seconds=stage.seconds,
        commands=["make quickstart"] * (data.name == "movielens-100k") + [current_command()],
        settings={
            "source": data.name,
            "licence": log.info.licence,
            "homepage": log.info.homepage,
            "citation": log.info.citation,
            "view_rule": log.info.view_rule or "",
            "protocol": _protocol(data, settings.exclude_history),
            "embeddings": options.embeddings,
            "parameters": experiment.model.num_parameters(),
            "model": settings.model,
            "generation": settings.generation,
            **{f"semantic IDs: {name}": round(value, 4) for name, value in fitted.metrics.items()},
        },
        plots=plots,
        examples=examples,
        notes=[f"{evaluator.primary_metric} against popularity, paired over users: {gain}."],
    )
    report.save(output)
    write_card(output / "model", report, plots_from=output)
    print("\n" + report.metrics_table())
    for example in examples:
        print(f"\nUser {example.user_id}\n  had   " + "\n        ".join(example.history[-8:]))
        hits = ["  (hit)" if title in example.target else "" for title in example.slate]
        print("  slate " + "\n        ".join(title + hit for title, hit in zip(example.slate, hits, strict=True)))
    print(f"\n{sum(stage.seconds.values()):.0f} s; everything is in {output}/, see report.md")
    return results


def _alignment(recipe: str, output: Path) -> tuple:
    """The options of `training.align` that a recipe gives the last stage: a path, or a name among our recipes."""
    path = Path(recipe) if Path(recipe).is_file() else RECIPE.parent / recipe
    return align.parse(
        ["--recipe", str(path), "--model", str(output / "model"), "--output_dir", str(output / "aligned")]
    )


def _check_titles(log: InteractionLog) -> None:
    """The quickstart shows slates by title: a catalogue whose titles are its ids is refused at the start."""
    if list(log.items["title"]) == log.item_ids:
        raise SystemExit(
            f"error: the items of {log.info.name} have no titles, and the quickstart shows slates by title: give an "
            "item table with a `title` column (--items), or use training.fit_tokenizer, train and evaluate"
        )


def _protocol(data: DataArguments, exclude_history: bool) -> str:
    name = f"leave-last-{data.slate_size}-out" if data.protocol == "leave-last-out" else data.protocol
    return f"{name}, test split, history {'excluded' if exclude_history else 'allowed'}, full catalogue"


def _plots(output: Path, trainer, tokenizer: HiGRTokenizer, result: EvaluationResult, evaluator) -> dict[str, str]:
    folder = output / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    history, metric = trainer.state.log_history, result.primary_metric
    judged = any(f"eval_{metric}" in entry for entry in history)
    plot_training(history, folder / "training.png", metric if judged else None)
    plot_code_usage(tokenizer.codes, tokenizer.codebook_sizes, folder / "code_usage.png")
    plots = {"Training and validation": "plots/training.png", "Code usage a level": "plots/code_usage.png"}
    if evaluator.embeddings is not None:
        plot_diversity(result.per_user["diversity"], evaluator.history_diversity(), folder / "diversity.png")
        plots["Slate diversity against history diversity"] = "plots/diversity.png"
    return plots


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
    run(main)
