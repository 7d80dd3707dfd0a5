"""The report's panel in a real browser: a point opens its answers, keys reach them, print shows the picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from backflip.report import ReportData, write_report
from backflip.report.data import Behind, Counts, Estimate, Read, Step, Stop


def climbed() -> ReportData:
    """Eight steps of one round, with answers behind each."""
    steps = tuple(
        Step(round=1, tick=k, number=k, values={"objective/kl": float(k * k), "objective/scores": 0.5 * k})
        for k in range(1, 9)
    )
    behind = tuple(
        Behind(key=f"r1-s{k}", title=f"Round 1, step {k}", answers=(Read(prompt="ask", text=f"said {k}", note=""),))
        for k in range(1, 9)
    )
    return ReportData(
        task="made up", base_model="m", judged_by="people", simulated=False, rounds_done=0, steps=steps, behind=behind,
        counts=Counts(samples=8, pairs=0, votes=0), kl_target=16.0,
        stop=Stop(said="Stop here: 9.0 nats.", over="made up", at=Estimate(value=9.0, low=4.0, high=16.0)),
    )  # fmt: skip


def opened(browser: BrowserContext, folder: Path) -> Page:
    write_report(folder / "report.html", climbed())
    page = browser.new_page()
    page.goto((folder / "report.html").as_uri())
    expect(page.locator("#figure-panel .points path").first).to_be_visible()
    return page


@pytest.fixture
def page(person: Callable[..., BrowserContext], tmp_path: Path) -> Page:
    return opened(person(), tmp_path)


def test_a_point_opens_the_answers_behind_it(page: Page) -> None:
    expect(page.get_by_text("said 5")).to_be_hidden()
    point = page.locator("#figure-panel .points path").nth(4).bounding_box()
    assert point
    page.mouse.click(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)

    expect(page.get_by_text("said 5")).to_be_visible()
    expect(page.get_by_text("said 4")).to_be_hidden()
    assert page.evaluate("document.activeElement.textContent") == "Round 1, step 5"


def test_keys_alone_reach_the_answers(page: Page) -> None:
    page.locator("#behind > summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    expect(page.get_by_text("said 2")).to_be_visible()


@pytest.mark.parametrize(("width", "media"), [(390, "screen"), (794, "print")])
def test_the_place_to_stop_is_seen_on_a_phone_and_on_paper(
    person: Callable[..., BrowserContext], tmp_path: Path, width: int, media: Literal["screen", "print"]
) -> None:
    page = opened(person(viewport={"width": width, "height": 844}), tmp_path)
    page.emulate_media(media=media)

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.locator("#figure-panel .annotation-text", has_text="Stop here")).to_be_visible()
    expect(page.get_by_text("Stop here: 9.0 nats.")).to_be_visible()
