"""`higr`: recommend slates and look into catalogues from the command line.

    higr recommend MODEL --history "50,181,172" --slate-size 5
    higr recommend MODEL --titles --history "Toy Story (1995); Heat (1995)"
    higr recommend MODEL --input requests.jsonl --output slates.jsonl
    higr inspect MODEL --item 50 --prefix "12,3"
    higr app MODEL --compare OTHER
    higr serve MODEL --port 8000

MODEL is a directory or a Hub id. What goes wrong is said in one line on stderr, and the exit status is 1 (2 for a
command line that makes no sense).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .item_categories import CATEGORIES_FILE, find_categories, items_of, read_categories

if TYPE_CHECKING:
    from .tokenization_higr import HiGRTokenizer


MODES = ("sequential", "plan_once", "verified", "first_plan")
"""Those of the model's configuration, named here so that a command line is read without loading transformers."""


class CommandError(Exception):
    """Something the person at the command line can put right."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        _quiet()
        options.run(options)
        sys.stdout.flush()
    except (CommandError, ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `higr ... | head`: the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"higr: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _quiet() -> None:
    """Progress bars and notes of the libraries are no answer to the question."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


# ---- the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="higr", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _recommend_parser(commands)
    _inspect_parser(commands)
    _app_parser(commands)
    _serve_parser(commands)
    return parser


def _common(command: argparse.ArgumentParser, place: str) -> None:
    command.add_argument("place", metavar=place, help="directory, or id on the Hub")
    command.add_argument("--revision", help="commit, tag or branch on the Hub; pin one for code of others")
    command.add_argument("--json", action="store_true", help="write JSON instead of text")


