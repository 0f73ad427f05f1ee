"""One alignment from a trained checkpoint to a judged one: what the script and the studies share."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation import EvaluationResult
from ..item_item import detach_item_item
from ..judging import SlateJudge
from .factory import make_trainer
from .monitoring import StopWhenItHurts, metric_history
from .rendering import PreferenceError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedModel, TrainingArguments

    from ..tokenization_higr import HiGRTokenizer
    from .trainers import SlateAlignment


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings:
    """How a run is watched and what is kept.

    Args:
        slate_size: M of the slates that are judged; the model's by default.
        generation: how slates are decoded when they are judged, arguments of `generate`.
        wish: feedback level asked for.
        exclude_history: whether items of the history may not be recommended again.
        eval_users: users (drawn once) of the validation split that judge the model while it is aligned.
        eval_share: share of the users with pairs whose pairs are only watched, not trained on.
        patience: evaluations without a better slate metric before the run is stopped; 0 to never stop.
        seed: of both draws.
    """

    slate_size: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    wish: int | None = None
    exclude_history: bool = True
    eval_users: int | None = None
    eval_share: float = 0.05
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.eval_share < 1:
            raise ValueError(f"eval_share must lie between 0 and 1, got {self.eval_share}")


class AlignmentRun:
    """A model, its pairs, and the users it is judged by.

    Args:
        method: see [`make_config`].
        model: the starting model; it is trained in place.
        tokenizer: its tokenizer.
        splits: `validation` and what else is to be judged on, from `leave_last_out` or `basket_splits`.
        pairs: from [`build_preferences`] or [`load_preferences`].
        arguments: from [`make_config`]. With `metric_for_best_model="eval_ndcg@5"` and evaluations, the best
            checkpoint is kept; with `eval_on_start=True` the starting model competes.
        settings: see [`AlignmentSettings`].
        embeddings: float `[N, E]`, for the diversity of slates.
        **options: of [`make_trainer`], such as `peft_config`, `frozen` or `dense_weight`.

    Example:
        >>> run = AlignmentRun("orpo-sum", model, tokenizer, splits, pairs, make_config("orpo-sum", "runs/orpo-sum"))
        >>> run.train()
        >>> run.evaluate("test").metrics["ndcg@5"]
    """

    def __init__(
        self,
        method: str,
        model: PreTrainedModel,
        tokenizer: HiGRTokenizer,
        splits: DatasetDict | Mapping[str, Dataset],
        pairs: Dataset,
        arguments: TrainingArguments,
        *,
        settings: AlignmentSettings | None = None,
        embeddings: np.ndarray | None = None,
        **options: Any,
    ) -> None:
        self.settings = settings or AlignmentSettings()
        self.model = model
        self.judge = SlateJudge(
            splits=splits,
            tokenizer=tokenizer,
            slate_size=self.settings.slate_size or model.config.slate_size,
            generation=self.settings.generation,
            wish=self.settings.wish,
            exclude_history=self.settings.exclude_history,
            embeddings=embeddings,
            seed=self.settings.seed,
        )
        self.kept = "aligned"
        # The pairs are made of the rows that item-item tables were fitted on: they are left out of the loss.
        self.tables = detach_item_item(model)
        # Kept apart for the case that nothing helps; adapters leave the weights below them as they are.
        self._start = None if options.get("peft_config") else copy.deepcopy(model.state_dict())
        train, watched = hold_out(pairs, self.settings.eval_share, self.settings.seed)
        users = splits["validation"].select(self.judge.watched_users(self.settings.eval_users))
        evaluator = self.judge.evaluator(users, num_resamples=0, progress=False)

        def slate_metrics(model: PreTrainedModel) -> dict[str, float]:
            with self.tables.attached(model):
                return evaluator.evaluate(self.judge.recommender(model)).known_metrics

        callbacks = []
        if self.settings.patience:
            callbacks.append(StopWhenItHurts(_eval(arguments.metric_for_best_model), self.settings.patience))
        self.trainer: SlateAlignment = make_trainer(
            method,
            model,
            tokenizer,
            arguments,
            train,
            watched,
            slate_metrics=slate_metrics,
            callbacks=callbacks,
            **options,
        )

    def evaluate(self, split: str = "validation", **options: Any) -> EvaluationResult:
        """Judge the slates of the model as it is now on a whole split."""
        model = self.trainer.slate_model()
        with self.tables.attached(model):
            return self.judge.evaluate(model, split, **options)

    def train(self, resume_from_checkpoint: str | None = None) -> PreTrainedModel:
        """Align, and keep the better of the best checkpoint and the starting model.

        Returns:
            The model that is kept, adapters merged into its weights. `kept` says which one it is.
        """
        trainer = self.trainer
        if resume_from_checkpoint:
            trainer.args.eval_on_start = False  # the log that is resumed holds it
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        metric = _eval(trainer.args.metric_for_best_model)
        values = metric_history(trainer.state.log_history, metric)
        start_was_judged = any(entry["step"] == 0 and metric in entry for entry in trainer.state.log_history)
        if trainer.args.load_best_model_at_end and start_was_judged and max(values) <= values[0]:
            self.kept = "start"
        wrapped = trainer.accelerator.unwrap_model(trainer.model)
        if hasattr(wrapped, "merge_and_unload"):
            self.model = wrapped.unload() if self.kept == "start" else wrapped.merge_and_unload()
            trainer.model = self.model
        elif self.kept == "start":
            self.model.load_state_dict(self._start)
        self._start = None
        self.tables.attach(self.model)
        return self.model.eval()


def hold_out(pairs: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset | None]:
    """Divide pairs by users: those trained on, and those only watched (`None` for a share of 0).

    Raises:
        PreferenceError: when no user would be left on one side.
    """
    if not share:
        return pairs, None
    if "user_id" not in pairs.column_names:
        raise PreferenceError("pairs without a user_id cannot be held out by user: give eval_share 0")
    users = np.asarray(pairs["user_id"])
    names = np.unique(users)
    number = max(1, round(share * len(names)))
    if number >= len(names):
        raise PreferenceError(
            f"{len(names)} users have pairs, too few to hold {number} of them out: give eval_share 0"
        )
    chosen = np.random.default_rng([seed, 2]).choice(names, number, replace=False)
    watched = np.isin(users, chosen)
    return pairs.select(np.flatnonzero(~watched)), pairs.select(np.flatnonzero(watched))


def _eval(metric: str | None) -> str:
    metric = metric or "eval_loss"
    return metric if metric.startswith("eval_") else f"eval_{metric}"


def lora_config(rank: int = 8, alpha: int | None = None, targets: str | Sequence[str] = "all-linear") -> Any:
    """A `peft.LoraConfig` for the linear layers of a HiGR model.

    Raises:
        ImportError: when peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError("LoRA needs peft: pip install 'higr_hf[peft]'") from None
    targets = targets if isinstance(targets, str) else list(targets)
    return LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=targets, lora_dropout=0.0
    )
