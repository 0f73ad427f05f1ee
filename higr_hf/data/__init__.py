"""From an interaction log to histories, target slates and item embeddings."""

from .errors import DataError
from .filters import drop_repeats, k_core
from .readers import read_table
from .schema import InteractionLog, LogInfo, read_log
from .sources import list_sources, load_source
from .splits import leave_last_out, split_report

__all__ = [
    "DataError",
    "InteractionLog",
    "LogInfo",
    "drop_repeats",
    "k_core",
    "leave_last_out",
    "list_sources",
    "load_source",
    "read_log",
    "read_table",
    "split_report",
]
