"""TRL's preference trainers for slates: the same losses, on the slate's tokens, watched objective by objective.

Make one with [`make_trainer`]. What is decided here, and why:

- The negative log-likelihood of ORPO is taken over the completion. TRL takes it over prompt and completion; a history
  of a hundred items would weigh twenty times its slate, although the model has been trained on it before, and
  positions in front of a feature token, whose distribution is uniform by construction, would count as a constant.
- `<eos>` does not count, see [`SlateTokens`].
- Log-probabilities are computed in float32, also from half-precision logits. All slates of a dataset are of M items,
  so that a mean over tokens (ORPO, SimPO) is the sum divided by M·L: a matter of β, not of length bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ..layout_higr import SlateLayout
from ..trainer import COMPLETE, last_complete_checkpoint
from . import _trl
from .collators import SlateTokens
from .losses import CERTAIN, dense_slate_loss, log_odds, token_log_probs
from .monitoring import ObjectiveMeter

NLL_ON = ("completion", "sequence")


@dataclass(frozen=True)
class SlateOptions:
    """What a trainer does beyond TRL.

    Args:
        objectives: names of the objectives; the rows' `objective` is a place in it.
        slate_metrics: called with the model at every evaluation; its results are logged with the prefix `eval_`.
        count_eos: let `<eos>` count, as plain TRL does.
        nll_on: what ORPO's negative log-likelihood covers: `completion` or the whole `sequence`, as plain TRL does.
        nll_weight: its weight.
        dense_weight: weight of the dense head's loss on chosen slates, see [`dense_slate_loss`].
    """

    objectives: Sequence[str] = ("all",)
    slate_metrics: Callable[[torch.nn.Module], dict[str, float]] | None = None
    count_eos: bool = False
    nll_on: str = "completion"
    nll_weight: float = 1.0
    dense_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.nll_on not in NLL_ON:
            raise ValueError(f"nll_on must be one of {list(NLL_ON)}, got {self.nll_on!r}")
        for name in ("nll_weight", "dense_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class SlateAlignment:
    """What every method shares: the dense head's loss, slate metrics, logs per objective, whole checkpoints."""

    def __init__(self, *args: Any, options: SlateOptions, **kwargs: Any) -> None:
        self.options = options
        self.meter = ObjectiveMeter(options.objectives)
        self._captured: tuple[torch.Tensor, ...] | None = None
        super().__init__(*args, **kwargs)
        if options.dense_weight:
            self.slate_model().model.register_forward_hook(self._capture, with_kwargs=True)

    def slate_model(self) -> torch.nn.Module:
        """The model that is aligned, without what trainers wrap around it; adapters stay active."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    # ---- the loss

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """TRL's loss, and the dense head's where it has a weight."""
        self._captured = None
        result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        if not (self.options.dense_weight and self.model.training):
            return result
        loss = result[0] if return_outputs else result
        loss = loss + self.options.dense_weight * self._dense_loss(inputs)
        return (loss, *result[1:]) if return_outputs else loss

    def _capture(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        # The reference's pass and KTO's mismatched pairs run without gradients; the policy's is the only other one.
        if output.plans is not None and output.plans.requires_grad:
            tokens = args[0] if args else kwargs["input_ids"]
            self._captured = (tokens, kwargs.get("attention_mask"), output.plans, output.unit_items)

    def _dense_loss(self, inputs: dict[str, Any]) -> torch.Tensor:
        tokens, mask, plans, items = self._captured
        model = self.slate_model()
        chosen = inputs["label"].bool() if "label" in inputs else torch.arange(len(tokens)) < len(tokens) // 2
        chosen = chosen.nonzero()[:, 0].to(tokens.device)
        layout = SlateLayout.parse(tokens[chosen], None if mask is None else mask[chosen], model.config)
        items = model.model.unit_items(layout) if items is None else items[chosen, : layout.size]
        return dense_slate_loss(model, plans[chosen, : layout.size], items, layout)

    # ---- what is watched

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """TRL's, and the slate metrics beside it."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.options.slate_metrics is not None:
            was_training = self.model.training
            self.model.eval()
            for name, value in self.options.slate_metrics(self.slate_model()).items():
                output.metrics[f"{metric_key_prefix}_{name}"] = float(value)
            self.model.train(was_training)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the margin and the accuracy of every objective."""
        mode = "train" if "loss" in logs else "eval" if any(name.startswith("eval_") for name in logs) else None
        if mode:
            prefix = "" if mode == "train" else "eval_"
            means = self.meter.pop(mode, self._summed)
            logs.update({f"{prefix}{name}": value for name, value in means.items()})
        super().log(logs, start_time)

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.float().to(self.accelerator.device), reduction="sum").cpu()

    def _count_pairs(self, mode: str, objective: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
        correct = chosen > rejected
        self.meter.add(mode, 0, objective, chosen, correct)
        self.meter.add(mode, 1, objective, rejected, correct)

    # ---- checkpoints

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # Last of all: what is resumed from must have been written to its end.
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.is_dir():
            (folder / COMPLETE).touch()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`; `True` resumes from the newest checkpoint that was written to its end, if there is one.

        Raises:
            ValueError: for a checkpoint that a kill or a full disk left half-written.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        elif resume_from_checkpoint and not (Path(resume_from_checkpoint) / COMPLETE).exists():
            raise ValueError(
                f"{resume_from_checkpoint} was not written to its end (it has no {COMPLETE!r} file): resume from an "
                "earlier checkpoint, or pass True to take the newest whole one."
            )
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine that nobody asked for."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Cards are written by this library's own command, with what was measured."""


