"""`pipeline("slate-recommendation")`: a user's history in, a slate of named items out."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Pipeline

from .item_table_higr import UnknownItemError
from .trends_higr import NEWEST

if TYPE_CHECKING:
    from .tokenization_higr import HiGRTokenizer

_INPUT_KEYS = frozenset({"history", "feedback", "timestamps", "request_time", "exclude", "allowed", "wish"})
_PREPROCESS_KEYS = ("max_history", "exclude_history")
_GENERATE_KEYS = (
    "slate_size", "num_beams", "slate_mode", "rerank_weight", "do_sample", "temperature", "allow_short",
)  # fmt: skip
_POSTPROCESS_KEYS = ("num_alternates",)


class ItemNames:
    """Finds items by what people call them: an item id, or a title (exactly, but for upper and lower case).

    An item id wins over a title that reads the same, a title in its own case over one in another.

    Args:
        tokenizer (`HiGRTokenizer`): whose item table is searched.
    """

    def __init__(self, tokenizer: HiGRTokenizer) -> None:
        self.item_ids, self.titles = tokenizer.item_ids, tokenizer.titles or []
        self._ids = {item_id: index for index, item_id in enumerate(self.item_ids)}
        self._titles: dict[str, list[int]] = {}
        for index, title in enumerate(self.titles):
            if title:
                self._titles.setdefault(title.casefold(), []).append(index)

    def index(self, name: Any, where: str) -> int:
        """The item index of a name.

        Args:
            name (`str`): an item id or a title.
            where (`str`): the place of the name in the input, for the message.

        Raises:
            UnknownItemError: a `ValueError` with the nearest names, or with the ids of all items of that title.
        """
        if not isinstance(name, str):
            raise ValueError(f"{where} is {name!r}: items are named by their id or title, strings; use str() for ids.")
        if name in self._ids:
            return self._ids[name]
        found = self._titles.get(name.casefold(), [])
        exact = [index for index in found if self.titles[index] == name]
        found = exact or found
        if len(found) > 1:
            ids = ", ".join(repr(self.item_ids[index]) for index in found[:10])
            raise UnknownItemError(
                f"{where}: {len(found)} items have the title {name!r}. Use one of their ids: {ids}."
            )
        if not found:
            raise UnknownItemError(f"{where}: no item has the id or title {name!r}. {self._nearest(name)}")
        return found[0]

    def _nearest(self, name: str) -> str:
        near = difflib.get_close_matches(name.casefold(), self._titles, n=3, cutoff=0.5)
        names = [f"{self.titles[self._titles[key][0]]!r} (id {self.item_ids[self._titles[key][0]]!r})" for key in near]
        names += [repr(item_id) for item_id in difflib.get_close_matches(name, self.item_ids, n=3 - len(names) or 1)]
        return f"The nearest are {', '.join(names)}." if names else f"The catalogue has {len(self.item_ids)} items."


class SlateRecommendationPipeline(Pipeline):
    r"""Recommends a slate to a user, from the user's history.

    One input is a list of items, oldest first, or a dictionary:

    - `history` (`list[str]`): item ids or titles, oldest first; may be empty or repeat items. Only the newest
      `max_history` are read.
    - `feedback` (`list[float | None]`, *optional*): a raw value an item, such as a rating; the model's configuration
      knows how it is cut into levels. None or NaN where unknown. Without effect on a model without feedback tokens.
    - `timestamps` (`list[float]`, *optional*): seconds, one an item. Events that are out of order are put in order.
    - `request_time` (`float`, *optional*): when the slate is asked for, in seconds since 1970 UTC; now by default.
      Without effect on a model without trend scores.
    - `exclude` (`list[str]`, *optional*): items that must not be recommended.
    - `allowed` (`list[str]`, *optional*): only these may be recommended.
    - `wish` (`int`, *optional*): the feedback level to ask for.

    A list of inputs gives a list of slates; an empty list is one user without history.

    Args:
        slate_size, num_beams, slate_mode, rerank_weight, do_sample, temperature, allow_short:
            as in `HiGRForSlateGeneration.generate`. With `allow_short` a slate ends where the legal items do.
        exclude_history (`bool`, defaults to `True`): never recommend an item of the history, read or not.
        max_history (`int`, *optional*): at most so many events are read; by default and at most the model's own.
        num_alternates (`int`, defaults to 3): next best items listed beside every slot's item.

    Returns:
        A slate: one dictionary a slot with `slot` (from 0), `item_id`, `title` (None where the catalogue has no
        titles), `score` (log-probability, see `generate`), and `alternates`, the next best items for the slot that
        are not in the slate, as dictionaries of `item_id`, `title`, `score`.

    Raises:
        ValueError: for an unknown or ambiguous item (with the nearest names), lists of unequal length, an unknown key
            or argument, fewer legal items than slots, or a tokenizer that does not belong to the model.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> recommend = pipeline("slate-recommendation", model="runs/quickstart/model")  # doctest: +SKIP
    >>> slate = recommend(["Toy Story (1995)", "Heat (1995)"], slate_size=3)  # doctest: +SKIP
    >>> [place["title"] for place in slate]  # doctest: +SKIP

    ```
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, model: Any, tokenizer: HiGRTokenizer | None = None, **kwargs: Any) -> None:
        if tokenizer is None:
            raise ValueError(
                "The pipeline needs the model's tokenizer: pass tokenizer=..., or a directory that holds both."
            )
        model.check_tokenizer(tokenizer)
        model.eval()
        self.names = ItemNames(tokenizer)
        super().__init__(model, tokenizer=tokenizer, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        groups = (_PREPROCESS_KEYS, _GENERATE_KEYS, _POSTPROCESS_KEYS)
        known = {name for group in groups for name in group}
        if set(kwargs) - known:
            raise ValueError(
                f"The pipeline does not know {sorted(set(kwargs) - known)}; its arguments are {sorted(known)}."
            )
        longest, max_history = self.model.config.max_history, kwargs.get("max_history")
        if max_history is not None and not 0 <= max_history <= longest:
            raise ValueError(f"max_history must lie between 0 and the model's {longest}; got {max_history}.")
        if kwargs.get("num_alternates", 0) < 0:
            raise ValueError(f"num_alternates must not be negative; got {kwargs['num_alternates']}.")
        preprocess, forward, postprocess = (
            {name: kwargs[name] for name in group if name in kwargs} for group in groups
        )
        return preprocess, forward, postprocess

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Recommend; see the class for inputs and arguments, and `Pipeline` for `batch_size` and data sets."""
        if inputs is None or isinstance(inputs, Mapping):
            return super().__call__({"history": []} if inputs is None else inputs, **kwargs)
        if isinstance(inputs, (types.GeneratorType, torch.utils.data.Dataset)):  # streamed by the base class
            return super().__call__(inputs, **kwargs)
        if isinstance(inputs, str) or not isinstance(inputs, Iterable):
            raise ValueError(f"The input is {inputs!r}: pass a list of items, a dictionary, or a list of those.")
        inputs = list(inputs)
        nested = [isinstance(entry, (list, tuple, np.ndarray, Mapping)) for entry in inputs]
        if not any(nested):
            return super().__call__({"history": inputs}, **kwargs)
        if not all(nested):
            position = nested.index(False)
            raise ValueError(
                f"Input {position} is {inputs[position]!r} among lists or dictionaries: pass either one history (a "
                "list of items) or a list of histories or dictionaries."
            )
        # As dictionaries, because the base class looks into the first entry of a list of lists.
        rows = [entry if isinstance(entry, Mapping) else {"history": list(entry)} for entry in inputs]
        return super().__call__(rows, **kwargs)

    def preprocess(
        self, inputs: Any, max_history: int | None = None, exclude_history: bool = True
    ) -> dict[str, torch.Tensor]:
        """A prompt `[1, T]`, and the items to exclude or allow as `[1, E]` of item index + 1, padded with 0."""
        entry = inputs if isinstance(inputs, Mapping) else {"history": inputs}
        unknown = set(entry) - _INPUT_KEYS
        if unknown or "history" not in entry:
            raise ValueError(
                f"An input needs 'history' and may have {sorted(_INPUT_KEYS - {'history'})}; got {sorted(entry)}."
            )
        items = self._indices(entry["history"], "history")
        feedback, times = self._features(entry, len(items))
        if times is not None and not np.isnan(times).any():
            order = np.argsort(times, kind="stable")
            items, times = items[order], times[order]
            feedback = None if feedback is None else feedback[order]
        prompt = self.tokenizer.build_prompt(
            items.tolist(),
            feedback=self._feedback_levels(feedback),
            time_buckets=self._time_buckets(times),
            wish=entry.get("wish"),
            max_history=self.model.config.max_history if max_history is None else max_history,
        )
        encoded = self.tokenizer(prompt, return_tensors="pt")
        excluded = self._indices(entry.get("exclude"), "exclude", optional=True)
        allowed = entry.get("allowed")
        whole = {}
        if self.model.config.reads_whole_history:  # further back than a prompt
            read = items if max_history is None else items[max(len(items) - max_history, 0) :]
            whole = {"history": _padded(read)}
        if self.model.config.trend_days:
            whole["request_time"] = torch.tensor([_time(entry.get("request_time"))])
        return whole | {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "exclude": _padded(np.append(excluded, items) if exclude_history else excluded),
            "allowed": _padded(self._indices(allowed, "allowed", optional=True)),
            "restricted": torch.tensor([allowed is not None]),
        }

    def _indices(self, names: Any, where: str, optional: bool = False) -> np.ndarray:
        if names is None and optional:
            names = []
        if names is None or isinstance(names, (str, Mapping)):
            raise ValueError(f"{where} must be a list of items, got {names!r}.")
        found = [self.names.index(name, f"{where}[{position}]") for position, name in enumerate(names)]
        return np.array(found, dtype=np.int64)

    def _features(self, entry: Mapping[str, Any], length: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Raw feedback and times as float64 `[H]`, NaN where unknown; None where not given."""
        columns = []
        for key in ("feedback", "timestamps"):
            values = entry.get(key)
            if values is None:
                columns.append(None)
                continue
            if len(values) != length:
                raise ValueError(f"{key} has {len(values)} values for {length} items of the history.")
            numbers = [math.nan if value is None else value for value in values]
            try:
                columns.append(np.array(numbers, dtype=np.float64))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key} must hold numbers, or None where unknown; got {list(values)!r}.") from error
        return columns[0], columns[1]

    def _feedback_levels(self, values: np.ndarray | None) -> list[int] | None:
        config = self.model.config
        if values is None or not config.num_feedback_levels:
            return None
        if not config.feedback_edges:
            raise ValueError(
                "This model has feedback tokens, but its configuration does not say where raw feedback is cut into "
                "levels: set config.feedback_edges, or leave 'feedback' out."
            )
        levels = np.searchsorted(np.array(config.feedback_edges), values, side="right")
        return np.where(np.isnan(values), -1, levels).tolist()

    def _time_buckets(self, times: np.ndarray | None) -> list[int] | None:
        config = self.model.config
        if times is None or not config.num_time_buckets:
            return None
        if not config.time_edges:
            raise ValueError(
                "This model has time tokens, but its configuration does not say where time gaps are cut into buckets: "
                "set config.time_edges, or leave 'timestamps' out."
            )
        gaps = np.diff(times, prepend=np.nan)  # the first event has no predecessor
        buckets = np.searchsorted(np.array(config.time_edges), gaps, side="right")
        return np.where(np.isnan(gaps), -1, buckets).tolist()

    def _forward(self, inputs: dict[str, torch.Tensor], **generate_kwargs: Any) -> dict[str, torch.Tensor]:
        allowed = None
        if bool(inputs["restricted"].any()):
            allowed = torch.zeros(len(inputs["allowed"]), self.model.config.num_items + 1, dtype=torch.bool)
            allowed = allowed.to(inputs["allowed"].device).scatter_(1, inputs["allowed"], True)[:, 1:]
            allowed = allowed | ~inputs["restricted"][:, None]
        output = self.model.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            exclude=inputs["exclude"] - 1,
            allowed=allowed,
            return_dict_in_generate=True,
            **({"history": inputs["history"] - 1} if "history" in inputs else {}),
            **({"request_time": inputs["request_time"]} if "request_time" in inputs else {}),
            **generate_kwargs,
        )
        return {name: output[name] for name in ("slates", "scores", "candidates", "candidate_scores")}

    def postprocess(self, outputs: dict[str, torch.Tensor], num_alternates: int = 3) -> list[dict[str, Any]]:
        """One dictionary a slot."""
        row = {name: tensor[0].tolist() for name, tensor in outputs.items()}
        slate = []
        for slot, (item, score) in enumerate(zip(row["slates"], row["scores"], strict=True)):
            if item < 0:
                continue
            candidates = zip(row["candidates"][slot], row["candidate_scores"][slot], strict=True)
            free = ((other, its) for other, its in candidates if other >= 0 and other not in row["slates"])
            slate.append({"slot": slot, **self._named(item, score), "alternates": self._first(free, num_alternates)})
        return slate

    def _first(self, candidates: Iterator[tuple[int, float]], count: int) -> list[dict[str, Any]]:
        return [self._named(item, score) for _, (item, score) in zip(range(count), candidates, strict=False)]

    def _named(self, item: int, score: float) -> dict[str, Any]:
        title = self.names.titles[item] or None if self.names.titles else None
        return {"item_id": self.names.item_ids[item], "title": title, "score": score}


def _time(value: Any) -> int:
    """Seconds of a request's time, those of now where there is none."""
    if value is None:
        return NEWEST
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise ValueError(f"request_time must be a number of seconds since 1970 UTC, or None for now; got {value!r}.")
    return min(int(value), NEWEST - 1)  # `generate` says what is wrong with one that is too large


def _padded(items: np.ndarray) -> torch.Tensor:
    # Index + 1, because the collation of pipelines pads with 0; and never empty, because it cannot pad that.
    return torch.as_tensor(np.append(items + 1, 0))[None]
