"""Command-line arguments: dataclasses, a YAML recipe under them, overrides on top, and errors in one line."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
import traceback
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

ROOTS = tuple(str(Path(__file__).parents[1] / package) + os.sep for package in ("higr_hf", "training"))


class _HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """The description's own line breaks, and every default."""


@dataclass
class TrainerArguments(TrainingArguments):
    """transformers' `TrainingArguments`, in a group of their own after the script's own options."""

    _argument_group_name = "training (every field of transformers.TrainingArguments)"


def parse_recipe(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str = "",
    default_recipe: str | Path | None = None,
) -> tuple:
    """Read arguments for some dataclasses.

    `--recipe file.yaml` gives values by field name; what stands on the command line overrides them.

    Args:
        dataclass_types: the dataclasses to fill, each field being an option. One with an `_argument_group_name` is a
            group of `--help`.
        argv: the command line without the program; `sys.argv[1:]` by default.
        description: first paragraph of `--help`.
        default_recipe: the recipe where the command line names none.

    Returns:
        One instance of each dataclass.

    Raises:
        SystemExit: for a recipe that is missing, no mapping, or names an option that does not exist, and for values
            that the dataclasses refuse.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        dataclass_types,
        description=description,
        formatter_class=_HelpFormatter,
        usage="%(prog)s [--recipe FILE.yaml] [--option VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="YAML file of option: value; the command line overrides it.")
    recipe, path = _recipe_of(parser, argv, default_recipe)
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    for name, value in recipe.items():
        if name not in known:
            parser.error(f"the recipe {path} sets {name!r}, which is no option of this command{_similar(name, known)}")
        if known[name].type in (int, float) and isinstance(value, (bool, list, dict)):
            parser.error(f"the recipe {path} sets {name} to {value!r}: it must be a number")
        known[name].required = False
    parser.set_defaults(**recipe)
    try:
        *filled, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except (ValueError, TypeError, ImportError) as error:
        # The dataclasses' own checks: options that contradict each other, a logger that is not installed.
        parser.error(" ".join(str(error).split()))
    if rest:
        name = rest[0].split("=", 1)[0]
        parser.error(f"there is no option {name}{_similar(name, [f'--{option}' for option in known])}")
    return tuple(filled[: len(dataclass_types)])


def parsed(value: Any) -> Any:
    """An option written as YAML or JSON on the command line, or already read from a recipe."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise SystemExit(f"error: {value!r} is no valid YAML: {' '.join(str(error).split())}") from None


def mapping(name: str, value: str | Mapping[str, Any], known: Collection[str] | None = None) -> dict[str, Any]:
    """An option that must be a mapping, such as `--model '{dropout: 0.2}'`.

    Args:
        name: of the option.
        value: its YAML, or the mapping itself.
        known: the keys it may have; `None` for any.
    """
    content = parsed(value) or {}
    if not isinstance(content, Mapping):
        raise SystemExit(f"error: --{name} must be a mapping such as '{{dropout: 0.2}}', got {value!r}")
    for key in content:
        if known is not None and key not in known:
            raise SystemExit(f"error: --{name} has no setting {key!r}{_similar(str(key), known)}")
    return dict(content)


def numbers(name: str, value: str | Sequence[float]) -> list:
    """An option that must be a list of numbers, such as `--feedback_edges '[2.5, 3.5]'`."""
    content = parsed(value)
    if not isinstance(content, (list, tuple)) or any(
        isinstance(entry, bool) or not isinstance(entry, (int, float)) for entry in content
    ):
        raise SystemExit(f"error: --{name} must be a list of numbers such as '[1, 2]', got {value!r}")
    return list(content)


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes, under torchrun and accelerate too."""
    return int(os.environ.get("RANK", "0")) == 0


def check_output(directory: str | os.PathLike) -> Path:
    """Make a directory and make sure that it can be written to, before hours are spent on what goes there."""
    if not is_main_process():  # the others write nothing but what the trainer asks of them
        return Path(directory)
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise SystemExit(f"error: --output_dir {directory} cannot be written to: {error.strerror or error}") from None
    return Path(directory)


def run(main: Callable[[], Any]) -> None:
    """Call a script's `main` and end with one line, and status 1, where what the person gave cannot be used.

    Those errors are raised by the library's own checks, or by the system for a file; any other one is a fault in the
    program and keeps its traceback, as all do with `HIGR_TRACEBACK=1`.
    """
    try:
        main()
    except (ValueError, OSError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = isinstance(error, OSError) or frames[-1].filename.startswith(ROOTS)
        if not ours or os.environ.get("HIGR_TRACEBACK"):
            raise
        raise SystemExit(f"error: {error}") from None


def _similar(name: str, known: Collection[str]) -> str:
    """What the person may have meant."""
    close = difflib.get_close_matches(name, [str(other) for other in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {sorted(known)}" if len(known) <= 30 else ""


def _recipe_of(
    parser: HfArgumentParser, argv: list[str], path: str | Path | None
) -> tuple[dict[str, Any], str | Path | None]:
    """The recipe's content, and where it stands."""
    for position, argument in enumerate(argv):
        if argument == "--recipe" and position + 1 < len(argv):
            path = argv[position + 1]
        elif argument.startswith("--recipe="):
            path = argument.split("=", 1)[1]
    if path is None:
        return {}, None
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"the recipe {path} cannot be read: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"the recipe {path} is no valid YAML: {' '.join(str(error).split())}")
    if not isinstance(content, dict):
        parser.error(f"the recipe {path} must be a mapping of option: value")
    return content, path
