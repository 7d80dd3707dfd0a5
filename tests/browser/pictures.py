"""Takes the pictures of the pages for the README and the guide: `python tests/browser/pictures.py`.

They show a made-up run, so that they look the same each time; every page in light, dark and on a phone.
"""

import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

from browsing import Served, invite, join, pair_of, rated_run, sample_of  # noqa: E402
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright  # noqa: E402
from tiny_run import save_model  # noqa: E402

from backflip.core.records import Metric, Prompt  # noqa: E402
from backflip.cycle.plan import Rate  # noqa: E402

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
OUT = ROOT / "docs" / "images"
NOTE = """Hello Sam,

last night's storm laid your old birch across our fence. Nobody was hurt, and the dog thinks it is the best thing \
that ever happened. Shall we look at it together on Saturday? I have a saw, and there will be coffee.

All the best
Toni"""
STIFF = """Dear neighbour, your tree has fallen on our fence. Please remove the tree. The fence is broken because of \
the tree. Please let me know when you will remove the tree and repair the fence."""
TALKS = [
    ("Write a friendly note to a neighbour whose tree has fallen onto our fence.", NOTE, STIFF),
    (
        "List three things to check on a bicycle before a long ride.",
        "1. Brakes: squeeze both, they should bite early.\n2. Tyres: firm, and no cuts.\n3. Chain: clean and oiled.",
        "Before a long ride you should check the bicycle. A bicycle has many parts and it is important to check them.",
    ),
    (
        "Explain to a child why the sky is blue.",
        "Sunlight is a mix of all colours. Air bounces the blue part around the most, so blue comes from everywhere.",
        "The sky is blue due to scattering inversely proportional to the fourth power of the wavelength.",
    ),
]
SHAPES = {
    "light": {"viewport": {"width": 1200, "height": 760}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 760}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 800}, "color_scheme": "light", "has_touch": True, "is_mobile": True},
}


def made_up_run(root: Path) -> Path:
    """Three talks to judge, one ranking, and figures of two rounds."""
    model = save_model(root / "model")
    run = rated_run(root / "run", model, 0, rate=Rate(pairs=24, held_out=4, rank=True))
    served = Served(run)
    with served.store() as store, store.begin() as tx:
        for n, (request, *answers) in enumerate(TALKS):
            prompt = Prompt(id=f"talk-{n}", split="train", text=request)
            samples = [sample_of(prompt.id, i, text) for i, text in enumerate(answers)]
            tx.add_prompts([prompt])
            tx.add_samples(samples)
            tx.add_pairs([replace(pair_of(f"r1/{n}", *samples), raters_wanted=4)])
        prompt = Prompt(id="rank", split="train", text="Write a rhyming couplet about the last slice of pizza.")
        lines = [
            "One slice is left, and two of us are near;\nI blink, and somehow it is no more here.",
            "The pizza is good and the pizza is nice,\nand there is only one more slice.",
            "Last slice of pizza, round and warm and wide,\nwe cut you into two and dined with pride.",
        ]
        samples = [sample_of(prompt.id, i, text) for i, text in enumerate(lines)]
        tx.add_prompts([prompt])
        tx.add_samples(samples)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            tx.add_pairs([replace(pair_of(f"r1/rank/{i}{j}", samples[i], samples[j], "r1/rank"), raters_wanted=4)])
        tx.add_metrics(list(_figures()))
    return run


