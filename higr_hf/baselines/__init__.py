"""The systems HiGR is measured against, behind one small interface: `fit`, `recommend`, `save_pretrained`."""

from __future__ import annotations

from .base import Baseline, ScoringBaseline
from .ease import EASE
from .item_item_tables import ItemItem
from .item_vectors import SASRecItemVectors
from .listcvae import ListCVAE
from .mixture import Mixture
from .onerec import OneRecConfig, OneRecForSlateGeneration, OneRecModel
from .popularity import Popularity
from .ranking import top_items
from .sequential import HSTU, BERT4Rec, SASRec
from .tiger import TIGER
from .trending import Trending
from .view_rate import ViewRate

__all__ = [
    "EASE",
    "HSTU",
    "TIGER",
    "BERT4Rec",
    "Baseline",
    "ItemItem",
    "ListCVAE",
    "Mixture",
    "OneRecConfig",
    "OneRecForSlateGeneration",
    "OneRecModel",
    "Popularity",
    "SASRec",
    "SASRecItemVectors",
    "ScoringBaseline",
    "Trending",
    "ViewRate",
    "top_items",
]
