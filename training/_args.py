"""Command-line arguments: dataclasses, a YAML recipe under them, overrides on top."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


def parse_recipe(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str = "",
    default_recipe: str | Path | None = None,
) -> tuple:
    """Read arguments for some dataclasses.

    `--recipe file.yaml` gives values by field name; what stands on the command line overrides them.

    Args:
        dataclass_types: the dataclasses to fill, each field being an option.
        argv: the command line without the program; `sys.argv[1:]` by default.
        description: first paragraph of `--help`.
        default_recipe: the recipe where the command line names none.

    Returns:
        One instance of each dataclass.

    Raises:
        SystemExit: for a recipe that is missing, no mapping, or names an option that does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(dataclass_types, description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="YAML file of option: value; the command line overrides it.")
    recipe = _recipe_of(parser, argv, default_recipe)
    known = {action.dest: action for action in parser._actions}
    for name in recipe:
        if name not in known:
            parser.error(f"the recipe sets {name!r}, which is no option of this command; see --help")
        known[name].required = False
    parser.set_defaults(**recipe)
    return parser.parse_args_into_dataclasses(argv)[: len(dataclass_types)]


def parsed(value: Any) -> Any:
    """An option written as YAML or JSON on the command line, or already read from a recipe."""
    return yaml.safe_load(value) if isinstance(value, str) else value


def mapping(name: str, value: str | Mapping[str, Any]) -> dict[str, Any]:
    """An option that must be a mapping, such as `--model '{dropout: 0.2}'`."""
    content = parsed(value) or {}
    if not isinstance(content, Mapping):
        raise SystemExit(f"--{name} must be a mapping such as '{{dropout: 0.2}}', got {value!r}")
    return dict(content)


def _recipe_of(parser: HfArgumentParser, argv: list[str], path: str | Path | None) -> dict[str, Any]:
    for position, argument in enumerate(argv):
        if argument == "--recipe" and position + 1 < len(argv):
            path = argv[position + 1]
        elif argument.startswith("--recipe="):
            path = argument.split("=", 1)[1]
    if path is None:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"the recipe {path} cannot be read: {error.strerror}")
    except yaml.YAMLError as error:
        parser.error(f"the recipe {path} is no valid YAML: {error}")
    if not isinstance(content, dict):
        parser.error(f"the recipe {path} must be a mapping of option: value")
    return content
