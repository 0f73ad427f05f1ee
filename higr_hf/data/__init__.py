"""From an interaction log to histories, target slates and item embeddings."""

from .baskets import basket_splits
from .collaborative import collaborative_embeddings
from .embeddings import item_embeddings, load_embeddings, text_embeddings
from .errors import DataError
from .filters import drop_repeats, k_core
from .readers import read_table
from .schema import InteractionLog, LogInfo, read_log
from .sources import list_sources, load_source
from .splits import leave_last_out, split_report
from .synthetic import synthetic_log

__all__ = [
    "DataError",
    "InteractionLog",
    "LogInfo",
    "basket_splits",
    "collaborative_embeddings",
    "drop_repeats",
    "item_embeddings",
    "k_core",
    "leave_last_out",
    "list_sources",
    "load_embeddings",
    "load_source",
    "read_log",
    "read_table",
    "split_report",
    "synthetic_log",
    "text_embeddings",
]
