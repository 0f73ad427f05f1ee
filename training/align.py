"""Align a trained checkpoint with slate preferences from its users' feedback.

    python -m training.align --method orpo-sum --model runs/movielens-1m/model --source movielens-1m \\
        --output_dir runs/align-orpo-sum
    torchrun --standalone --nproc_per_node 2 -m training.align --method dpo --model ...

The method (orpo, orpo-sum, dpo, dpo-sft, simpo, cpo, cpo-simpo, kto) decides which options of TRL exist below, and
which recipe is taken where none is named: `training/recipes/align_<method>.yaml`.

The output directory holds `model/` (it loads by itself, LoRA merged), `preferences/` (the pairs), the checkpoints and
`alignment.json`: slate metrics on validation before and after, the pairs, the log. The starting model is kept where no
checkpoint recommends better. Run again with `--resume_from_checkpoint true` to go on after a kill.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from higr_hf.alignment import (
    METHODS,
    PreferenceSettings,
    build_preferences,
    ensure_rendered,
    load_preferences,
    preference_report,
    save_preferences,
)
from higr_hf.alignment.factory import COMMON, check_config, get_method
from higr_hf.alignment.rendering import description
from higr_hf.alignment.run import AlignmentRun, AlignmentSettings, lora_config
from higr_hf.checkpoint import check_agreement, load_checkpoint, save_checkpoint
from higr_hf.data.encoding import FeatureEdges
from higr_hf.evaluation.results import current_command
from higr_hf.item_categories import categories_file
from higr_hf.recommender import SlateRecommender
from higr_hf.trainer import COMPLETE, last_complete_checkpoint
from higr_hf.utils import atomic_write_json

from ._args import check_output, is_main_process, mapping, parse_recipe, parsed, run
from ._data import DataArguments, aligned, diversity_vectors, load_splits
from ._model import check_best_metric, check_wish, generation_of
from ._resume import checkpoint_to_resume

RECIPES = Path(__file__).parent / "recipes"


@dataclass
class AlignArguments:
    """What is aligned, and how beyond TRL."""

    _argument_group_name = "alignment"

    method: str = field(default="orpo-sum", metadata={"help": f"One of {', '.join(METHODS)}."})
    model: str = field(
        default="", metadata={"help": "Directory of the starting model; trust_remote_code runs its code."}
    )
    dense_weight: float = field(default=0.0, metadata={"help": "Weight of the dense head's loss on chosen slates."})
    nll_on: str = field(default="completion", metadata={"help": "What ORPO's NLL covers: completion or sequence."})
    nll_weight: float = field(default=1.0, metadata={"help": "Weight of ORPO's NLL."})
    count_eos: bool = field(default=False, metadata={"help": "Let the end token count, as plain TRL does."})
    frozen: str = field(default="[]", metadata={"help": "Parts of names of parameters to keep, '[embeddings]'."})
    lora: bool = field(default=False, metadata={"help": "Train LoRA adapters, merged at the end."})
    lora_rank: int = field(default=8, metadata={"help": "Their rank."})
    lora_targets: str = field(default="all-linear", metadata={"help": "Modules with adapters, '[q_proj, v_proj]'."})


@dataclass
class PairArguments:
    """The pairs: a ready dataset, or built from the train split."""

    _argument_group_name = "preferences"

    preferences: str | None = field(
        default=None, metadata={"help": "Directory or Hub id of ready pairs; nothing is built then."}
    )
    objectives: str = field(
        default="{ranking: 1, interest: 1, diversity: 1}",
        metadata={"help": "Objective: share of the slates that get a pair of it; on_policy is one, too."},
    )
    share: float = field(default=1.0, metadata={"help": "Share of the users who give pairs."})
    windows: int = field(default=1, metadata={"help": "Slates a user, newest first."})
    positives: str = field(default="engaged", metadata={"help": "What a chosen slate holds: engaged events or views."})
    min_history: int = field(default=1, metadata={"help": "Events that must stand before a slate."})
    permutation: str = field(default="random", metadata={"help": "Hardness of ranking: random, swap or reverse."})
    swaps: int | None = field(default=None, metadata={"help": "Hardness of interest: items replaced at most."})
    negatives: str = field(default="random", metadata={"help": "Negatives of interest: random or similar."})
    unseen_only: bool = field(default=False, metadata={"help": "Only negatives outside the history."})
    skip_neighbours: int = field(default=0, metadata={"help": "Hardness of diversity: neighbours passed over."})
    pair_seed: int = field(default=0, metadata={"help": "Seed of the pairs; one set of pairs serves many runs."})

    def settings(self, slate_size: int) -> PreferenceSettings:
        """As [`PreferenceSettings`]."""
        names = {entry.name for entry in dataclasses.fields(PreferenceSettings)}
        values = {name: value for name, value in vars(self).items() if name in names}
        values["objectives"] = {name: float(share) for name, share in mapping("objectives", self.objectives).items()}
        return PreferenceSettings(**values, slate_size=slate_size, seed=self.pair_seed)


@dataclass
class JudgeArguments:
    """How slates are judged on validation users."""

    _argument_group_name = "evaluation"

    generation: str = field(default="{}", metadata={"help": "Arguments of generate."})
    wish: int | None = field(default=None, metadata={"help": "Feedback level asked for, in pairs too."})
    exclude_history: bool = field(default=True, metadata={"help": "Never recommend an item of the history."})
    eval_users: int | None = field(default=None, metadata={"help": "Validation users judged while aligning."})
    eval_share: float = field(default=0.05, metadata={"help": "Share of users whose pairs are only watched."})
    patience: int = field(default=0, metadata={"help": "Evaluations without progress before stopping; 0 = never."})
    diversity_embeddings: str = field(
        default="text",
        metadata={"help": "What diversity is measured on and look-alikes are found by, as in training.train."},
    )


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Align, keep the best model, judge it on the validation split; returns its metrics (on the main process)."""
    record = align(*parse(list(sys.argv[1:] if argv is None else argv)))
    if record is None:
        return {}
    start, metrics = record["start"], record["metrics"]
    print(f"kept: {record['kept']}")
    for name, value in metrics.items():
        print(f"{name} {value:.4f}" + ("" if start is None else f" (start {start[name]:.4f})"))
    return metrics