class _LogitPairs(SlateAlignment):
    """ORPO and CPO: pairs whose log-probabilities come from `outputs.logits`."""

    def __init__(self, *args: Any, options: SlateOptions, **kwargs: Any) -> None:
        super().__init__(*args, options=options, **kwargs)
        eos = None if options.count_eos else self.processing_class.eos_token_id
        self.data_collator = SlateTokens(self.data_collator, eos)
        self._rewards: tuple[torch.Tensor, torch.Tensor] | None = None

    def get_batch_logps(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        average_log_prob: bool = False,
        is_encoder_decoder: bool = False,
    ) -> torch.Tensor:
        """As in TRL, in float32 and defined for a completion without tokens."""
        log_probs, mask = token_log_probs(logits, labels)
        return log_probs.sum(-1) / mask.sum(-1).clamp(min=1) if average_log_prob else log_probs.sum(-1)

    def get_batch_loss_metrics(
        self, model: torch.nn.Module, batch: dict[str, Any], train_eval: str = "train"
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """TRL's, with the rewards counted per objective."""
        result = super().get_batch_loss_metrics(model, batch, train_eval)
        self._count_pairs(train_eval, batch["objective"], *self._rewards)
        return result


class SlateCPOTrainer(_LogitPairs, _trl.CPOTrainer):
    """CPO, and with `loss_type="simpo"` SimPO."""

    def cpo_loss(self, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As in TRL."""
        losses, *rewards = super().cpo_loss(chosen, rejected)
        self._rewards = tuple(rewards)
        return losses, *rewards


class SlateORPOTrainer(_LogitPairs, _trl.ORPOTrainer):
    """ORPO as TRL has it: the odds of the length-averaged log-probability."""

    def odds_ratio_loss(self, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As in TRL, with the log-odds of a certain slate kept finite as in [`log_odds`]."""
        result = super().odds_ratio_loss(chosen.float().clamp(max=CERTAIN), rejected.float().clamp(max=CERTAIN))
        self._rewards = result[1:3]
        return result

    def concatenated_forward(self, model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """As in TRL, with the negative log-likelihood over the completion unless the whole sequence is asked for."""
        chosen, rejected, chosen_logits, rejected_logits, nll, *rest = super().concatenated_forward(model, batch)
        if self.options.nll_on == "completion":
            nll = self._completion_nll(chosen, batch)
        return chosen, rejected, chosen_logits, rejected_logits, self.options.nll_weight * nll, *rest

    def _completion_nll(self, chosen: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        tokens = (batch["chosen_labels"][:, 1:] != -100).sum(-1).to(chosen.device)
        return -(chosen * tokens).sum() / tokens.sum().clamp(min=1)


class SlateORPOSumTrainer(SlateORPOTrainer):
    """ORPO as HiGR has it: log-odds summed over the slate's tokens.

    With ℓ(t) = log[π / (1 − π)] and z = Σ_t ℓ(t) over all M·L code tokens, L = −log π(y⁺) − α·log σ(z⁺ − z⁻): both
    terms are sums over a slate's tokens, the first not divided by their number. α is the configuration's `beta`. TRL's
    ORPO takes the odds of exp(mean log π) instead, a product of probabilities where this is a product of odds.

    Source: HiGR (arXiv 2512.24787), the listwise preference objective.
    """

    def get_batch_logps(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        average_log_prob: bool = False,
        is_encoder_decoder: bool = False,
    ) -> torch.Tensor:
        """The summed log-probabilities; the summed log-odds are kept for the loss."""
        log_probs, mask = token_log_probs(logits, labels)
        self._log_odds = torch.where(mask, log_odds(log_probs), 0).sum(-1)
        return log_probs.sum(-1)

    def odds_ratio_loss(self, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """α·log σ(z⁺ − z⁻), which TRL subtracts from the negative log-likelihood."""
        chosen_odds, rejected_odds = self._log_odds.split([len(chosen), len(rejected)])
        margin = chosen_odds - rejected_odds
        ratio = functional.logsigmoid(margin)
        self._rewards = self.beta * chosen_odds.detach(), self.beta * rejected_odds.detach()
        return self.beta * ratio, *self._rewards, ratio.mean(), margin.mean()

    def _completion_nll(self, chosen: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        return -chosen.mean()


class _ReferenceRewards(SlateAlignment):
    """DPO and KTO: rewards against a reference, from TRL's fused head over the base model's hidden states."""

    def __init__(self, *args: Any, options: SlateOptions, data_collator: Callable, **kwargs: Any) -> None:
        super().__init__(*args, options=options, data_collator=data_collator, **kwargs)
        self._log_probs: list[torch.Tensor] = []
        for model in (self.model, self.ref_model):
            if model is not None:
                model.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, args: tuple, output: Any) -> None:
        if getattr(output, "log_probs", None) is not None:
            self._log_probs.append(output.log_probs.detach().sum(-1))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "objective" not in self._signature_columns:
            self._signature_columns.append("objective")

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        objective = inputs["objective"]
        self._log_probs.clear()
        result = super()._compute_loss(model, {k: v for k, v in inputs.items() if k != "objective"}, return_outputs)
        self._count(mode, objective, inputs)
        self._log_probs.clear()
        return result

    def _policy(self) -> torch.Tensor:
        # Passes come in the order [mismatched pairs,] policy, and where nothing was precomputed the reference's two.
        passes = self._log_probs
        return passes[-1] if self.precompute_ref_logps else passes[len(passes) // 2 - 1]


class SlateDPOTrainer(_ReferenceRewards, _trl.DPOTrainer):
    """DPO against the starting model."""

    def _count(self, mode: str, objective: torch.Tensor, inputs: dict[str, Any]) -> None:
        if self.precompute_ref_logps:
            reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        else:
            reference = self._log_probs[-1]
        rewards = self.beta * (self._policy() - reference)
        self._count_pairs(mode, objective, *rewards.chunk(2))


class SlateKTOTrainer(_ReferenceRewards, _trl.KTOTrainer):
    """KTO against the starting model, on single slates that are liked or not.

    A slate counts as told right when its reward has its label's sign; the margin is the difference of mean rewards.
    """

    def _count(self, mode: str, objective: torch.Tensor, inputs: dict[str, Any]) -> None:
        reference = inputs["ref_logps"] if self.precompute_ref_logps else self._log_probs[-1]
        rewards = self.beta * (self._policy() - reference)
        liked = inputs["label"].bool().to(rewards.device)
        for side, rows, sign in ((0, liked, 1), (1, ~liked, -1)):
            self.meter.add(mode, side, objective[rows.to(objective.device)], rewards[rows], sign * rewards[rows] > 0)