def _figures() -> Iterator[Metric]:
    for r in (1, 2):
        for n in range(1, 13):
            score = 0.6 * (r - 1) + 0.05 * n + 0.04 * (n % 3)
            yield Metric(round=r, step="optimise", tick=n, name="objective/scores", value=score)
            yield Metric(round=r, step="optimise", tick=n, name="objective/kl", value=2.4 * (r - 1) + 0.2 * n)
        for name, value, half in (
            ("monitor/proxy", 0.55 * r, 0.15), ("monitor/kl", 2.6 * r, 0.3), ("people/win_rate", 0.5 + 0.1 * r, 0.08)
        ):  # fmt: skip
            yield _measured(r, 0, name, value, half)
    for k in (0, 1, 2):
        yield _measured(2, k, "rescored/proxy", 0.6 * k, 0.15)
    for n in range(2, 17):  # what best of n would give is known for its score alone: people judge here
        yield _measured(2, n, "best_of/proxy", 0.3 * math.log(n), 0.1)
    yield _measured(2, 0, "best_of/proxy_gain", 0.3 * math.log(16), 0.1)


def _measured(number: int, tick: int, name: str, value: float, half: float) -> Metric:
    return Metric(round=number, step="measure", tick=tick, name=name, value=value, low=value - half, high=value + half)


def _talk(page: Page) -> None:
    """A made-up talk: the tiny model has nothing to say that one would want to read."""
    stream = (
        'data: {"text": "Boil the water, let it stand for a minute, and give the leaves three."}\n\n'
        'data: {"done": true, "text": "Boil the water, let it stand for a minute, and give the leaves three.", '
        '"sample": "shown", "pair": null}\n\n'
    )
    page.route("**/api/chat", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    page.locator("#message").fill("How do I make good green tea?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Good answer")).to_be_visible()


def _rank(page: Page) -> None:
    expect(page.locator("#ranking")).to_be_visible()
    page.keyboard.press("1")


def _rate(page: Page) -> None:
    """The pair with the longest answers; the others are voted on, so that it comes first the next time."""
    expect(page.locator("#pair")).to_be_visible()
    while "neighbour" not in page.locator("#prompt").inner_text():
        page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(600)


PAGES = {
    "rate": ("/rate", _rate),
    "rank": ("/rank", _rank),
    "write": (
        "/demonstrate",
        lambda page: page.locator("#answer").fill("Hello Sam, about that tree …"),
    ),
    "chat": ("/chat", _talk),
    "progress": ("/progress", lambda page: expect(page.locator("#whole .points path").first).to_be_visible()),
    "owner": ("/owner", lambda page: expect(page.locator("#raters tr").first).to_be_visible()),
}


def _people(browser: Browser, served: Served) -> BrowserContext:
    """The owner, and two raters who have voted a little."""
    owner = browser.new_context()
    page = join(owner, served.owner_link(), f"{served.url}/owner")
    page.get_by_label("What raters are asked to look at").fill("Prefer the answer you would rather have got yourself.")
    page.get_by_role("button", name="Save as a new version").click()
    expect(page.locator("#status")).to_contain_text("Saved")
    for name, key in (("Ada", "ArrowLeft"), ("Ben", "ArrowRight")):
        rater = join(browser.new_context(), invite(owner, served, name))
        expect(rater.locator("#guidelines")).to_be_visible()
        rater.keyboard.press("Escape")
        rater.keyboard.press(key)
        expect(rater.locator("#status")).to_have_text("Saved")
    invite(owner, served, "Cleo")
    page.goto(f"{served.url}/rate")
    expect(page.locator("#guidelines")).to_be_visible()
    page.keyboard.press("Escape")  # read once: it does not open by itself again
    return owner


def main() -> None:
    """Write every picture to docs/images."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with (
        tempfile.TemporaryDirectory() as folder,
        Served(made_up_run(Path(folder))) as served,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        state = _people(browser, served).storage_state()
        for shape, options in SHAPES.items():
            context = browser.new_context(storage_state=state, reduced_motion="reduce", **options)
            for name, (where, ready) in PAGES.items():
                page = context.new_page()
                page.goto(f"{served.url}{where}")
                ready(page)
                page.wait_for_timeout(400)
                page.screenshot(path=OUT / f"{name}-{shape}.png")
                page.close()
        browser.close()
    for file in sorted(OUT.glob("*.png")):
        print(f"{file.relative_to(ROOT)} {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
