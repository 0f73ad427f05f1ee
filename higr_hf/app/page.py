"""The page: a history in, slates out, two checkpoints side by side, and the tree of semantic IDs. Needs gradio."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..configuration_higr import SLATE_MODES
from .catalogue import CatalogueView
from .render import slates_html
from .slates import Slate, SlateModel, SlateRequest
from .tree import tree_component, tree_value

CSS = Path(__file__).parent / "assets" / "page.css"
# Every choice travels to the browser. The names of a larger catalogue can still be typed.
MAX_CHOICES = 20_000
MODEL_DEFAULT = "as the model says"
_EXAMPLE_LENGTH = 4
_EMPTY = '<p class="context">Choose a history, or none for a new user, and press Recommend.</p>'


@dataclass(frozen=True)
class _Controls:
    """What a visitor sets, in the order in which it is sent."""

    history: gr.Dropdown
    categories: gr.Dropdown
    exclude: gr.Dropdown
    slate_size: gr.Slider
    num_alternates: gr.Slider
    keep_history: gr.Checkbox
    slate_mode: gr.Dropdown
    num_beams: gr.Slider

    def components(self) -> list[Any]:
        return [getattr(self, entry.name) for entry in fields(self)]


def build_page(models: Sequence[SlateModel], title: str = "HiGR slates") -> gr.Blocks:
    """The page of one checkpoint, or of two side by side.

    Args:
        models: one or two; catalogue and categories to choose from are those of the first.
        title: of the page.

    Returns:
        The page, not served yet: see [`serve`].

    Raises:
        ValueError: for no checkpoint, or more than two.

    Example:
        >>> page = build_page([SlateModel.load("runs/quickstart/model")])
    """
    if not 1 <= len(models) <= 2:
        raise ValueError(f"The page shows one checkpoint or compares two; got {len(models)}.")
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(title)}</h1><p>{escape(_summary(models))}</p>", elem_classes="heading")
        with gr.Tab("Recommend"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                controls = _controls(models[0])
                with gr.Row():
                    ask = gr.Button("Recommend", variant="primary", min_width=120)
                    example = gr.Button("Example", min_width=120)
            with gr.Column(scale=3, min_width=300):
                slates = gr.HTML(_EMPTY, html_template='<div aria-live="polite">${value}</div>', elem_id="slates")
        with gr.Tab("Semantic IDs"):
            catalogues: dict[str, SlateModel] = {}
            for model in models:
                catalogues.setdefault(model.catalogue.tokenizer.fingerprint, model)
            trees = [tree_component(model.name, model.catalogue) for model in catalogues.values()]
        shown = [model.catalogue for model in catalogues.values()]
        answers = [controls.history, controls.exclude, slates, *trees]
        ask.click(_answerer(models, shown), controls.components(), answers, api_name="recommend")
        example.click(_example_history(models[0].catalogue), None, controls.history, api_name=False)
    return page


def serve(page: gr.Blocks, host: str | None = None, port: int | None = None, **options: Any) -> Any:
    """Serve the page with its looks; blocks until interrupted unless told otherwise.

    Args:
        page: what [`build_page`] returned.
        host: address to listen on; 127.0.0.1, or what GRADIO_SERVER_NAME says.
        port: the first free one from 7860, or what GRADIO_SERVER_PORT says.
        **options: further arguments of `Blocks.launch`, such as `prevent_thread_lock`.
    """
    return page.launch(
        server_name=host,
        server_port=port,
        theme=_theme(),
        css_paths=CSS,
        footer_links=[],
        ssr_mode=False,
        **options,
    )


def _theme() -> gr.themes.Base:
    """Fonts of the visitor's own system, so that nothing is fetched; colours that can be read (WCAG AA)."""
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size="md",
    )
    return theme.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )


def _summary(models: Sequence[SlateModel]) -> str:
    lines = []
    for model in models:
        tokenizer = model.catalogue.tokenizer
        lines.append(f"{model.name}: {tokenizer.active.sum():,} items, semantic IDs of {tokenizer.num_levels} codes")
    return " · ".join(lines)