def _recommend_parser(commands: Any) -> None:
    command = commands.add_parser(
        "recommend",
        help="recommend a slate for a history, or many from JSON lines",
        description="One slate for --history, or one a line of --input: a JSON list of items, or an object with "
        "`history` and, where wanted, `feedback`, `timestamps`, `exclude`, `allowed`, `wish`, and an `id` that comes "
        "back with the slate.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_recommend)
    _common(command, "MODEL")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--history", help="items oldest first, 'id1,id2'; '' for a new user")
    source.add_argument("--input", metavar="FILE", help="JSON lines; - for stdin")
    command.add_argument("--output", metavar="FILE", default="-", help="JSON lines with --input; - for stdout")
    command.add_argument(
        "--titles", action="store_true", help="--history and --exclude hold titles, separated by semicolons"
    )
    command.add_argument("--slate-size", type=int, help="items a slate; the model's own by default")
    command.add_argument("--exclude", default="", help="items that must not be recommended, as in --history")
    command.add_argument("--category", help="recommend only items of this category")
    command.add_argument(
        "--items", metavar="FILE",
        help=f"csv, tsv, parquet or JSON lines with item_id and categories; {CATEGORIES_FILE} of the model by default",
    )  # fmt: skip
    command.add_argument("--beams", type=int, help="beam width inside an item")
    command.add_argument("--mode", choices=MODES, help="how slots are planned")
    command.add_argument("--rerank-weight", type=float, help="weight of the dense score among a beam's items")
    command.add_argument("--alternates", type=int, default=0, help="next best items listed beside every slot")
    command.add_argument("--keep-history", action="store_true", help="items of the history may be recommended again")
    command.add_argument("--allow-short", action="store_true", help="fewer items where fewer are legal")
    command.add_argument("--batch-size", type=int, default=32, help="lines of --input decoded together")
    command.add_argument(
        "--skip-errors", action="store_true", help="write an `error` for a bad line of --input and go on"
    )
    command.add_argument("--device", default="cpu", help="cpu, cuda, ...")


def _inspect_parser(commands: Any) -> None:
    command = commands.add_parser(
        "inspect",
        help="show a tokenizer's (or model's) catalogue: its tree of semantic IDs, its items, what is legal",
        allow_abbrev=False,
    )
    command.set_defaults(run=_inspect)
    _common(command, "TOKENIZER|MODEL")
    command.add_argument("--item", action="append", default=[], help="show this item, by id or title; may repeat")
    command.add_argument(
        "--prefix", help="show what lies below a prefix: codes '12,3' or tokens '<a_12><b_3>'; '' for the root"
    )
    command.add_argument("--limit", type=int, default=20, help="children and items listed at most")


def _app_parser(commands: Any) -> None:
    command = commands.add_parser(
        "app",
        help="serve a page to look at a model, or at two side by side; or write it as a Space",
        allow_abbrev=False,
    )
    command.set_defaults(run=_app)
    command.add_argument("place", metavar="MODEL", help="directory, or id on the Hub")
    command.add_argument("--compare", metavar="OTHER", help="a second model, shown beside the first")
    command.add_argument("--revision", help="commit, tag or branch of MODEL on the Hub")
    command.add_argument("--compare-revision", metavar="REVISION", help="the same of OTHER")
    command.add_argument("--title", default="HiGR slates", help="of the page")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on")
    command.add_argument("--port", type=int, help="the first free one from 7860 by default")
    command.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    command.add_argument(
        "--space", metavar="FOLDER", help="write a folder for a Space of the Hub instead of serving; see training.push"
    )


def _serve_parser(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="answer requests for slates over HTTP, in batches, and keep what was encoded of users",
        description="JSON over HTTP; what is asked and answered stands in docs/serving.md.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_serve)
    command.add_argument("place", metavar="MODEL", help="directory, or id on the Hub")
    command.add_argument("--revision", help="commit, tag or branch on the Hub; pin one for code of others")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on")
    command.add_argument("--port", type=int, default=8000, help="0 for any free one")
    command.add_argument("--slate-size", type=int, help="items a slate where a request does not say")
    command.add_argument("--beams", type=int, help="beam width inside an item where a request does not say")
    command.add_argument("--mode", choices=MODES, help="how slots are planned")
    command.add_argument("--max-batch-size", type=int, default=32, help="requests decoded together")
    command.add_argument("--max-wait-ms", type=float, default=2.0, help="how long a request waits for others")
    command.add_argument("--max-queue", type=int, default=256, help="requests that may wait; more are refused")
    command.add_argument("--max-users", type=int, default=100_000, help="users whose events are kept")
    command.add_argument("--cache-mb", type=int, default=256, help="MiB of encoded histories that are kept")
    command.add_argument("--compile", metavar="BACKEND", help="compile decoding for a few shapes first: inductor")
    command.add_argument("--device", default="cpu", help="cpu, cuda, ...")


# ---- higr recommend


def _recommend(options: argparse.Namespace) -> None:
    from .batch_scoring import recommend_lines
    from .checkpoint import load_release
    from .pipeline_higr import SlateRecommendationPipeline

    if options.batch_size < 1:
        raise CommandError(f"--batch-size must be at least 1, got {options.batch_size}.")
    model, tokenizer = load_release(options.place, options.revision)
    pipeline = SlateRecommendationPipeline(model, tokenizer, device=options.device)
    names = {"slate_size": "slate_size", "beams": "num_beams", "mode": "slate_mode", "rerank_weight": "rerank_weight"}
    given = {argument: getattr(options, name) for name, argument in names.items()}
    settings = {
        **{argument: value for argument, value in given.items() if value is not None},
        "num_alternates": options.alternates,
        "exclude_history": not options.keep_history,
        "allow_short": options.allow_short,
    }
    common: dict[str, Any] = {"exclude": _split(options.exclude, options.titles)}
    if options.category is not None:
        common["allowed"] = _of_category(options, tokenizer)
    if options.history is not None:
        if options.output != "-":
            raise CommandError("--output goes with --input; a slate for --history is written to stdout.")
        slate = pipeline({"history": _split(options.history, options.titles), **common}, **settings)
        print(json.dumps(slate, ensure_ascii=False) if options.json else _slate_text(slate))
        return
    with _opened(options.input, "r") as source, _opened(options.output, "w") as sink:
        where = "stdin" if options.input == "-" else options.input
        for answer in recommend_lines(
            pipeline, source, where, common, options.batch_size, options.skip_errors, **settings
        ):
            sink.write(json.dumps(answer, ensure_ascii=False) + "\n")
            sink.flush()


def _opened(path: str, mode: str) -> Any:
    """A text file, or stdin / stdout, which stay open."""
    if path == "-":
        stream = sys.stdin if mode == "r" else sys.stdout
        return open(stream.fileno(), mode, encoding="utf-8", closefd=False)
    return open(path, mode, encoding="utf-8")


def _split(text: str, titles: bool) -> list[str]:
    # Titles have commas in them: "Godfather, The (1972)".
    return [name.strip() for name in text.split(";" if titles else ",") if name.strip()]


def _of_category(options: argparse.Namespace, tokenizer: HiGRTokenizer) -> list[str]:
    """The catalogue's items of `--category`."""
    if options.items:
        if not Path(options.items).is_file():
            raise CommandError(f"--items: there is no {options.items}.")
        categories = read_categories(Path(options.items))
    else:
        categories = find_categories(options.place, options.revision)
    if categories is None:
        raise CommandError(
            f"--category needs the items' categories: {options.place} has no {CATEGORIES_FILE}; name a file with "
            "--items."
        )
    return items_of(categories, [options.category], tokenizer.item_ids)


def _slate_text(slate: list[dict[str, Any]]) -> str:
    lines = []
    for place in slate:
        lines.append(f"{place['slot'] + 1:>2}  {_named(place)}  {place['score']:.3f}")
        lines += [f"      or {_named(other)}  {other['score']:.3f}" for other in place["alternates"]]
    return "\n".join(lines)


def _named(place: dict[str, Any]) -> str:
    return place["item_id"] if place["title"] is None else f"{place['item_id']}  {place['title']}"


# ---- higr inspect


def _inspect(options: argparse.Namespace) -> None:
    from .checkpoint import may_be_hub_id
    from .inspection import describe, describe_item, describe_prefix, parse_prefix, to_text
    from .pipeline_higr import ItemNames
    from .tokenization_higr import HiGRTokenizer

    if Path(options.place).exists() and not Path(options.place).is_dir():
        raise CommandError(f"{options.place} is a file: name the directory of a tokenizer or model.")
    if not Path(options.place).is_dir() and not may_be_hub_id(options.place):
        raise CommandError(f"There is no directory {options.place}.")
    try:
        tokenizer, config = _read_for_inspection(options.place, options.revision, HiGRTokenizer)
    except OSError as error:
        raise CommandError(f"{options.place} holds no HiGR tokenizer: {error}") from error
    answers: dict[str, Any] = {}
    if not options.item and options.prefix is None:
        answers["catalogue"] = describe(tokenizer, config)
    names = ItemNames(tokenizer)
    for item in options.item:
        answers[f"item {item}"] = describe_item(tokenizer, names.index(item, "--item"), options.limit)
    if options.prefix is not None:
        prefix = parse_prefix(tokenizer, options.prefix)
        answers[f"prefix {options.prefix!r}"] = describe_prefix(tokenizer, prefix, options.limit)
    print(json.dumps(answers, ensure_ascii=False, indent=2) if options.json else to_text(answers))


def _read_for_inspection(place: str, revision: str | None, tokenizer_class: Any) -> tuple[HiGRTokenizer, Any]:
    """The tokenizer, and the model's configuration where there is a model."""
    from .configuration_higr import HiGRConfig

    directory = Path(place)
    local = directory.is_dir()
    tokenizer = tokenizer_class.from_pretrained(place, revision=revision, local_files_only=local)
    if local and not (directory / "config.json").is_file():
        return tokenizer, None
    try:
        return tokenizer, HiGRConfig.from_pretrained(place, revision=revision, local_files_only=local)
    except OSError:
        if local:
            raise
        return tokenizer, None


# ---- higr app


def _app(options: argparse.Namespace) -> None:
    try:
        from .app import SlateModel
        from .app.page import build_page, serve
        from .app.space import write_space
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise CommandError("The page needs gradio: pip install 'higr_hf[app]'.") from error
    wanted = [(options.place, options.revision)]
    if options.compare is not None:
        wanted.append((options.compare, options.compare_revision))
    if options.space is not None:
        folder = write_space(options.space, *zip(*wanted, strict=True), title=options.title)
        print(
            f"wrote {folder}: run `python app.py` in it, or share it with `python -m training.push --space {folder}`"
        )
        return
    models = [SlateModel.load(place, revision, options.device) for place, revision in wanted]
    serve(build_page(models, options.title), options.host, options.port)


# ---- higr serve


def _serve(options: argparse.Namespace) -> None:
    from .checkpoint import load_release
    from .serving import Shapes, SlateEngine
    from .utils import keep_freed_memory

    try:
        from .serving.http import create_app, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise CommandError("Serving needs starlette and uvicorn: pip install 'higr_hf[serve]'.") from error
    model, tokenizer = load_release(options.place, options.revision)
    engine = SlateEngine(
        model.to(options.device),
        tokenizer,
        max_batch_size=options.max_batch_size,
        max_wait_ms=options.max_wait_ms,
        max_queue=options.max_queue,
        max_users=options.max_users,
        cache_bytes=options.cache_mb * 2**20,
        settings={"slate_size": options.slate_size, "num_beams": options.beams, "slate_mode": options.mode},
        shapes=Shapes.covering(model.config, options.max_batch_size) if options.compile else None,
        compile=options.compile,
    )
    if model.device.type == "cpu":
        keep_freed_memory()  # temporaries of a batch are large, and this process does nothing else
    with engine:
        engine.warm_up()
        serve(create_app(engine), options.host, options.port, lambda where: print(f"serving on {where}", flush=True))


if __name__ == "__main__":
    sys.exit(main())
