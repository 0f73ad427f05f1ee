"""The model, its batches and its decoding, as options of the scripts that train."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from higr_hf.architectures import architecture
from higr_hf.configuration_higr import HiGRConfig
from higr_hf.data.collators import SlateCollator
from higr_hf.data.encoding import FeatureEdges
from higr_hf.experiment import ExperimentSettings
from higr_hf.modeling_higr import HiGRForSlateGeneration

from ._args import mapping, numbers

# What the tokenizer, the edges, fitted tables and the slate size decide, and what the recommender gives to `generate`.
_MODEL = set(HiGRConfig.__annotations__) - {
    "codebook_sizes", "feedback_edges", "item_item_decays", "item_item_neighbours", "item_item_scales",
    "num_feedback_levels", "num_items", "num_time_buckets", "slate_size", "time_edges", "tokenizer_fingerprint",
    "vocab_size",
}  # fmt: skip
_COLLATOR = {entry.name for entry in dataclasses.fields(SlateCollator)} - {"layout", "slate_size", "last_slate_only"}
_GIVEN = {
    "self", "kwargs", "attention_mask", "exclude", "history", "input_ids", "return_dict_in_generate", "slate_size",
}  # fmt: skip


@dataclass
class ModelArguments:
    """The model, its batches and its decoding. The mappings are written as YAML or JSON."""

    _argument_group_name = "model"

    architecture: str = field(
        default="higr", metadata={"help": "higr, or onerec: the flat decoder of the same size, to compare with."}
    )
    preset: str = field(default="tiny", metadata={"help": "tiny, small or base."})
    model: str = field(default="{}", metadata={"help": "Further fields of HiGRConfig, such as '{dropout: 0.2}'."})
    collator: str = field(default="{}", metadata={"help": "Fields of SlateCollator, such as '{num_windows: 8}'."})
    generation: str = field(default="{}", metadata={"help": "Arguments of generate for evaluation."})
    feedback_edges: str = field(default="[]", metadata={"help": "Ascending cuts of raw feedback into levels."})
    time_edges: str = field(default="[]", metadata={"help": "Ascending cuts of time gaps, in seconds."})
    wish: int | None = field(default=None, metadata={"help": "Feedback level asked for when decoding."})
    exclude_history: bool = field(default=True, metadata={"help": "Never recommend an item of the history."})
    every_event: bool = field(
        default=False,
        metadata={"help": "Every event about once a pass: long sequences stand in it several times, a run each time."},
    )
    eval_users: int | None = field(default=None, metadata={"help": "Validation users judged while training."})
    patience: int = field(default=0, metadata={"help": "Evaluations without progress before stopping; 0 = never."})
    diversity_embeddings: str = field(
        default="text",
        metadata={"help": "What slate diversity is measured on: text, collaborative, both, a .npy file, or none."},
    )

    def settings(self) -> ExperimentSettings:
        """As an [`ExperimentSettings`]; an unknown key ends the script."""
        return ExperimentSettings(
            preset=self.preset,
            architecture=self.architecture,
            model=mapping("model", self.model, _MODEL),
            collator=mapping("collator", self.collator, _COLLATOR),
            generation=generation_of(self.generation, architecture(self.architecture)[1]),
            wish=self.wish,
            exclude_history=self.exclude_history,
            every_event=self.every_event,
            eval_users=self.eval_users,
            patience=self.patience,
        )

    def edges(self) -> FeatureEdges:
        """Where feedback and time are cut."""
        edges = FeatureEdges(
            tuple(numbers("feedback_edges", self.feedback_edges)), tuple(numbers("time_edges", self.time_edges))
        )
        check_wish(self.wish, edges)
        return edges


def generation_of(
    value: str | Mapping[str, Any], model_class: type[HiGRForSlateGeneration] = HiGRForSlateGeneration
) -> dict[str, Any]:
    """The option `--generation`, known keys only: a typing error would else show after the first epoch."""
    return mapping("generation", value, set(inspect.signature(model_class.generate).parameters) - _GIVEN)


def check_wish(wish: int | None, edges: FeatureEdges) -> None:
    """The feedback level asked for must be one that the edges make.

    Raises:
        SystemExit: for another one.
    """
    if wish is not None and not 0 <= wish < edges.num_feedback_levels:
        raise SystemExit(
            f"error: --wish {wish} is no feedback level: the feedback edges make {edges.num_feedback_levels}"
        )


def check_unseen(slate_size: int, model: HiGRForSlateGeneration) -> None:
    """The held-out slates must not reach back into what the model was trained on.

    Raises:
        SystemExit: for slates longer than those that its training held out.
    """
    if slate_size > model.config.slate_size:
        raise SystemExit(
            f"error: --slate_size {slate_size} would ask for events that the model, trained for slates of "
            f"{model.config.slate_size}, has seen in training: use {model.config.slate_size} or less"
        )


def check_best_metric(arguments: TrainingArguments, slate_size: int, patience: int) -> None:
    """What chooses the best model must be measured: found out now instead of at the first evaluation.

    Raises:
        SystemExit: for a metric at another slate size, and for patience without a metric.
    """
    metric = arguments.metric_for_best_model
    name, at, size = (metric or "").partition("@")
    if at and size != str(slate_size):
        raise SystemExit(
            f"error: --metric_for_best_model {metric} is not measured on slates of {slate_size}: use "
            f"{name}@{slate_size}"
        )
    if patience and (metric is None or str(arguments.eval_strategy.value) == "no"):
        raise SystemExit(
            "error: --patience needs something to watch: set --eval_strategy, --metric_for_best_model and "
            "--load_best_model_at_end"
        )