def parse(argv: Sequence[str]) -> tuple[AlignArguments, PairArguments, JudgeArguments, DataArguments, Any]:
    """The options of a command line and its recipe, by default the method's own."""
    method = method_of(argv)
    parsed_options = parse_recipe(
        (AlignArguments, PairArguments, JudgeArguments, DataArguments, trl_arguments(method)),
        list(argv),
        description=__doc__ or "",
        default_recipe=RECIPES / f"align_{method}.yaml",
    )
    parsed_options[0].method = method
    return parsed_options


def align(
    options: AlignArguments,
    pairing: PairArguments,
    judging: JudgeArguments,
    data: DataArguments,
    arguments: Any,
    start: Mapping[str, float] | None = None,
) -> dict[str, Any] | None:
    """Align as the options say; writes `model/`, `preferences/` and `alignment.json` into the output directory.

    Args:
        options, pairing, judging, data, arguments: as [`parse`] returns them.
        start: the starting model's metrics on the validation split, where they are known; else it is judged first.

    Returns:
        What `alignment.json` holds; `None` on all processes but the main one.
    """
    method = options.method
    arguments.__class__ = get_method(method).config  # the trainer pickles it, which needs a class with an address
    check_config(method, arguments)
    check_best_metric(arguments, data.list_size, judging.patience)
    pair_settings = pairing.settings(data.slate_size)
    settings = AlignmentSettings(
        slate_size=data.list_size,
        generation=generation_of(judging.generation),
        wish=judging.wish,
        exclude_history=judging.exclude_history,
        eval_users=judging.eval_users,
        eval_share=judging.eval_share,
        patience=judging.patience,
        seed=arguments.seed,
    )
    model, tokenizer = load_model(options.model, arguments.trust_remote_code)
    config = model.config
    if data.slate_size > config.slate_size:
        raise SystemExit(
            f"error: --slate_size {data.slate_size}: the model was trained for slates of {config.slate_size}"
        )
    edges = FeatureEdges(tuple(config.feedback_edges), tuple(config.time_edges))
    check_wish(judging.wish, edges)
    output = check_output(arguments.output_dir)
    checkpoint = resume_point(arguments.resume_from_checkpoint, output, tokenizer, options.lora)
    began = time.perf_counter()
    # One process downloads and computes what the others then find in the cache.
    with arguments.main_process_first(desc="reading the data"):
        log, splits = load_splits(data)
        vectors = diversity_vectors(log, splits, judging.diversity_embeddings)
    del splits["test"]
    if vectors is not None:
        vectors = aligned(vectors, log.item_ids, tokenizer.item_ids)
    texts = {"edges": edges, "max_history": config.max_history, "wish": judging.wish}
    if pairing.preferences:
        pairs = ensure_rendered(load_preferences(pairing.preferences), tokenizer, **texts)
    else:
        recommend = SlateRecommender(
            model.to(arguments.device), tokenizer, data.slate_size, judging.wish, settings.generation
        )
        pairs = build_preferences(
            splits["train"], tokenizer, pair_settings, embeddings=vectors, recommend=recommend, **texts
        )
    if is_main_process():
        save_preferences(pairs, output / "preferences")
        print(f"{len(pairs)} pairs: {preference_report(pairs) if 'pairs' in description(pairs) else ''}", flush=True)
    work = AlignmentRun(
        method,
        model,
        tokenizer,
        splits,
        pairs,
        arguments,
        settings=settings,
        embeddings=vectors,
        dense_weight=options.dense_weight,
        nll_on=options.nll_on,
        nll_weight=options.nll_weight,
        count_eos=options.count_eos,
        frozen=[str(name) for name in parsed(options.frozen) or []],
        peft_config=lora_config(options.lora_rank, targets=parsed(options.lora_targets)) if options.lora else None,
    )
    main_process = work.trainer.is_world_process_zero()
    if start is None and main_process and checkpoint is None:
        start = work.evaluate("validation").known_metrics
    work.train(checkpoint)
    if not main_process:
        return None
    metrics = work.evaluate("validation").known_metrics
    save_checkpoint(output / "model", work.model, tokenizer, categories_file(log.items))
    record = {
        "method": method,
        "start_model": options.model,
        "command": current_command(),
        "kept": work.kept,
        "start": start,
        "metrics": metrics,
        "preferences": description(pairs),
        "seconds": time.perf_counter() - began,
        "processes": arguments.world_size,
        "log": work.trainer.state.log_history,
    }
    atomic_write_json(output / "alignment.json", record)
    return record


