"""The methods by name: TRL configurations with what slates need, and trainers made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from . import _trl
from .collators import SlateTokens
from .pairs import OBJECTIVES
from .rendering import TEXT_COLUMNS, PreferenceError, check_texts
from .trainers import (
    SlateAlignment,
    SlateCPOTrainer,
    SlateDPOTrainer,
    SlateKTOTrainer,
    SlateOptions,
    SlateORPOSumTrainer,
    SlateORPOTrainer,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, TrainingArguments

    from ..tokenization_higr import HiGRTokenizer


@dataclass(frozen=True)
class Method:
    """A way to learn from preferences.

    Args:
        trainer: the trainer's class.
        config: its configuration's class.
        defaults: settings that differ from TRL's.
        fixed: settings that make the method what it is.
        collator: builds the collator, where the trainer must be given one.
    """

    trainer: type[SlateAlignment]
    config: type[TrainingArguments]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    collator: Callable[..., Callable] | None = None


# TRL trains in bfloat16 with gradient checkpointing unless told otherwise: made for models a thousand times this size.
# A sequence is never cut (max_length): too long a prompt is an error, with its row.
COMMON = {"bf16": False, "gradient_checkpointing": False, "max_length": 16384, "report_to": "none"}
METHODS = {
    "orpo": Method(SlateORPOTrainer, _trl.ORPOConfig, {"beta": 0.1}),
    "orpo-sum": Method(SlateORPOSumTrainer, _trl.ORPOConfig, {"beta": 0.1}),
    "dpo": Method(SlateDPOTrainer, _trl.DPOConfig, {"beta": 0.1}, collator=_trl.DataCollatorForPreference),
    "dpo-sft": Method(
        SlateDPOTrainer,
        _trl.DPOConfig,
        {"beta": 0.1},
        {"loss_type": ["sigmoid", "sft"]},
        collator=_trl.DataCollatorForPreference,
    ),
    "simpo": Method(
        SlateCPOTrainer,
        _trl.CPOConfig,
        {"beta": 2.0, "simpo_gamma": 0.5},
        {"loss_type": "simpo", "cpo_alpha": 0.0},
    ),
    "cpo": Method(SlateCPOTrainer, _trl.CPOConfig, {"beta": 0.1, "cpo_alpha": 1.0}, {"loss_type": "sigmoid"}),
    "cpo-simpo": Method(
        SlateCPOTrainer,
        _trl.CPOConfig,
        {"beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 1.0},
        {"loss_type": "simpo"},
    ),
    "kto": Method(SlateKTOTrainer, _trl.KTOConfig, {"beta": 0.1}, collator=_trl.DataCollatorForUnpairedPreference),
}


def get_method(name: str) -> Method:
    """A method by name; a `ValueError` lists them for another one."""
    if name not in METHODS:
        raise ValueError(f"there is no alignment method {name!r}: there are {sorted(METHODS)}")
    return METHODS[name]


def make_config(method: str, output_dir: str, **settings: Any) -> TrainingArguments:
    """TRL's configuration of a method, with the defaults that slates need.

    Args:
        method: `orpo`, `orpo-sum`, `dpo`, `dpo-sft`, `simpo`, `cpo`, `cpo-simpo` or `kto`.
        output_dir: where checkpoints go.
        **settings: fields of the configuration, see TRL.

    Raises:
        ValueError: for an unknown method, and for a setting that would make it another method.

    Example:
        >>> make_config("simpo", "runs/simpo", learning_rate=1e-4).loss_type
        'simpo'
    """
    entry = get_method(method)
    config = entry.config(output_dir=output_dir, **{**COMMON, **entry.defaults, **entry.fixed, **settings})
    check_config(method, config)
    return config


def check_config(method: str, config: TrainingArguments) -> None:
    """Make sure that a configuration is one of the method.

    Raises:
        ValueError: naming the setting.
    """
    entry = get_method(method)
    if not isinstance(config, entry.config):
        raise ValueError(f"{method} needs a {entry.config.__name__}, got a {type(config).__name__}: use make_config")
    for name, value in entry.fixed.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{method} is defined by {name}={value!r}; with {getattr(config, name)!r} it is another method"
            )
    if method == "cpo-simpo" and not config.cpo_alpha > 0:
        raise ValueError("cpo-simpo needs cpo_alpha above 0; without it, it is simpo")


def make_trainer(
    method: str,
    model: PreTrainedModel,
    tokenizer: HiGRTokenizer,
    args: TrainingArguments,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    *,
    peft_config: Any = None,
    frozen: Sequence[str] = (),
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> SlateAlignment:
    """A trainer that aligns a model with slate preferences.

    Args:
        method: see [`make_config`].
        model: a `HiGRForSlateGeneration` with its catalogue. DPO and KTO keep a copy of it as their reference.
        tokenizer: the model's.
        args: from [`make_config`].
        train_dataset: pairs, from [`build_preferences`] or your own `prompt`, `chosen`, `rejected` texts. Where there
            is a column `objective`, logs tell the objectives apart.
        eval_dataset: pairs that are only watched.
        peft_config: a `peft.LoraConfig`, to train adapters instead of the weights.
        frozen: parameters that stay as they are, by parts of their names: `embeddings` keeps the item vectors that the
            dense head compares plans with.
        callbacks: for the trainer.
        **options: of [`SlateOptions`].

    Raises:
        PreferenceError: for the first row that cannot be trained on.
        ValueError: for a configuration of another method, a tokenizer of another model, and names of `frozen` that
            match nothing.

    Example:
        >>> args = make_config("orpo-sum", "runs/orpo-sum", learning_rate=1e-4, num_train_epochs=2)
        >>> make_trainer("orpo-sum", model, tokenizer, args, pairs, slate_metrics=judge).train()
    """
    entry = get_method(method)
    check_config(method, args)
    model.check_tokenizer(tokenizer)
    if options.get("dense_weight") and not model.config.dense_head:
        raise ValueError("dense_weight needs a model with a dense head; this one was built with dense_head=False")
    objectives = _objectives(train_dataset, eval_dataset)
    datasets = [
        None if rows is None else _prepared(method, rows, tokenizer, model, args, objectives)
        for rows in (train_dataset, eval_dataset)
    ]
    extra: dict[str, Any] = {}
    if entry.collator is not None:
        eos = None if options.get("count_eos") else tokenizer.eos_token_id
        collate = entry.collator(pad_token_id=tokenizer.pad_token_id, max_length=args.max_length)
        extra["data_collator"] = SlateTokens(collate, eos)
        if peft_config is None and not args.precompute_ref_log_probs:
            extra["ref_model"] = copy.deepcopy(model)
    _freeze(model, frozen)
    return entry.trainer(
        model,
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
        options=SlateOptions(objectives=objectives, **options),
        **extra,
    )


def _objectives(*datasets: Dataset | None) -> tuple[str, ...]:
    named = {name for rows in datasets if rows is not None for name in rows.column_names if name == "objective"}
    if not named:
        return ("all",)
    present = {name for rows in datasets if rows is not None for name in rows.unique("objective")}
    return (*(name for name in OBJECTIVES if name in present), *sorted(present - set(OBJECTIVES)))


def _prepared(
    method: str,
    rows: Dataset,
    tokenizer: HiGRTokenizer,
    model: PreTrainedModel,
    args: TrainingArguments,
    objectives: tuple[str, ...],
) -> Dataset:
    """Only what a trainer reads, the objective as its place in `objectives`."""
    from datasets import Dataset

    check_texts(rows, tokenizer, max_history=model.config.max_history, max_length=args.max_length)
    number = [objectives.index(name) for name in rows["objective"]] if "objective" in rows.column_names else None
    columns = {name: list(rows[name]) for name in TEXT_COLUMNS}
    columns["objective"] = number or [0] * len(rows)
    if method != "kto":
        return Dataset.from_dict(columns)
    if args.per_device_train_batch_size < 2:
        raise PreferenceError(
            "kto estimates its reference point inside a batch: per_device_train_batch_size must be 2 or more"
        )
    single = {
        "prompt": columns["prompt"] * 2,
        "completion": columns["chosen"] + columns["rejected"],
        "label": [True] * len(rows) + [False] * len(rows),
        "objective": columns["objective"] * 2,
    }
    # TRL pairs a prompt with its neighbour's slate to estimate the reference point: neighbours must be strangers.
    return Dataset.from_dict(single).shuffle(seed=args.seed).flatten_indices()


def _freeze(model: torch.nn.Module, names: Sequence[str]) -> None:
    for name in names:
        matching = [parameter for key, parameter in model.named_parameters() if name in key]
        if not matching:
            raise ValueError(f"frozen: no parameter's name contains {name!r}, such as 'embeddings' or 'encoder'")
        for parameter in matching:
            parameter.requires_grad_(False)
