"""Semantic IDs: fit a quantiser to item embeddings, settle collisions, judge the result."""

from __future__ import annotations

from higr_hf.semantic_ids.collisions import COLLISION_RULES, assign_new, resolve_collisions
from higr_hf.semantic_ids.fit import FitSettings, SemanticIDs, default_codebook_sizes, fit_semantic_ids
from higr_hf.semantic_ids.metrics import (
    code_usage,
    collision_rate,
    concentration,
    consistency,
    multi_item_groups,
    prefix_cosine,
    prefix_groups,
    residual_norms,
    tokenizer_metrics,
)
from higr_hf.semantic_ids.positives import cooccurrence_neighbours, cosine_neighbours, merge_positives

__all__ = [
    "COLLISION_RULES",
    "FitSettings",
    "SemanticIDs",
    "assign_new",
    "code_usage",
    "collision_rate",
    "concentration",
    "consistency",
    "cooccurrence_neighbours",
    "cosine_neighbours",
    "default_codebook_sizes",
    "fit_semantic_ids",
    "merge_positives",
    "multi_item_groups",
    "prefix_cosine",
    "prefix_groups",
    "residual_norms",
    "resolve_collisions",
    "tokenizer_metrics",
]