def _controls(model: SlateModel) -> _Controls:
    catalogue, config = model.catalogue, model.config
    choices = catalogue.choices(MAX_CHOICES)
    more = catalogue.tokenizer.num_items > len(choices) >= MAX_CHOICES
    typed = f" The list shows {MAX_CHOICES:,} items; type the exact title or id of others." if more else ""
    history = gr.Dropdown(
        choices, label="History", info=f"Titles or ids, oldest first.{typed}", multiselect=True,
        allow_custom_value=True, elem_id="history",
    )  # fmt: skip
    categories = gr.Dropdown(
        catalogue.category_names, label="Categories", info="Only items of any of these.", multiselect=True,
        visible=bool(catalogue.category_names), elem_id="categories",
    )  # fmt: skip
    exclude = gr.Dropdown(
        choices, label="Exclude", info="Items that must not appear.", multiselect=True, allow_custom_value=True,
        elem_id="exclude",
    )  # fmt: skip
    slate_size = gr.Slider(1, 20, config.slate_size, step=1, precision=0, label="Slate size", elem_id="slate-size")
    with gr.Accordion("Decoding", open=False):
        return _Controls(
            history=history,
            categories=categories,
            exclude=exclude,
            slate_size=slate_size,
            num_alternates=gr.Slider(0, 10, 3, step=1, precision=0, label="Alternates a place"),
            keep_history=gr.Checkbox(False, label="Items of the history may come again"),
            slate_mode=gr.Dropdown([MODEL_DEFAULT, *SLATE_MODES], value=MODEL_DEFAULT, label="Planning"),
            num_beams=gr.Slider(1, 50, config.num_beams, step=1, precision=0, label="Beam width inside an item"),
        )


def _answerer(models: Sequence[SlateModel], catalogues: Sequence[CatalogueView]) -> Callable[..., list[Any]]:
    """What the button does: names are completed, every checkpoint answers, and the items are marked in the trees."""

    def answer(*values: Any) -> list[Any]:
        settings = {entry.name: value for entry, value in zip(fields(_Controls), values, strict=True)}
        if settings["slate_mode"] == MODEL_DEFAULT:
            settings["slate_mode"] = None
        for name in ("history", "exclude"):
            settings[name] = list(map(models[0].catalogue.complete, settings[name]))
        request = SlateRequest(**settings)
        answers = [(model, _attempt(model, _translated(request, models[0].catalogue, model))) for model in models]
        shown = slates_html([(model.name, found) for model, found in answers])
        return [settings["history"], settings["exclude"], shown, *map(partial(_marked, answers), catalogues)]

    return answer


def _marked(answers: Sequence[tuple[SlateModel, Slate | str]], catalogue: CatalogueView) -> dict[str, Any]:
    """The value of a catalogue's tree: the slates of the checkpoints that have it."""
    wanted = catalogue.tokenizer.fingerprint
    own = [found for model, found in answers if model.catalogue.tokenizer.fingerprint == wanted]
    return tree_value(catalogue, [found for found in own if isinstance(found, Slate)])


def _translated(request: SlateRequest, chosen_from: CatalogueView, model: SlateModel) -> SlateRequest:
    """The request in words of the checkpoint's own catalogue: in another one an id may be another item's."""
    if model.catalogue.tokenizer.fingerprint == chosen_from.tokenizer.fingerprint:
        return request
    return replace(
        request,
        history=list(map(chosen_from.title_of, request.history)),
        exclude=list(map(chosen_from.title_of, request.exclude)),
    )


def _attempt(model: SlateModel, request: SlateRequest) -> Slate | str:
    try:
        return model.recommend(request)
    except ValueError as error:
        return str(error)


def _example_history(catalogue: CatalogueView) -> Callable[[], list[str]]:
    """Items that share a first code, so that the history has a taste."""
    tokenizer = catalogue.tokenizer

    def draw() -> list[str]:
        offered = [index for index, active in enumerate(tokenizer.active.tolist()) if active]
        seed = random.choice(offered)
        alike = [index for index in offered if tokenizer.codes[index, 0] == tokenizer.codes[seed, 0]]
        return [tokenizer.item_ids[index] for index in random.sample(alike, min(_EXAMPLE_LENGTH, len(alike)))]

    return draw
