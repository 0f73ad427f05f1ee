"""From histories to slates: the model, its tokenizer and a way of decoding, as one callable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .data.collators import PromptCollator
from .data.encoding import EncodedSequence, FeatureEdges, TokenLayout

if TYPE_CHECKING:
    from .modeling_higr import HiGRForSlateGeneration
    from .search_higr import HiGRGenerateOutput
    from .tokenization_higr import HiGRTokenizer


@dataclass
class SlateRecommender:
    """Decodes slates for rows of a split.

    Args:
        model: a [`HiGRForSlateGeneration`].
        tokenizer: its [`HiGRTokenizer`].
        slate_size: M; the model's by default.
        wish: feedback level asked for, for models trained with one.
        generation: further arguments of `generate`, such as `num_beams`, `slate_mode` or `rerank_weight`.

    Example:
        >>> recommender = SlateRecommender(model, tokenizer, generation={"num_beams": 20})
        >>> evaluator.evaluate(recommender).metrics["ndcg@5"]
    """

    model: HiGRForSlateGeneration
    tokenizer: HiGRTokenizer
    slate_size: int | None = None
    wish: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.model.config
        self.model.check_tokenizer(self.tokenizer)
        self.edges = FeatureEdges(tuple(config.feedback_edges), tuple(config.time_edges))
        self._collate = PromptCollator(TokenLayout.of(self.tokenizer), config.max_history, self.wish)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """Slates for a batch of rows as [`SlateEvaluator`] sends them.

        Args:
            batch: columns `history_indices` (item indices, oldest first), `exclude_indices`, and where known
                `history_feedback`, `history_timestamps` and `request_timestamps`.

        Returns:
            int64 `[B, M]` item indices.
        """
        return self.generate(batch).slates.cpu().numpy()

    def generate(self, batch: Mapping[str, Sequence[Any]]) -> HiGRGenerateOutput:
        """The same, with scores and the candidates of every slot."""
        self.model.eval()
        return self.model.generate(**self.inputs(batch))

    def inputs(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """What the model's `generate` is given for a batch: prompts, excluded items and the way of decoding."""
        prompts = self._collate([self._encode(batch, row) for row in range(len(batch["history_indices"]))])
        excluded = [torch.as_tensor(np.asarray(items, dtype=np.int64)) for items in batch["exclude_indices"]]
        options = dict(self.generation)
        if self.model.config.reads_whole_history:
            whole = [torch.as_tensor(np.asarray(items, dtype=np.int64)) for items in batch["history_indices"]]
            options["history"] = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=-1)
        if self.model.config.trend_days and "request_timestamps" in batch:
            options["request_time"] = batch["request_timestamps"]
        return {
            **{name: tensor.to(self.model.device) for name, tensor in prompts.items()},
            "slate_size": self.slate_size,
            "exclude": torch.nn.utils.rnn.pad_sequence(excluded, batch_first=True, padding_value=-1),
            "return_dict_in_generate": True,
            **options,
        }

    def _encode(self, batch: Mapping[str, Sequence[Any]], row: int) -> EncodedSequence:
        items = np.asarray(batch["history_indices"][row], dtype=np.int64)
        feedback = time = np.full(len(items), -1, dtype=np.int64)
        if self.edges.feedback and "history_feedback" in batch:
            feedback = self.edges.feedback_levels(batch["history_feedback"][row])
        if self.edges.time and "history_timestamps" in batch:
            time = self.edges.time_buckets(batch["history_timestamps"][row])
        if not len(items) == len(feedback) == len(time):
            raise ValueError(
                f"Row {row} has {len(items)} known items but {len(feedback)} feedback values and {len(time)} times: "
                "an item of the history is not in the tokenizer's catalogue."
            )
        return EncodedSequence(items, feedback, time)
