"""The data of every script: a ready source or one's own log, and how it is split."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from higr_hf.data import (
    InteractionLog,
    LogInfo,
    basket_splits,
    item_embeddings,
    k_core,
    leave_last_out,
    load_source,
    read_log,
    read_table,
)

from ._args import is_main_process, mapping

if TYPE_CHECKING:
    from datasets import DatasetDict

PROTOCOLS = {"leave-last-out": leave_last_out, "baskets": basket_splits}


@dataclass
class DataArguments:
    """The log and how it is split. The mappings are written as YAML or JSON."""

    _argument_group_name = "data"

    source: str = field(default="movielens-1m", metadata={"help": "Name of a ready source."})
    local_path: str | None = field(
        default=None, metadata={"help": "File or folder the source is read from; nothing is downloaded then."}
    )
    source_options: str = field(
        default="{}", metadata={"help": "Options of the one source, such as '{category: All_Beauty}'."}
    )
    interactions: str | None = field(
        default=None,
        metadata={"help": "Your own log in place of the source: csv, tsv or parquet file, folder, or Hub dataset id."},
    )
    items: str | None = field(default=None, metadata={"help": "Item table of your own log: the same kinds."})
    columns: str = field(
        default="{}", metadata={"help": "Your names of the log's columns, '{user_id: uid, timestamp: when}'."}
    )
    item_columns: str = field(default="{}", metadata={"help": "The same for the item table."})
    time_unit: str = field(default="s", metadata={"help": "Unit of numeric timestamps: s, ms, us or ns."})
    missing_items: str = field(
        default="error", metadata={"help": "Events of items without a row: error, drop them, or add a bare row."}
    )
    feedback: str | None = field(
        default=None, metadata={"help": "Feedback column of your log; rating or watch_ratio where it has one."}
    )
    view_rule: str | None = field(
        default=None, metadata={"help": "What an effective view is in your log, such as 'rating >= 4'."}
    )
    negative_rule: str | None = field(
        default=None, metadata={"help": "What negative feedback is in your log, such as 'rating <= 2'."}
    )
    engaged_rule: str | None = field(
        default=None, metadata={"help": "What enters histories and targets in your log, such as 'click'."}
    )
    min_item_events: int = field(
        default=1, metadata={"help": "Drop items, and users of one event, below so many engaged events (k-core)."}
    )
    slate_size: int = field(default=5, metadata={"help": "M, items a slate; so many are held out."})
    list_size: int | None = field(
        default=None,
        metadata={"help": "Items that a judged list has, such as 10 where one event is held out; M by default."},
    )
    protocol: str = field(
        default="leave-last-out",
        metadata={"help": "leave-last-out, or baskets: real lists as targets, for logs with basket ids."},
    )
    split_options: str = field(
        default="{}", metadata={"help": "Further options of the protocol, such as '{min_history: 3}'."}
    )

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"--protocol is {self.protocol!r}: use one of {sorted(PROTOCOLS)}")
        self.list_size = self.slate_size if self.list_size is None else self.list_size
        for name in ("slate_size", "list_size", "min_item_events"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        own = ("items", "feedback", "view_rule", "negative_rule", "engaged_rule")
        given = [name for name in own if getattr(self, name) is not None]
        if given and self.interactions is None:
            raise ValueError(f"--{given[0]} describes your own log: name that with --interactions")

    @property
    def name(self) -> str:
        """Short name of the data, for titles and result rows."""
        return self.source if self.interactions is None else Path(self.interactions).name.split(".")[0]


def load_splits(args: DataArguments) -> tuple[InteractionLog, DatasetDict]:
    """Read the log that the arguments name, and split it; the main process prints licence and citation.

    Returns:
        The log, and `train`, `validation` and `test`.

    Raises:
        DataError: for a log that cannot be used, naming column and row.
        SystemExit: for an option that source or protocol do not have.
    """
    protocol = PROTOCOLS[args.protocol]
    options = dict(inspect.signature(protocol).parameters)
    options.pop("log")
    # The slate size is an option of its own; under `baskets` targets are as long as the lists are.
    fixed = {"slate_size": args.slate_size} if options.pop("slate_size", None) else {}
    chosen = mapping("split_options", args.split_options, options)
    log = _source(args) if args.interactions is None else _own_log(args)
    if args.min_item_events > 1:
        log = k_core(log, min_user_events=2, min_item_events=args.min_item_events)
    splits = protocol(log, **fixed, **chosen)
    if is_main_process():
        print(_credit(log.info), flush=True)
        sizes = ", ".join(f"{len(rows)} {name}" for name, rows in splits.items())
        print(f"{len(log.interactions)} events, {len(log.items)} items; rows: {sizes}", flush=True)
    return log, splits


def diversity_vectors(log: InteractionLog, splits: DatasetDict, kind: str) -> np.ndarray | None:
    """The embeddings `[N, E]` that slate diversity is measured on; `None` where `kind` is `none`.

    Raises:
        SystemExit: for text embeddings of items without text.
    """
    if kind == "none":
        return None
    if kind in ("text", "both") and not any(text.strip() for text in log.items["text"]):
        raise SystemExit(
            f"error: the items of {log.info.name} have neither titles nor texts: measure diversity with "
            "--diversity_embeddings collaborative, a .npy file, or none"
        )
    return item_embeddings(log.items, splits["train"], kind=kind)


def aligned(vectors: np.ndarray, item_ids: Sequence[str], catalogue: Sequence[str]) -> np.ndarray:
    """Rows of `vectors`, which follow `item_ids`, in the order of the tokenizer's catalogue.

    Raises:
        SystemExit: for an item of the catalogue that has no row.
    """
    place = {item: row for row, item in enumerate(item_ids)}
    missing = [item for item in catalogue if item not in place]
    if missing:
        raise SystemExit(
            f"error: the data have no item {missing[0]!r} of the tokenizer's catalogue ({len(missing)} of "
            f"{len(catalogue)} are missing): was the tokenizer fitted on these data?"
        )
    return vectors[[place[item] for item in catalogue]]


def _source(args: DataArguments) -> InteractionLog:
    options = mapping("source_options", args.source_options)
    if args.local_path:
        options["local_path"] = args.local_path
    try:
        return load_source(args.source, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise SystemExit(f"error: --source_options: the source {args.source} has no such option ({error})") from None


def _own_log(args: DataArguments) -> InteractionLog:
    columns, item_columns = mapping("columns", args.columns), mapping("item_columns", args.item_columns)
    table = read_table(args.interactions)
    feedback = args.feedback or _feedback_of(table.columns, columns)
    info = LogInfo(
        name=args.name,
        feedback=feedback,
        view_rule=args.view_rule,
        negative_rule=args.negative_rule,
        engaged_rule=args.engaged_rule,
    )
    return read_log(
        table,
        args.items,
        columns=columns,
        item_columns=item_columns,
        time_unit=args.time_unit,
        missing_items=args.missing_items,
        info=info,
    )


def _feedback_of(present: Any, columns: dict[str, str]) -> str | None:
    return next((name for name in ("rating", "watch_ratio") if columns.get(name, name) in present), None)


def _credit(info: LogInfo) -> str:
    """Licence and citation in one line each."""
    lines = [f"{info.name}: licence {' '.join(info.licence.split())}"]
    if info.citation:
        lines.append(f"Cite: {' '.join(info.citation.split())}")
    return "\n".join(lines)
