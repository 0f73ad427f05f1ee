"""Slate metrics, the evaluator, result rows and their tables, reports and plots."""

from __future__ import annotations

from .bootstrap import PairedDifference, confidence_intervals, paired_bootstrap
from .evaluator import SlateEvaluator
from .report import Report, SlateExample
from .result import EvaluationResult
from .results import append_rows, make_row, read_rows

__all__ = [
    "EvaluationResult",
    "PairedDifference",
    "Report",
    "SlateEvaluator",
    "SlateExample",
    "append_rows",
    "confidence_intervals",
    "make_row",
    "paired_bootstrap",
    "read_rows",
]
