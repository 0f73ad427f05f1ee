"""The page in a headless Chromium, as a person uses it: with a mouse, a keyboard, a phone, a screen reader's eyes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from higr_hf.app import SlateModel, SlateRequest
from tests.app.conftest import CATEGORIES, TITLES, serve_here

pytestmark = pytest.mark.slow
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 812}


@pytest.fixture(scope="module")
def served(browser, model) -> Iterator[str]:
    page, address = serve_here([model])
    yield address
    page.close()


@pytest.fixture(scope="module")
def compared(browser, model, other) -> Iterator[str]:
    page, address = serve_here([model, other])
    yield address
    page.close()


@pytest.fixture
def visit(browser):
    """Opens an address; afterwards, nothing was fetched from elsewhere and no script has failed."""
    seen, errors, opened = [], [], []

    def open_(address: str, viewport: dict[str, int] = DESKTOP):
        tab = browser.new_page(viewport=viewport)
        tab.on("request", lambda request: seen.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.set_default_timeout(60_000)  # a loaded machine is slow, not wrong
        tab.goto(address)
        tab.get_by_role("button", name="Recommend").wait_for()
        opened.append(tab)
        return tab

    yield open_
    for tab in opened:
        assert tab.title() == "HiGR slates", "a title of somebody else's checkpoint ran as a script"
        tab.close()
    assert errors == []
    assert [
        url for url in seen if not url.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:"))
    ] == []


def choose(tab, label: str, *names: str) -> None:
    """Type names into a list and take what is typed."""
    box, chosen = tab.get_by_label(label, exact=True), tab.locator(f"#{label.lower()} .token")
    for name in names:
        there = chosen.count()
        box.click()
        box.fill(name)
        box.press("Enter")
        chosen.nth(there).wait_for()
    box.press("Escape")


def recommend(tab) -> list[str]:
    """Press the button; the titles of the new slate."""
    tab.evaluate("document.querySelector('#slates [aria-live] > *').dataset.old = 'yes'")
    tab.get_by_role("button", name="Recommend").click()
    tab.locator("#slates [data-old]").wait_for(state="detached")
    return tab.locator(".place .title").all_inner_texts()


def expected(model: SlateModel, **request) -> list[str]:
    return [place["title"] for place in model.recommend(SlateRequest(slate_size=4, **request)).places]


def wide(tab) -> int:
    return tab.evaluate("document.documentElement.scrollWidth")


def test_history_in_slate_out(served, visit, model, screenshots):
    tab = visit(served)
    choose(tab, "History", "Film 03 (1973)", "i8")
    assert recommend(tab) == expected(model, history=["i3", "i8"])
    shown = tab.get_by_label("Slate of first")
    assert "After Film 03 (1973) → Film 08 (1978)." in tab.locator("#slates").inner_text()
    first = shown.get_by_role("listitem").first
    assert re.search(r"−\d+\.\d\d", first.inner_text()) and re.search(r"<a_\d+><b_\d+><c_\d+>", first.inner_text())
    assert first.locator(".chip").all_inner_texts()[0] in ("Odd", "Even")
    assert not first.get_by_text("alternate").locator("..").locator("li").first.is_visible()
    first.get_by_text("alternate").click()
    assert "Film" in first.locator(".alternates li").first.inner_text()
    tab.screenshot(path=screenshots / "slate.png", full_page=True)


def test_a_new_user_has_no_history(served, visit, model):
    tab = visit(served)
    assert recommend(tab) == expected(model)
    assert "Without a history: a new user." in tab.locator("#slates").inner_text()


def test_filter_and_exclusion(served, visit, model):
    tab = visit(served)
    choose(tab, "Categories", "Odd")
    odd = recommend(tab)
    assert odd == expected(model, categories=["Odd"]) != expected(model)
    assert all("Odd" in CATEGORIES[f"i{TITLES.index(title)}"] for title in odd)
    choose(tab, "Exclude", odd[0])
    rest = recommend(tab)
    assert odd[0] not in rest and rest == expected(model, categories=["Odd"], exclude=[odd[0]])


def test_an_unknown_item_is_named_with_the_nearest(served, visit, model):
    tab = visit(served)
    choose(tab, "History", "Film 33 (1973)")
    assert recommend(tab) == []
    said = tab.get_by_role("alert").inner_text()
    assert said.startswith("History, 1: no item has the id or title 'Film 33 (1973)'. The nearest are")
    assert "'Film 03 (1973)' (id 'i3')" in said


def test_too_few_items_are_said(served, visit):
    tab = visit(served)
    choose(tab, "History", "i2")
    choose(tab, "Categories", "Few")
    assert sorted(recommend(tab)) == [TITLES[0], TITLES[1]]
    assert "Only 2 of 4 places could be filled" in tab.get_by_role("alert").inner_text()


def test_titles_of_others_stay_text(served, visit, model):
    tab = visit(served)
    choose(tab, "Exclude", "i0")
    choose(tab, "History", "i5", "i9")
    tab.get_by_label("Slate size").first.fill("20")
    shown = recommend(tab)
    assert f"After {TITLES[5]} → {TITLES[9]}." in tab.locator("#slates").inner_text()
    assert len(shown) == 20 and tab.locator("#slates img").count() == 0


def test_two_checkpoints_side_by_side(compared, visit, model, other, screenshots):
    tab = visit(compared)
    choose(tab, "History", "i3")
    recommend(tab)
    columns = {}
    for shown in (model, other):
        column = tab.get_by_label(f"Slate of {shown.name}")
        columns[shown.name] = column.bounding_box()
        assert column.locator(".title").all_inner_texts() == expected(shown, history=["i3"])
    assert columns["first"]["y"] == columns["second"]["y"] and columns["first"]["x"] < columns["second"]["x"]
    tab.screenshot(path=screenshots / "compare.png", full_page=True)
    tab.set_viewport_size(PHONE)
    below = tab.get_by_label("Slate of second").bounding_box()
    assert below["y"] > tab.get_by_label("Slate of first").bounding_box()["y"] and wide(tab) <= PHONE["width"]


def test_the_tree_by_keyboard(served, visit, model, screenshots):
    tab = visit(served)
    tab.get_by_role("tab", name="Semantic IDs").press("Enter")
    tree = tab.get_by_role("tree", name="Semantic IDs of first")
    roots = tree.locator("> [role=treeitem]")
    roots.first.wait_for()
    catalogue = model.catalogue
    assert roots.count() == len(catalogue.children([])) == tree.get_by_role("treeitem").count(), (
        "nothing is opened yet"
    )
    tab.get_by_role("button", name="Find").press("Tab")
    focused = tab.locator("[role=treeitem]:focus")
    assert focused.get_attribute("data-prefix") == str(catalogue.children([])[0]["prefix"])
    focused.press("ArrowRight")
    tree.locator("[role=group] > [role=treeitem]").first.wait_for()
    below = catalogue.children(catalogue.children([])[0]["prefix"])
    assert focused.get_attribute("aria-expanded") == "true"
    assert focused.locator("> ul > li").count() == len(below)
    focused.press("ArrowRight")
    assert focused.get_attribute("data-prefix").replace(" ", "") == str(below[0]["prefix"]).replace(" ", "")
    assert focused.get_attribute("aria-level") == "2"
    focused.press("ArrowDown")
    assert focused.get_attribute("aria-posinset") == "2"
    focused.press("ArrowLeft")
    focused.press("ArrowLeft")
    assert focused.get_attribute("aria-expanded") == "false"
    focused.press("End")
    assert focused.get_attribute("aria-posinset") == str(roots.count())
    assert tree.locator("[tabindex='0']").count() == 1, "one stop for the tab key"
    tab.screenshot(path=screenshots / "tree.png")


def test_the_tree_finds_and_marks_items(served, visit, model):
    tab = visit(served)
    choose(tab, "History", "i3", "i5")  # the title of i5 is HTML
    recommend(tab)
    tab.get_by_role("tab", name="Semantic IDs").click()
    search = tab.get_by_label("Find an item in the tree")
    search.fill("Film 03 (1973)")
    search.press("Enter")
    found = tab.locator(".found")
    found.wait_for()
    assert TITLES[3] in found.inner_text() and "history" in found.locator(".marks").inner_text()
    assert tab.locator(".mark.slate").first.is_visible()
    search.fill("Film 33")
    search.press("Enter")
    tab.get_by_text("no item has the id or title 'Film 33'").wait_for()
    assert "'Film 03 (1973)'" in tab.locator(".status").inner_text()
    search.fill("i5")
    search.press("Enter")
    tab.locator(".found").get_by_text(TITLES[5]).wait_for()  # as text: no picture, no script


def test_everything_by_keyboard_alone(served, visit, model):
    tab = visit(served)
    for _ in range(30):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.getAttribute('aria-label')") == "History":
            break
    tab.keyboard.type("Film 03")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Escape")
    for _ in range(30):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.innerText") == "Recommend":
            break
    tab.keyboard.press("Enter")
    tab.locator(".place").first.wait_for()
    assert tab.locator(".place .title").all_inner_texts() == expected(model, history=["i3"])


def test_a_phone_needs_no_sideways_scrolling(served, visit, screenshots):
    tab = visit(served, PHONE)
    choose(tab, "History", "i3", "i8")
    recommend(tab)
    assert wide(tab) <= PHONE["width"]
    tab.screenshot(path=screenshots / "phone.png", full_page=True)
    tab.get_by_role("tab", name="Semantic IDs").click()
    item = tab.get_by_role("treeitem").first
    item.locator("> .sid-row").click()
    tab.locator("[role=group]").first.wait_for()
    assert wide(tab) <= PHONE["width"]
    tab.screenshot(path=screenshots / "phone-tree.png")


def test_every_control_has_a_name(served, visit):
    tab = visit(served)
    tab.get_by_role("button", name="Decoding").click()
    for name in ("History", "Categories", "Exclude", "Planning"):
        assert tab.get_by_label(name, exact=True).count() == 1, name
    for name in ("Slate size", "Alternates a place", "Beam width inside an item"):
        assert tab.get_by_role("slider", name=re.compile(name)).count() == 1, name
    assert tab.get_by_role("checkbox", name="Items of the history may come again").count() == 1
    assert tab.get_by_role("heading", level=1).inner_text() == "HiGR slates"
