"""The README's Python blocks run, in their order, in one process and beside the model that they load.

A block whose fence says `python no-test` is only compiled.
"""

from __future__ import annotations

import re

from tests.documented import ROOT, names

README = ROOT / "README.md"
_BLOCK = re.compile(r"^```python(?P<options>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str, int]]:
    """Every Python block: its options, its code, and the line it starts on."""
    return [
        (match["options"].strip(), match["code"], text.count("\n", 0, match.start("code")) + 1)
        for match in _BLOCK.finditer(text)
    ]


def test_blocks_are_found_with_options_and_lines():
    text = "# A\n\n```python\na = 1\n```\n\n```bash\nls\n```\n\n```python no-test\nb\n```\n"
    assert blocks(text) == [("", "a = 1\n", 4), ("no-test", "b\n", 12)]


def test_the_readmes_blocks_run(tmp_path, monkeypatch):
    found = blocks(README.read_text(encoding="utf-8"))
    assert found, "the README shows how to use the package"
    names(tmp_path)  # leaves runs/quickstart/model
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for options, code, line in found:
        # Errors are shown with the README's own line numbers.
        program = compile("\n" * (line - 1) + code, str(README), "exec")
        if "no-test" not in options.split():
            exec(program, namespace)