def method_of(argv: Sequence[str]) -> str:
    """The method that the command line names, or else its recipe; it decides which options exist.

    Raises:
        SystemExit: for a method that does not exist.
    """

    def given(option: str) -> str | None:
        for position, argument in enumerate(argv):
            if argument == option and position + 1 < len(argv):
                return argv[position + 1]
            if argument.startswith(f"{option}="):
                return argument.split("=", 1)[1]
        return None

    name, recipe = given("--method"), given("--recipe")
    if name is None and recipe is not None:
        try:
            content = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            content = None  # told when the arguments are parsed
        name = content.get("method") if isinstance(content, dict) else None
    name = name or "orpo-sum"
    if name not in METHODS:
        raise SystemExit(f"error: --method {name!r} does not exist; there are {', '.join(METHODS)}")
    return name


def trl_arguments(method: str) -> type:
    """TRL's configuration of a method as options, with the defaults that slates need."""
    entry = get_method(method)
    defaults = {**COMMON, **entry.defaults, **entry.fixed}

    def changed_field(known: dataclasses.Field) -> Any:
        value = defaults[known.name]
        default = {"default_factory": partial(list, value)} if isinstance(value, list) else {"default": value}
        return field(**default, metadata=known.metadata)

    changed = [
        (known.name, known.type, changed_field(known))
        for known in dataclasses.fields(entry.config)
        if known.name in defaults
    ]
    group = f"training (every field of trl.{entry.config.__name__})"
    return dataclasses.make_dataclass(
        "TrainerArguments", changed, bases=(entry.config,), namespace={"_argument_group_name": group}
    )


def load_model(directory: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """The starting model and its tokenizer, by this package's classes or, where trusted, by the checkpoint's own.

    Raises:
        SystemExit: when none is named.
        CheckpointError: for an incomplete or corrupt one.
    """
    if not directory:
        raise SystemExit("error: --model is missing: the directory that training.train wrote")
    if not trust_remote_code:
        return load_checkpoint(directory)
    if not Path(directory).is_dir():
        raise SystemExit(f"error: --model {directory} is no directory")
    options = {"trust_remote_code": True, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(directory, **options)
    tokenizer = AutoTokenizer.from_pretrained(directory, **options)
    check_agreement(model, tokenizer)
    return model.eval(), tokenizer


def resume_point(value: str | None, output: Path, tokenizer: Any, lora: bool) -> str | None:
    """The checkpoint to go on from; adapters are saved without the configuration that says whose they are."""
    if not lora:
        return checkpoint_to_resume(value, output, tokenizer)
    word = str(value).lower()
    if word in ("false", "none", ""):
        return None
    path = last_complete_checkpoint(output) if word == "true" else value
    if path is not None and not (Path(path) / COMPLETE).is_file():
        raise SystemExit(f"error: {path} was not written to its end, or is no checkpoint: resume from an earlier one")
    return path


if __name__ == "__main__":
    run(main)
