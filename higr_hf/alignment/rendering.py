"""From rows of item ids to the texts that TRL reads, and the checks that every row passes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.encoding import FeatureEdges
from ..data.errors import DataError
from .pairs import ALL_OBJECTIVES

if TYPE_CHECKING:
    from datasets import Dataset

    from ..tokenization_higr import HiGRTokenizer

ID_COLUMNS = ("history_item_ids", "chosen_item_ids", "rejected_item_ids")
TEXT_COLUMNS = ("prompt", "chosen", "rejected")


class PreferenceError(DataError):
    """A preference row or dataset that cannot be trained on. The message names the row, its user and the way out."""


def check_pair(row: Mapping[str, Any], number: int, known: Mapping[str, bool]) -> None:
    """Make sure that a row is a pair of two different, equally long, legal slates.

    Args:
        row: with the three columns of item ids.
        number: of the row, for the message.
        known: item id -> whether it may be recommended.

    Raises:
        PreferenceError: naming row, user and item.
    """
    where = f"row {number} (user {row.get('user_id', '?')!r})"
    for column in ID_COLUMNS:
        unknown = [item for item in row[column] if item not in known]
        if unknown:
            raise PreferenceError(
                f"{where}: the item {unknown[0]!r} of {column} is not in the tokenizer's catalogue: use the tokenizer "
                "of these items, or leave the row out"
            )
    chosen, rejected = row["chosen_item_ids"], row["rejected_item_ids"]
    if not len(chosen):
        raise PreferenceError(f"{where}: the chosen slate is empty")
    if len(chosen) != len(rejected):
        raise PreferenceError(
            f"{where}: {len(chosen)} items chosen but {len(rejected)} rejected: the slates of a pair must be equally "
            "long, or their lengths decide instead of their items"
        )
    if list(chosen) == list(rejected):
        raise PreferenceError(f"{where}: chosen and rejected are the same slate: such a tie teaches nothing")
    for name, slate in (("chosen", chosen), ("rejected", rejected)):
        if len(set(slate)) != len(slate):
            raise PreferenceError(f"{where}: the {name} slate {list(slate)} names an item twice")
        removed = [item for item in slate if not known[item]]
        if removed:
            raise PreferenceError(
                f"{where}: the item {removed[0]!r} of the {name} slate was removed from the catalogue"
            )


def check_preferences(dataset: Dataset, tokenizer: HiGRTokenizer, objectives: Sequence[str] = ALL_OBJECTIVES) -> None:
    """Check every row of a dataset of pairs, and that all slates have one size.

    Raises:
        PreferenceError: for the first row that cannot be trained on, and for a missing column.
    """
    missing = [name for name in ("user_id", "objective", *ID_COLUMNS) if name not in dataset.column_names]
    if missing:
        raise PreferenceError(f"the preferences lack the columns {missing}; they have {dataset.column_names}")
    known = dict(zip(tokenizer.item_ids, tokenizer.active.tolist(), strict=True))
    size = None
    columns = dataset.select_columns(["user_id", "objective", *ID_COLUMNS])
    for number, row in enumerate(columns):
        check_pair(row, number, known)
        size = len(row["chosen_item_ids"]) if size is None else size
        if len(row["chosen_item_ids"]) != size:
            raise PreferenceError(
                f"row {number} (user {row['user_id']!r}) has slates of {len(row['chosen_item_ids'])} items, the rows "
                f"before it {size}: build one dataset a slate size"
            )
        if row["objective"] not in objectives:
            raise PreferenceError(f"row {number}: the objective {row['objective']!r} is none of {list(objectives)}")


def render(
    dataset: Dataset,
    tokenizer: HiGRTokenizer,
    *,
    edges: FeatureEdges | None = None,
    max_history: int | None = None,
    wish: int | None = None,
) -> Dataset:
    """Write `prompt`, `chosen` and `rejected` from the item ids, in the words of a tokenizer.

    A prompt is `<bos>`, the newest `max_history` items with their feature tokens, and `<slate>`; a completion is the
    slate's items. TRL appends `<eos>`. A dataset that was rendered with another tokenizer is simply rendered anew.

    Args:
        dataset: rows with `history_item_ids`, `chosen_item_ids`, `rejected_item_ids`, and where the model reads them
            `history_feedback` and `history_timestamps`.
        tokenizer: whose texts are wanted. Its fingerprint is kept in the dataset's description.
        edges: where feedback and time gaps are cut into levels; those of the model's configuration.
        max_history: whole items kept of a history; the model's `max_history`.
        wish: feedback level asked for behind `<slate>`.

    Raises:
        PreferenceError: for a row that is no pair, see [`check_preferences`].

    Example:
        >>> pairs = render(pairs, tokenizer, max_history=model.config.max_history)
        >>> pairs[0]["prompt"].endswith("<slate>")
        True
    """
    edges = edges or FeatureEdges()
    for name, wanted, found in (
        ("feedback", edges.num_feedback_levels, tokenizer.num_feedback_levels),
        ("time", edges.num_time_buckets, tokenizer.num_time_buckets),
    ):
        if wanted > found:
            raise PreferenceError(f"the {name} edges make {wanted} levels, the tokenizer has tokens for {found}")
    check_preferences(dataset, tokenizer)

    def texts(row: dict[str, Any]) -> dict[str, str]:
        feedback = times = None
        if edges.feedback and row.get("history_feedback"):
            feedback = edges.feedback_levels(row["history_feedback"]).tolist()
        if edges.time and row.get("history_timestamps"):
            times = edges.time_buckets(row["history_timestamps"]).tolist()
        return {
            "prompt": tokenizer.build_prompt(row["history_item_ids"], feedback, times, wish, max_history),
            "chosen": tokenizer.build_completion(row["chosen_item_ids"]),
            "rejected": tokenizer.build_completion(row["rejected_item_ids"]),
        }

    # Small, and a function of the tokenizer, which no cache file can name: keep it in memory.
    columns = {name: [] for name in TEXT_COLUMNS}
    for row in dataset:
        for name, text in texts(row).items():
            columns[name].append(text)
    rendered = dataset.remove_columns([name for name in TEXT_COLUMNS if name in dataset.column_names])
    for name, values in columns.items():
        rendered = rendered.add_column(name, values)
    return _described(
        rendered, {"tokenizer_fingerprint": tokenizer.fingerprint, "max_history": max_history, "wish": wish}
    )


def description(dataset: Dataset) -> dict[str, Any]:
    """What a dataset of pairs says about itself: how it was built, what was left out, whose texts it holds."""
    try:
        return dict(json.loads(dataset.info.description or "{}"))
    except ValueError:
        return {}


def ensure_rendered(dataset: Dataset, tokenizer: HiGRTokenizer, **options: Any) -> Dataset:
    """The dataset as it is where its texts are this tokenizer's and of these options, rendered anew otherwise."""
    about = description(dataset)
    same = about.get("tokenizer_fingerprint") == tokenizer.fingerprint and all(
        name in dataset.column_names for name in TEXT_COLUMNS
    )
    same = same and all(about.get(name) == options.get(name) for name in ("max_history", "wish"))
    return dataset if same and options.get("edges") is None else render(dataset, tokenizer, **options)


