"""A catalogue that lives: items join and leave a trained model, and nobody's semantic ID ever changes.

A joining item gets its semantic ID from the quantiser that the catalogue was fitted with, and is known to the model by
that alone: the codes' embeddings are trained, its own row of the item embedding starts at zero. A leaving item keeps
index and semantic ID, so that histories which hold it still read, and can never be recommended.

Each change raises `tokenizer.catalog_version` by one and gives tokenizer and model a new common fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from .semantic_ids import assign_new

if TYPE_CHECKING:
    from .modeling_crq_vae import CRQVAEModel
    from .modeling_higr import HiGRForSlateGeneration
    from .tokenization_higr import HiGRTokenizer


def add_items(
    model: HiGRForSlateGeneration,
    tokenizer: HiGRTokenizer,
    quantizer: CRQVAEModel,
    item_ids: Sequence[str],
    embeddings: torch.Tensor | np.ndarray,
    titles: Sequence[str | None] | None = None,
) -> np.ndarray:
    """Let items join, in place: semantic IDs from the fitted quantiser, then tokenizer and model. Nothing is trained.

    Args:
        model: the trained model.
        tokenizer: its tokenizer.
        quantizer: the quantiser that the tokenizer's semantic IDs came from.
        item_ids: n ids that the catalogue does not hold.
        embeddings (float `[n, E]`): made as those of the old items were.
        titles: n titles.

    Returns:
        int64 `[n]`, the new item indices.

    Raises:
        ValueError: for a tokenizer of another model, ids that are taken or repeated, embeddings of another width or
            with NaN, or more items than free semantic IDs. Model and tokenizer are then as they were.

    Example:
        >>> indices = add_items(model, tokenizer, quantizer, ["film-2001"], embeddings, titles=["New Film"])
        >>> save_checkpoint("runs/model-v2", model, tokenizer)
    """
    model.check_tokenizer(tokenizer)
    _check_grown(model, tokenizer)
    if len(item_ids) != len(embeddings):
        raise ValueError(f"{len(item_ids)} new items with {len(embeddings)} embeddings: pass one row an item.")
    if not len(item_ids):
        return np.empty(0, dtype=np.int64)
    # Removed items count as taken: an item that comes back must find its semantic ID free.
    codes = assign_new(quantizer, embeddings, tokenizer.codes, tokenizer.codebook_sizes)
    indices = tokenizer.add_items(item_ids, codes, titles)
    update_catalog(model, tokenizer)
    return indices


def remove_items(model: HiGRForSlateGeneration, tokenizer: HiGRTokenizer, items: Sequence[str | int]) -> None:
    """Let items leave, in place: `generate` never recommends them again, whatever its arguments.

    Raises:
        ValueError: for a tokenizer of another model, an unknown item, or when no item would be left.
    """
    model.check_tokenizer(tokenizer)
    _check_grown(model, tokenizer)
    tokenizer.remove_items(items)
    update_catalog(model, tokenizer)


def restore_items(model: HiGRForSlateGeneration, tokenizer: HiGRTokenizer, items: Sequence[str | int]) -> None:
    """Undo [`remove_items`] for these items; their semantic IDs and embeddings are the old ones."""
    model.check_tokenizer(tokenizer)
    _check_grown(model, tokenizer)
    tokenizer.restore_items(items)
    update_catalog(model, tokenizer)


@torch.no_grad()
def update_catalog(model: HiGRForSlateGeneration, tokenizer: HiGRTokenizer) -> None:
    """Bring a model, in place, up to a later version of its tokenizer's catalogue.

    New items get a row of zeros in the item embedding; `config.num_items`, the removed marks and the tokenizer's
    fingerprint follow. An optimiser made before knows nothing of the new rows: make a new one to go on training.

    Args:
        model: a model whose catalogue is an earlier version of the tokenizer's (or the same).
        tokenizer: the changed tokenizer.

    Raises:
        ValueError: when the tokenizer is no later version: other codebooks or feature tokens, fewer items, or another
            semantic ID for an item that the model knows.
    """
    _check_grown(model, tokenizer)
    inner, config = model.model, model.config
    device = inner.item_codes.device
    grown = tokenizer.num_items - config.num_items
    if grown:
        inner.item_codes = torch.as_tensor(np.array(tokenizer.codes), device=device)
        config.num_items = tokenizer.num_items
        if config.item_embedding:
            inner.embeddings.embed_items = _with_zero_rows(inner.embeddings.embed_items, grown)
        if config.item_item_decays:  # nobody has had the new items: they speak for nothing
            inner.item_item.grow(grown)
        if config.repeat_decays:
            inner.repeats.grow(grown)
        if config.trend_days:
            inner.trends.grow(grown)
    inner.item_active = torch.as_tensor(np.array(tokenizer.active), device=device)
    config.tokenizer_fingerprint = tokenizer.fingerprint


def _with_zero_rows(table: nn.Embedding, count: int) -> nn.Embedding:
    weight = torch.cat([table.weight, table.weight.new_zeros(count, table.embedding_dim)])
    grown = nn.Embedding.from_pretrained(weight, freeze=not table.weight.requires_grad, padding_idx=table.padding_idx)
    return grown.train(table.training)


def _check_grown(model: HiGRForSlateGeneration, tokenizer: HiGRTokenizer) -> None:
    """The tokenizer's catalogue begins with the model's."""
    config, inner = model.config, model.model
    for name, ours, theirs in (
        ("codebook sizes", list(config.codebook_sizes), list(tokenizer.codebook_sizes)),
        ("feedback levels", config.num_feedback_levels, tokenizer.num_feedback_levels),
        ("time buckets", config.num_time_buckets, tokenizer.num_time_buckets),
    ):
        if ours != theirs:
            raise ValueError(
                f"The tokenizer is no later version of the model's: {name} of the model {ours}, of the tokenizer "
                f"{theirs}. Every token would change its id; train a model for this tokenizer."
            )
    if not inner.has_catalog:
        raise ValueError("The model has no catalogue yet: call `model.set_catalog(tokenizer.codes)` first.")
    if tokenizer.num_items < config.num_items:
        raise ValueError(
            f"The model knows {config.num_items} items, the tokenizer {tokenizer.num_items}: a catalogue only grows. "
            "Mark items as removed with `remove_items` instead of leaving them out."
        )
    differ = np.flatnonzero((inner.item_codes.cpu().numpy() != tokenizer.codes[: config.num_items]).any(axis=1))
    if len(differ):
        row = int(differ[0])
        raise ValueError(
            f"{len(differ)} items of the model have another semantic ID in the tokenizer, the first is "
            f"{tokenizer.item_ids[row]!r} (row {row}): a semantic ID never changes once a model was trained on it."
        )
