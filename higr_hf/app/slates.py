"""What the page asks a checkpoint, and what comes back: no page in sight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import load_release
from ..item_categories import find_categories, items_of
from ..pipeline_higr import SlateRecommendationPipeline
from .catalogue import CatalogueView

if TYPE_CHECKING:
    from ..modeling_higr import HiGRForSlateGeneration
    from ..tokenization_higr import HiGRTokenizer


@dataclass(frozen=True)
class SlateRequest:
    """What a visitor asks for.

    Attributes:
        history: item ids or titles, oldest first; empty for a new user.
        exclude: item ids or titles that must not appear.
        categories: only items of any of these; all items where empty.
        slate_size: M, at least 1.
        num_alternates: next best items a slot.
        keep_history: whether items of the history may be recommended again.
        slate_mode, num_beams: as in `generate`; the model's own where None.
    """

    history: Sequence[str] = ()
    exclude: Sequence[str] = ()
    categories: Sequence[str] = ()
    slate_size: int = 5
    num_alternates: int = 3
    keep_history: bool = False
    slate_mode: str | None = None
    num_beams: int | None = None


@dataclass(frozen=True)
class Slate:
    """What a checkpoint answers.

    Attributes:
        places: a dictionary a slot: `slot`, `item_id`, `title`, `score`, `categories`, `codes` (the semantic ID), and
            `alternates`, the same without slot and codes.
        history: `title` and `codes` of what was read, oldest first.
        missing: slots that stayed empty because no legal item was left.
    """

    places: list[dict[str, Any]]
    history: list[dict[str, Any]]
    missing: int = 0


class SlateModel:
    """A checkpoint that answers requests.

    Args:
        name: what the page calls it.
        model: the model.
        tokenizer: its tokenizer.
        categories: categories by item id, where they are known.
        device: where it runs.

    Raises:
        ValueError: for a tokenizer of another model.

    Example:
        >>> shown = SlateModel.load("runs/quickstart/model")
        >>> slate = shown.recommend(SlateRequest(history=[tokenizer.item_ids[0]], slate_size=3))
        >>> len(slate.places), slate.missing
        (3, 0)
    """

    def __init__(
        self,
        name: str,
        model: HiGRForSlateGeneration,
        tokenizer: HiGRTokenizer,
        categories: Mapping[str, Sequence[str]] | None = None,
        device: str = "cpu",
    ) -> None:
        self.name = name
        self.catalogue = CatalogueView(tokenizer, categories)
        self._pipeline = SlateRecommendationPipeline(model, tokenizer, device=device)

    @classmethod
    def load(cls, place: str, revision: str | None = None, device: str = "cpu", name: str | None = None) -> SlateModel:
        """A directory or an id on the Hub, by this package's own classes; see `load_release` for what is raised."""
        if name is None:
            name = "/".join(Path(place).resolve().parts[-2:]) if Path(place).is_dir() else place
        return cls(name, *load_release(place, revision), find_categories(place, revision), device)

    @property
    def config(self) -> Any:
        """Of the model."""
        return self._pipeline.model.config

    def recommend(self, request: SlateRequest) -> Slate:
        """Answer a request; the slate is shorter than asked for where too few items are legal.

        Raises:
            ValueError: for an unknown item (with the nearest names), a category that no item has, or an argument out
                of range.
        """
        catalogue = self.catalogue
        history = [catalogue.find(item, f"History, {row}") for row, item in enumerate(request.history, 1)]
        exclude = [catalogue.find(item, f"Exclude, {row}") for row, item in enumerate(request.exclude, 1)]
        item_ids = catalogue.tokenizer.item_ids
        inputs: dict[str, Any] = {
            "history": [item_ids[item] for item in history],
            "exclude": [item_ids[item] for item in exclude],
        }
        if request.categories:
            inputs["allowed"] = items_of(catalogue.categories, request.categories, item_ids)
        decoding = {"slate_mode": request.slate_mode, "num_beams": request.num_beams}
        places = self._pipeline(
            inputs,
            slate_size=request.slate_size,
            num_alternates=request.num_alternates,
            exclude_history=not request.keep_history,
            allow_short=True,
            **{name: value for name, value in decoding.items() if value is not None},
        )
        read = [{"title": catalogue.title(item), "codes": catalogue.codes(item)} for item in history]
        return Slate([self._described(place) for place in places], read, request.slate_size - len(places))

    def _described(self, place: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **self._with_categories(place),
            "codes": self.catalogue.codes(self.catalogue.find(place["item_id"])),
            "alternates": [self._with_categories(other) for other in place["alternates"]],
        }

    def _with_categories(self, place: Mapping[str, Any]) -> dict[str, Any]:
        return {**place, "categories": list(self.catalogue.categories.get(place["item_id"], ()))}
