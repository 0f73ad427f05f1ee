"""Every example in a docstring runs, and gives what it shows."""

from __future__ import annotations

import copy
import doctest
import functools
import importlib
from types import ModuleType
from typing import Any

import pytest

from tests.documented import ROOT, names

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "higr_hf").rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
OUTSIDE = ("load_source(", "push_release(", "push_dataset(")
"""Calls that would use the network: those examples are compiled, not run."""


class _Checker(doctest.OutputChecker):
    """An example that shows no result promises none."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want.strip() or super().check_output(want, got, optionflags)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documented")
    found = names(folder)
    if "build_preferences" in _public():
        train, tokenizer, vectors = found["splits"]["train"], found["tokenizer"], found["vectors"]
        found["pairs"] = _public()["build_preferences"](train, tokenizer, embeddings=vectors)
    # Examples name files as somebody in the repository's root would.
    for name in ("higr_hf", "results"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder, found


@functools.cache
def _public() -> dict[str, Any]:
    """Every public name, as somebody knows them who reads the package's documentation; the top level's come first."""
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "higr_hf").rglob("__init__.py")]
    names: dict[str, Any] = {}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        package = importlib.import_module(".".join(folder.parts))
        names |= {name: getattr(package, name) for name in getattr(package, "__all__", ())}
    return names


def _tests(module: ModuleType, found: dict[str, Any]) -> list[doctest.DocTest]:
    """The module's docstrings with examples, and texts that become docstrings later; one model and tokenizer each."""
    known = {**_public(), **vars(module), **found}
    tests = doctest.DocTestFinder().find(module, globs=known)
    parser = doctest.DocTestParser()
    for name, text in list(vars(module).items()):
        if isinstance(text, str) and ">>>" in text and not name.startswith("__"):
            tests.append(parser.get_doctest(text, known, f"{module.__name__}.{name}", module.__file__, 0))
    for test in tests:
        test.globs = {**test.globs, **{name: copy.deepcopy(found[name]) for name in ("model", "tokenizer")}}
    return [test for test in tests if test.examples]


def _offline(example: doctest.Example) -> bool:
    return not any(call in example.source for call in OUTSIDE)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, known, monkeypatch):
    folder, found = known
    monkeypatch.chdir(folder)
    module = importlib.import_module(name)
    tests = _tests(module, found)
    assert tests, "the examples stand in docstrings that doctest finds"
    said: list[str] = []
    for test in tests:
        for example in test.examples:
            compile(example.source, test.name, "single")
        # What comes after a call to the outside needs its result.
        if not all(map(_offline, test.examples)):
            continue
        runner = doctest.DocTestRunner(_Checker(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        runner.run(test, out=said.append)
    assert not said, "".join(said)
