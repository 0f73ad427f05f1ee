"""A small catalogue with titles and categories, two checkpoints of it, their page, and a browser to look at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from higr_hf import HiGRForSlateGeneration, HiGRTokenizer
from higr_hf.app import SlateModel
from tests.model_tester import HiGRModelTester

NUM_ITEMS = 24
TITLES = [f"Film {number:02} (19{70 + number})" for number in range(NUM_ITEMS)]
TITLES[5] = '<img src=x onerror="document.title=1">'  # somebody else's checkpoint
TITLES[9] = "{{#each x}} ${document.title = 2} `${1}`"
TITLES[7] = TITLES[6] = "Twins (1988)"
CATEGORIES = {f"i{item}": ["Odd" if item % 2 else "Even", *(["Few"] if item < 3 else [])] for item in range(NUM_ITEMS)}


def make_model(name: str, initializer_range: float = 0.4, **categories) -> SlateModel:
    model, tokenizer = make_checkpoint(initializer_range)
    return SlateModel(name, model, tokenizer, categories.get("categories", CATEGORIES))


def make_checkpoint(initializer_range: float = 0.4) -> tuple[HiGRForSlateGeneration, HiGRTokenizer]:
    tester = HiGRModelTester(NUM_ITEMS)
    ids = [f"i{item}" for item in range(NUM_ITEMS)]
    tokenizer = HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2, titles=TITLES)
    return tester.model(initializer_range=initializer_range), tokenizer


@pytest.fixture(scope="session")
def model() -> SlateModel:
    return make_model("first")


@pytest.fixture(scope="session")
def other() -> SlateModel:
    return make_model("second", initializer_range=0.2)


def find_browser() -> str | None:
    """Where a Chromium is: the variable CHROMIUM, or what lies on the path."""
    names = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium on this machine: install one (`make browser`), or name it with CHROMIUM=/path/to/it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers have no user namespaces to make a sandbox of; the pages shown are our own.
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


def serve_here(models: list[SlateModel]) -> tuple:
    """The page on a port of this machine that is free; itself and its address."""
    from higr_hf.app.page import build_page, serve

    page = build_page(models)
    _, address, _ = serve(page, prevent_thread_lock=True, quiet=True)
    return page, address


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    """Where pictures of the page go: SCREENSHOTS, to look at them, or nowhere in particular."""
    return Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
