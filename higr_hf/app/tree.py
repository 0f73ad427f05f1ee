"""The tree of semantic IDs as a component of the page: a level travels when somebody opens it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..item_table_higr import UnknownItemError
from .catalogue import CatalogueView
from .slates import Slate

_SCRIPT = Path(__file__).parent / "assets" / "tree.js"
_TEMPLATE = """
<form class="find" role="search">
  <label>Find an item in the tree
    <input type="search" name="item" autocomplete="off" placeholder="Title or id">
  </label>
  <button type="submit">Find</button>
</form>
<p class="status" role="status"></p>
<ul role="tree" aria-label="Semantic IDs of NAME"></ul>
"""


def tree_component(name: str, catalogue: CatalogueView) -> gr.HTML:
    """The tree; its value is what [`tree_value`] returns."""

    def branch(prefix: list[int]) -> list[dict[str, Any]]:
        return catalogue.children(prefix)

    def locate(item: str) -> dict[str, Any]:
        try:
            return {"codes": catalogue.codes(catalogue.find(item)), "message": ""}
        except UnknownItemError as error:
            return {"codes": None, "message": str(error)}

    return gr.HTML(
        tree_value(catalogue),
        html_template=_TEMPLATE.replace("NAME", escape(name)),
        js_on_load=_SCRIPT.read_text(encoding="utf-8"),
        server_functions=[branch, locate],
        elem_classes="sid-tree",
    )


def tree_value(catalogue: CatalogueView, slates: Sequence[Slate] = ()) -> dict[str, Any]:
    """The tree's first level, and the semantic IDs that are marked in it.

    Args:
        catalogue: of the tree.
        slates: whose items are marked, and those of their histories.
    """
    marks = [{"codes": item["codes"], "kind": "history"} for slate in slates for item in slate.history]
    marks += [{"codes": place["codes"], "kind": "slate"} for slate in slates for place in slate.places]
    return {"roots": catalogue.children([]), "marks": marks}
