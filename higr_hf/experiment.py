"""One training run from a split log to a judged model: what the scripts, the quickstart and the studies share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, TrainingArguments

from .architectures import architecture
from .data.collators import SlateCollator
from .data.encoding import EncodedSequence, FeatureEdges, TokenLayout, encode_sequences, encode_training_sequences
from .evaluation import EvaluationResult, SlateEvaluator
from .judging import SlateJudge
from .recommender import SlateRecommender
from .trainer import SlateTrainer

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from .modeling_higr import HiGRForSlateGeneration
    from .tokenization_higr import HiGRTokenizer


@dataclass
class ExperimentSettings:
    """What decides a run, beside the data and the `TrainingArguments`.

    Args:
        preset: size of the model, see [`HiGRConfig.from_preset`].
        architecture: `higr`, or `onerec` for the flat decoder of the same size.
        model: further fields of the configuration.
        collator: fields of [`SlateCollator`].
        generation: how slates are decoded in evaluation, arguments of `generate`.
        wish: feedback level asked for in evaluation.
        exclude_history: whether items of the history may not be recommended again.
        every_event: whether a pass holds a sequence longer than the model's history as often as it takes for every
            event to be drawn about once; otherwise once.
        eval_users: users (drawn once) of the validation split that judge the model while it trains.
        patience: evaluations without a better validation metric before training stops; 0 to never stop early.
    """

    preset: str = "tiny"
    architecture: str = "higr"
    model: Mapping[str, Any] = field(default_factory=dict)
    collator: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    wish: int | None = None
    exclude_history: bool = True
    every_event: bool = False
    eval_users: int | None = None
    patience: int = 0


class Experiment:
    """A model to be trained on the `train` split and judged on the others.

    Args:
        splits: what `leave_last_out` or `basket_splits` returned.
        tokenizer: a [`HiGRTokenizer`] with the feature tokens that `edges` needs.
        edges: where feedback and time gaps are cut.
        settings: see [`ExperimentSettings`].
        embeddings: float `[N, E]`, for the diversity of slates.
        slate_size: M.
        list_size: items that are recommended when the model is judged; M by default.
        seed: of the weights and of the validation users.

    Raises:
        ValueError: for a tokenizer whose feature tokens are not those that `edges` makes.

    Example:
        >>> experiment = Experiment(splits, tokenizer, edges, ExperimentSettings())
        >>> trainer = experiment.trainer(arguments)
        >>> trainer.train()
        >>> experiment.evaluate("test").metrics["ndcg@5"]
    """

    def __init__(
        self,
        splits: DatasetDict,
        tokenizer: HiGRTokenizer,
        edges: FeatureEdges,
        settings: ExperimentSettings,
        *,
        embeddings: np.ndarray | None = None,
        slate_size: int = 5,
        list_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.splits, self.tokenizer, self.edges, self.settings = splits, tokenizer, edges, settings
        self.embeddings, self.slate_size, self.seed = embeddings, slate_size, seed
        self.list_size = slate_size if list_size is None else list_size
        for name in ("num_feedback_levels", "num_time_buckets"):
            if getattr(tokenizer, name) != getattr(edges, name):
                raise ValueError(
                    f"The edges make {name} = {getattr(edges, name)}, the tokenizer has {getattr(tokenizer, name)}: "
                    "make the tokenizer with the same edges."
                )
        torch.manual_seed(seed)
        config_class, model_class = architecture(settings.architecture)
        self.config = config_class.from_preset(
            settings.preset,
            **{
                "codebook_sizes": list(tokenizer.codebook_sizes),
                "num_items": tokenizer.num_items,
                "num_feedback_levels": edges.num_feedback_levels,
                "num_time_buckets": edges.num_time_buckets,
                "feedback_edges": list(edges.feedback),
                "time_edges": list(edges.time),
                "slate_size": slate_size,
                "tokenizer_fingerprint": tokenizer.fingerprint,
                **settings.model,
            },
        )
        self.model = model_class(self.config)
        self.model.set_catalog(torch.as_tensor(np.array(tokenizer.codes)), torch.as_tensor(np.array(tokenizer.active)))

    def collator(self) -> SlateCollator:
        """How training sequences become batches."""
        fields = {
            "slate_size": self.slate_size,
            "max_history": self.config.max_history,
            "seed": self.seed,
            **self.settings.collator,
        }
        return SlateCollator(TokenLayout.of(self.tokenizer), **fields)

    def sequences(self, split: str) -> list[EncodedSequence]:
        """A split as runs of events: every user's training events, or a row's history with its target slate last."""
        if split == "train":
            return encode_training_sequences(self.splits[split], self.tokenizer, self.edges)
        rows = encode_sequences(self.splits[split], self.tokenizer, self.edges)
        targets = encode_sequences(self.splits[split], self.tokenizer, self.edges, side="target")
        return [_joined(row, target) for row, target in zip(rows, targets, strict=True)]

    def trainer(self, arguments: TrainingArguments, **kwargs: Any) -> SlateTrainer:
        """A trainer whose validation metrics are `eval_loss` and those of [`SlateEvaluator`]."""
        users = self.judge.watched_users(self.settings.eval_users)
        evaluator = self.evaluator(self.splits["validation"].select(users), num_resamples=0, progress=False)
        validation = self.sequences("validation")

        def slate_metrics(model: HiGRForSlateGeneration) -> dict[str, float]:
            return evaluator.evaluate(self.recommender()).known_metrics

        collator = self.collator()
        runs = collator.num_runs if self.settings.every_event else lambda length: 1
        train = [row for row in self.sequences("train") if len(row)]
        callbacks = list(kwargs.pop("callbacks", []))
        if self.settings.patience:
            callbacks.append(EarlyStoppingCallback(self.settings.patience))
        return SlateTrainer(
            self.model,
            arguments,
            data_collator=collator,
            train_dataset=[row for row in train for _ in range(runs(len(row)))],
            eval_dataset=[validation[user] for user in users],
            slate_metrics=slate_metrics,
            callbacks=callbacks,
            **kwargs,
        )

    @property
    def judge(self) -> SlateJudge:
        """How slates are decoded and judged, as the settings say."""
        return SlateJudge(
            splits=self.splits,
            tokenizer=self.tokenizer,
            slate_size=self.list_size,
            generation=self.settings.generation,
            wish=self.settings.wish,
            exclude_history=self.settings.exclude_history,
            embeddings=self.embeddings,
            seed=self.seed,
        )

    def recommender(self, **changes: Any) -> SlateRecommender:
        """The model as a recommender, decoding as the settings say but for `changes` to [`SlateRecommender`]."""
        return self.judge.recommender(self.model, **changes)

    def evaluator(self, split: str | Dataset, **options: Any) -> SlateEvaluator:
        """The evaluator of a split by name, or of rows of one."""
        return self.judge.evaluator(split, **options)

    def evaluate(self, split: str = "test", **options: Any) -> EvaluationResult:
        """Judge the model's slates on a whole split."""
        return self.judge.evaluate(self.model, split, **options)

    def with_generation(self, **generation: Any) -> Experiment:
        """The same trained model, decoding differently."""
        twin = object.__new__(Experiment)
        twin.__dict__ = dict(self.__dict__)
        twin.settings = replace(self.settings, generation={**self.settings.generation, **generation})
        return twin


def _joined(history: EncodedSequence, target: EncodedSequence) -> EncodedSequence:
    """A history and the list that follows it."""
    return EncodedSequence(
        np.concatenate([history.items, target.items]),
        np.concatenate([history.feedback, target.feedback]),
        np.concatenate([history.time, target.time]),
        np.append(np.arange(len(history)), np.full(len(target), len(history))),
    )
