"""Slate metrics, the evaluator, result rows and their tables, reports and plots."""

from __future__ import annotations

from .bootstrap import PairedDifference, confidence_intervals, paired_bootstrap
from .evaluator import SlateEvaluator
from .result import EvaluationResult

__all__ = ["EvaluationResult", "PairedDifference", "SlateEvaluator", "confidence_intervals", "paired_bootstrap"]