def _described(dataset: Dataset, entries: Mapping[str, Any]) -> Dataset:
    info = dataset.info.copy()
    info.description = json.dumps({**description(dataset), **entries})
    dataset = dataset.select(range(len(dataset)))  # a new object: the caller's keeps its description
    dataset._info = info
    return dataset


def check_texts(dataset: Dataset, tokenizer: HiGRTokenizer, *, max_history: int, max_length: int | None) -> None:
    """The last gate before a trainer: every text is read by the tokenizer as prompt and slates that can be trained on.

    It needs no item ids, so that it also checks pairs that were made elsewhere.

    Args:
        dataset: with `prompt`, `chosen`, `rejected`.
        tokenizer: of the model.
        max_history: items a prompt may hold.
        max_length: tokens a sequence may hold, `<eos>` included: a trainer would cut the slate's end off.

    Raises:
        PreferenceError: for an empty dataset, texts of another tokenizer, and the first row that is wrong.
    """
    missing = [name for name in TEXT_COLUMNS if name not in dataset.column_names]
    if missing:
        raise PreferenceError(f"the preferences lack the columns {missing}: render them with higr_hf.alignment.render")
    if not len(dataset):
        raise PreferenceError("the preferences are empty")
    fingerprint = description(dataset).get("tokenizer_fingerprint")
    if fingerprint is not None and fingerprint != tokenizer.fingerprint:
        raise PreferenceError(
            f"the preferences were rendered with another tokenizer ({fingerprint[:12]}, this one is "
            f"{tokenizer.fingerprint[:12]}): render them anew with higr_hf.alignment.render"
        )
    tokens = {name: tokenizer(list(dataset[name]), add_special_tokens=False)["input_ids"] for name in TEXT_COLUMNS}
    active = tokenizer.active
    for number, (prompt, chosen, rejected) in enumerate(zip(*tokens.values(), strict=True)):
        slates = {}
        if tokenizer.unk_token_id in prompt or tokenizer.slate_token_id not in prompt:
            raise PreferenceError(
                f"row {number}: the prompt is no history followed by <slate>: {dataset[number]['prompt'][:60]!r}…"
            )
        history = len(tokenizer.token_ids_to_indices(prompt))
        if history > max_history:
            raise PreferenceError(
                f"row {number}: the prompt holds {history} items, the model reads {max_history}: render with "
                f"max_history={max_history}"
            )
        for name, ids in (("chosen", chosen), ("rejected", rejected)):
            ids = [token for token in ids if token != tokenizer.eos_token_id]
            items = tokenizer.token_ids_to_indices(ids)
            legal = len(items) and (items >= 0).all() and len(ids) == items.size * tokenizer.num_levels
            if not legal or not active[items].all():
                raise PreferenceError(
                    f"row {number}: the {name} slate {dataset[number][name][:60]!r}… is not made of items of the "
                    "tokenizer's catalogue"
                )
            if len(set(items.tolist())) != len(items):
                raise PreferenceError(f"row {number}: the {name} slate names an item twice")
            slates[name] = items.tolist()
        if len(slates["chosen"]) != len(slates["rejected"]):
            raise PreferenceError(
                f"row {number}: {len(slates['chosen'])} items chosen but {len(slates['rejected'])} rejected: the "
                "slates of a pair must be equally long"
            )
        if slates["chosen"] == slates["rejected"]:
            raise PreferenceError(f"row {number}: chosen and rejected are the same slate: such a tie teaches nothing")
        needed = len(prompt) + len(chosen) + 1 + (prompt[0] != tokenizer.bos_token_id)
        if max_length is not None and needed > max_length:
            raise PreferenceError(
                f"row {number}: prompt and slate need {needed} tokens, max_length is {max_length}: render with a "
                "smaller max_history, or train with a larger max_length"
            )
