"""Give a trained model item-item tables, fitted in closed form, with scales tuned on validation; and trends.

    python -m training.fit_item_item --recipe training/recipes/item_item_movielens-1m.yaml

Leaves `model/` (the given model with its tables, and with trends where they are asked for) and `item_item.json` (every
scale that was tried, and what it came to) in `--output_dir`. The model must have been trained with `catalog_prior:
true`; nothing of it is trained again.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from higr_hf.checkpoint import load_checkpoint, save_checkpoint
from higr_hf.evaluation import SlateEvaluator
from higr_hf.evaluation.results import current_command
from higr_hf.item_categories import categories_file
from higr_hf.item_item import ItemItemTables, attach_item_item, fit_item_item
from higr_hf.judging import SlateJudge
from higr_hf.recommender import SlateRecommender
from higr_hf.trends import attach_trends, fit_trends
from higr_hf.utils import atomic_write_json, environment_info

from ._args import check_output, mapping, numbers, parse_recipe, parsed, run
from ._data import DataArguments, load_splits
from ._model import generation_of

TABLE_SETTINGS = set(inspect.signature(fit_item_item).parameters) - {"train", "item_ids"}
"""What may be chosen of the tables: the split and the catalogue are the data's, and the slate size unless said."""

TREND_SETTINGS = {"scale", *inspect.signature(fit_trends).parameters} - {"train", "item_ids"}


@dataclass
class ItemItemArguments:
    """What is fitted, which scales are tried, and where the model goes. Lists are written as YAML or JSON."""

    _argument_group_name = "item-item tables"

    model: str = field(default="", metadata={"help": "Directory with model and tokenizer."})
    tables: str = field(default="{}", metadata={"help": "Options of fit_item_item: decays, neighbours, l2, ..."})
    scales: str = field(
        default="[[10, 10, 2], [20, 20, 3], [30, 30, 4]]",
        metadata={"help": "Scales to try, one list of a number a table each; the best on validation is kept."},
    )
    trends: str | None = field(
        default=None,
        metadata={"help": "Options of fit_trends and their `scale` (1 by default); no trend scores when left out."},
    )
    generation: str = field(default="{}", metadata={"help": "Arguments of generate, as YAML or JSON."})
    exclude_history: bool = field(default=True, metadata={"help": "Never recommend an item of the history."})
    eval_users: int = field(default=2000, metadata={"help": "Validation users the scales are judged on."})
    output_dir: str = field(default="runs/item_item", metadata={"help": "Directory to write."})


def scale_lists(name: str, value: str | Sequence[Sequence[float]]) -> list[list[float]]:
    """An option that must be lists of numbers, such as `--scales '[[20, 20, 3]]'`."""
    rows = parsed(value)
    if not isinstance(rows, (list, tuple)) or not rows:
        raise SystemExit(f"error: --{name} must be a list of lists of numbers such as '[[20, 20, 3]]', got {value!r}")
    return [[float(scale) for scale in numbers(name, row)] for row in rows]


def attach_best(
    tables: ItemItemTables, scales: Sequence[Sequence[float]], recommender: SlateRecommender, evaluator: SlateEvaluator
) -> list[dict[str, Any]]:
    """Give the recommender's model tables, at the scales that are best by the evaluator's first metric.

    Returns:
        `scales` and `metrics` of every trial; nothing is judged where there is one.
    """
    trials, values = [], []
    for row in scales if len(scales) > 1 else ():
        attach_item_item(recommender.model, tables, row)
        judged = evaluator.evaluate(recommender)
        values.append(judged.primary_value)
        trials.append({"scales": row, "metrics": {name: round(value, 4) for name, value in judged.metrics.items()}})
        print(f"scales {row}: {judged.primary_metric} {judged.primary_value:.4f}", flush=True)
    best = values.index(max(values)) if values else 0
    attach_item_item(recommender.model, tables, scales[best])
    return trials


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Fit, tune and save; returns what `item_item.json` holds."""
    options, data = parse_recipe((ItemItemArguments, DataArguments), argv, description=__doc__ or "")
    if not options.model:
        raise SystemExit("error: --model is missing: the directory that training wrote, such as runs/quickstart/model")
    scales = scale_lists("scales", options.scales)
    output = check_output(options.output_dir)
    model, tokenizer = load_checkpoint(options.model)
    generation = generation_of(options.generation, type(model))
    fitting = mapping("tables", options.tables, TABLE_SETTINGS)
    counting = None if options.trends is None else mapping("trends", options.trends, TREND_SETTINGS)
    log, splits = load_splits(data)
    began = time.perf_counter()
    tables = fit_item_item(splits["train"], tokenizer.item_ids, **{"slate_size": data.slate_size, **fitting})
    seconds = time.perf_counter() - began
    if counting is not None:
        scale = counting.pop("scale", 1.0)
        attach_trends(model, fit_trends(splits["train"], tokenizer.item_ids, **counting), scale)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    judge = SlateJudge(
        splits=splits,
        tokenizer=tokenizer,
        slate_size=data.list_size,
        generation=generation,
        exclude_history=options.exclude_history,
    )
    users = splits["validation"].select(judge.watched_users(options.eval_users))
    evaluator = judge.evaluator(users, num_resamples=0, progress=False)
    trials = attach_best(tables, scales, judge.recommender(model), evaluator)
    save_checkpoint(output / "model", model, tokenizer, categories_file(log.items))
    report = {
        "scales": model.config.item_item_scales,
        "decays": tables.decays,
        "neighbours": tables.neighbours.shape[2],
        "weights": int(tables.weights.size),
        "trend_days": model.config.trend_days,
        "trend_scale": model.config.trend_scale,
        "seconds_of_fitting": round(seconds, 1),
        "trials": trials,
        "command": current_command(),
        "environment": environment_info(),
    }
    atomic_write_json(output / "item_item.json", report)
    return report


if __name__ == "__main__":
    run(main)
