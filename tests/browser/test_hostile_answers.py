"""What a model says is hostile text: in a real browser it stays text, in its place, and visible."""

from collections.abc import Callable
from pathlib import Path

from browsing import Served, join, rated_run
from playwright.sync_api import BrowserContext, Page, expect

MARK = "window.broken = true"
SCRIPTS = [
    f"<script>{MARK}</script>",
    f"<img src=x onerror='{MARK}'>",
    f"</div></article><svg onload='{MARK}'>",
    f"<iframe srcdoc='<script>parent.{MARK}</script>'></iframe><base href='//evil.example/'><style>*{{top:0}}</style>",
    f"[click](javascript:{MARK}) ![x](https://evil.example/x.png) <a href='javascript:{MARK}'>link</a>",
    "{{ 7 * 7 }} {% raw %} ${7*7} &lt;b&gt; &#60;script&#62;",
    "<meta http-equiv=refresh content='0;url=//evil.example'><form action=//evil.example><b onclick=1>x</b></form>",
    "\"><input autofocus onfocus='window.broken = true'>",
]
REVERSED = "safe \u202egnp.exe\u202c \u2066inside\u2069 end"
CONTROLS = "a\x00b\x07c\x1b[31mred\x7f\x85\u200b\ufeff" + "\u200f" * 57 + "d"
HALVES = "broken \ud83d half and \udc00 other"
LONG = "x" * 100_000
SPACED = "word " * 20_000


def opened(texts: list[str], model: Path, root: Path, person: Callable[..., BrowserContext], **options: object):
    """A server on these answers, and its owner's rating page."""
    served = Served(rated_run(root / "run", model, len(texts) // 2, texts))
    served.start()
    return served, join(person(**options), served.owner_link(), f"{served.url}/rate")


def every_pair(page: Page, count: int) -> list[tuple[str, str]]:
    """What both sides show, pair by pair."""
    seen = []
    for _ in range(count):
        expect(page.locator("#pair")).to_be_visible()
        before = page.locator("#prompt").inner_text()
        seen.append((page.locator("#left-text").inner_text(), page.locator("#right-text").inner_text()))
        page.keyboard.press("t")
        gone = "was => document.getElementById('pair').hidden || document.getElementById('prompt').innerText !== was"
        page.wait_for_function(gone, arg=before)
    return seen


def test_markup_and_scripts_stay_text(tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]):
    served, page = opened(SCRIPTS, tiny_model, tmp_path, person)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    try:
        shown = {text for both in every_pair(page, 4) for text in both}
        assert page.evaluate("() => window.broken") is None
        assert page.url == f"{served.url}/rate"
    finally:
        served.kill()

    assert shown == set(SCRIPTS)
    assert [url for url in asked if "evil" in url] == []


def test_direction_marks_controls_and_halves_are_shown_and_change_nothing_beside_them(
    tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]
):
    served, page = opened([REVERSED, CONTROLS, HALVES, "fine"], tiny_model, tmp_path, person)
    try:
        shown = [text for both in every_pair(page, 2) for text in both]
    finally:
        served.kill()

    assert sorted(shown) == sorted(
        [
            "safe RLOgnp.exePDF LRIinsidePDI end",
            "a␀b␇c␛[31mred␡U+0085ZWSPBOMRLM×57d",
            "broken � half and � other",
            "fine",
        ]
    )


def test_a_direction_mark_turns_no_letter_around(
    tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]
):
    served, page = opened([REVERSED, "fine"], tiny_model, tmp_path, person)
    try:
        expect(page.locator("#pair")).to_be_visible()
        # where the letters of "gnp" stand: left to right, as they were written
        places = page.evaluate(
            """() => {
              const walker = document.createTreeWalker(document.getElementById("pair"), NodeFilter.SHOW_TEXT);
              for (let node = walker.nextNode(); node; node = walker.nextNode()) {
                const at = node.data.indexOf("gnp");
                if (at < 0) continue;
                return [0, 1, 2].map((i) => {
                  const range = document.createRange();
                  range.setStart(node, at + i);
                  range.setEnd(node, at + i + 1);
                  return range.getBoundingClientRect().x;
                });
              }
            }"""
        )
    finally:
        served.kill()

    assert places == sorted(places)


def test_100_kb_scroll_within_their_box_also_on_a_phone(
    tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]
):
    served, page = opened([LONG, SPACED], tiny_model, tmp_path, person, viewport={"width": 360, "height": 740})
    try:
        expect(page.locator("#pair")).to_be_visible()
        boxes = page.evaluate(
            """() => ["left-text", "right-text"].map((id) => {
              const e = document.getElementById(id);
              return [e.scrollHeight > 5 * e.clientHeight, e.scrollWidth <= e.clientWidth, e.textContent.length];
            })"""
        )
        wide = page.evaluate("() => document.documentElement.scrollWidth")
    finally:
        served.kill()

    assert boxes == [[True, True, 100_000]] * 2
    assert wide <= 360


def test_a_hundred_thousand_unseen_characters_do_not_stop_the_page(
    tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]
):
    served, page = opened(["\u202e\u200b" * 50_000, "\u2066" * 100_000], tiny_model, tmp_path, person)
    try:
        [both] = every_pair(page, 1)
    finally:
        served.kill()

    assert "LRI×100000" in both
    assert max(map(len, both)) < 120_000
