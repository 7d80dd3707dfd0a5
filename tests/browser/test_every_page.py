"""What holds for every page: roles, names, contrast in both themes, no sideways scroll on a phone, a strict policy."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import AUDIT, Served, join, rated_run
from playwright.sync_api import Browser, BrowserContext, Page, expect

from backflip.cycle.plan import Rate

READY = {
    "/rate": "#pair", "/rank": "#empty", "/demonstrate": "#demonstration", "/chat": "#opening",
    "/progress": "#strip div", "/owner": "#raters tr",
}  # fmt: skip

every_page = pytest.mark.parametrize("path", READY)


@pytest.fixture(scope="module")
def house(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A served run with everything on, and long words in it."""
    texts = ["short", "w" * 400, "a longer answer " * 60]
    root = rated_run(tmp_path_factory.mktemp("house") / "run", tiny_model, 8, texts, rate=Rate(rank=True))
    with Served(root) as served:
        yield served


@pytest.fixture(scope="module")
def keys(chromium: Browser, house: Served) -> object:
    """The owner's cookies."""
    context = chromium.new_context()
    join(context, house.owner_link())
    state = context.storage_state()
    context.close()
    return state


def opened(house: Served, person: Callable[..., BrowserContext], keys: object, path: str, **options: object) -> Page:
    """A page of the owner's, once it shows what it is for."""
    page = person(storage_state=keys, **options).new_page()
    page.goto(f"{house.url}{path}")
    expect(page.locator(READY[path]).first).to_be_visible()
    return page


@every_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_roles_names_and_contrast_are_right(
    house: Served, person: Callable[..., BrowserContext], keys: object, path: str, scheme: str
):
    page = opened(house, person, keys, path, color_scheme=scheme)

    assert page.evaluate(AUDIT) == []


def test_the_page_for_the_uninvited_is_right_too(house: Served, person: Callable[..., BrowserContext]):
    page = person(calm=True).new_page()
    page.goto(f"{house.url}/rate")

    assert page.evaluate(AUDIT) == []


def test_the_audit_finds_what_is_wrong(house: Served, person: Callable[..., BrowserContext], keys: object):
    page = opened(house, person, keys, "/rate")
    page.evaluate(
        """() => {
          document.querySelector("[data-choice=tie]").replaceChildren();
          document.getElementById("progress-text").style.color = getComputedStyle(document.body).backgroundColor;
          document.getElementById("left").setAttribute("aria-labelledby", "nobody");
        }"""
    )
    found = " ".join(page.evaluate(AUDIT))

    assert all(what in found for what in ("has no name", "has a contrast of", "#nobody, which is not there"))


@every_page
def test_a_phone_scrolls_no_page_sideways(
    house: Served, person: Callable[..., BrowserContext], keys: object, path: str
):
    page = opened(
        house, person, keys, path, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True,
        device_scale_factor=2,
    )  # fmt: skip

    assert page.evaluate("() => Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)") <= 360


@every_page
def test_every_control_is_reached_by_tab_and_shows_its_focus(
    house: Served, person: Callable[..., BrowserContext], keys: object, path: str
):
    page = opened(house, person, keys, path)
    page.locator("body").focus()
    controls = page.evaluate(
        """() => [...document.querySelectorAll("main button, main input, main textarea, main select, main a[href]")]
          .filter((e) => e.checkVisibility() && !e.disabled && e.type !== "radio").length"""
    )
    page.evaluate(
        """() => {
          window.reached = new Set();
          window.unseen = [];
          document.addEventListener("focusin", ({ target }) => {
            window.reached.add(target);
            if (target.type === "radio" || target.id === "main") return;
            if (getComputedStyle(target).outlineStyle === "none") window.unseen.push(target.id || target.tagName);
          });
        }"""
    )
    for _ in range(controls + 40):
        page.keyboard.press("Tab")
    reached = page.evaluate(
        """() => [...window.reached].filter((e) => e.closest("main"))
          .filter((e) => e.matches("button, input:not([type=radio]), textarea, select, a")).length"""
    )

    assert reached == controls
    assert page.evaluate("() => window.unseen") == []


@every_page
def test_no_script_or_style_stands_in_the_page_itself(
    house: Served, person: Callable[..., BrowserContext], keys: object, path: str
):
    page = person(storage_state=keys).new_page()
    answer = page.goto(f"{house.url}{path}")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";") if part)
    source = answer.text()

    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert policy["frame-ancestors"] == "'none'"
    assert "<style" not in source
    assert " style=" not in source
    assert "onclick" not in source
    assert all("src=" in part.split(">")[0] for part in source.split("<script")[1:])
