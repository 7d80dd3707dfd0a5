"""The owner's page, progress, rankings, demonstrations and clips in a real browser."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browsing import Served, invite, join, pair_of, rated_run, sample_of
from playwright.sync_api import BrowserContext, Page, expect

from backflip.core.records import Metric, Prompt, Sample
from backflip.cycle.plan import Rate
from backflip.web.clips import clip_path

RANKED = ["good tea", "better tea", "best tea"]


def saved(page: Page) -> None:
    """Wait until the server has everything."""
    expect(page.locator("#status")).to_have_text("Saved")


def test_the_owner_invites_by_link_and_watches_the_raters(
    served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]
):
    page = owner.new_page()
    page.goto(f"{served.url}/owner")
    page.get_by_label("Name").fill("<b>Ada</b>")
    page.get_by_role("button", name="Make a link").click()
    expect(page.locator("#link")).to_have_value(re.compile(r"/join/.{20,}"))
    rater = join(person(), page.locator("#link").input_value())
    expect(rater.locator("#pair")).to_be_visible()
    for _ in range(3):
        rater.keyboard.press("ArrowLeft")
    saved(rater)
    row = page.get_by_role("row").filter(has_text="<b>Ada</b>")
    expect(row.locator("td").first).to_have_text("3", timeout=15_000)

    expect(row.locator("td").nth(3)).to_have_text("100%")  # chose left three times of three


def test_the_owner_exports_and_forgets(served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]):
    rater = join(person(), invite(owner, served, "Ada"))
    expect(rater.locator("#pair")).to_be_visible()
    rater.keyboard.press("ArrowLeft")
    saved(rater)
    page = owner.new_page()
    page.goto(f"{served.url}/owner")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as JSONL").click()
    [vote] = [json.loads(line) for line in Path(download.value.path()).read_text(encoding="utf-8").splitlines()]
    page.get_by_role("button", name="Forget Ada").click()
    expect(page.locator("#sure")).to_be_visible()
    page.locator("#sure-yes").click()
    expect(page.locator("#status")).to_have_text("Forgotten.")

    assert {"rater", "shown_first", "latency_s", "policy", "probability"} <= vote.keys()
    with served.store() as store:
        assert store.vote_log() == []


def test_the_progress_page_draws_the_curves_and_shows_the_answers_behind_a_point(
    tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]
):
    root = rated_run(tmp_path / "run", tiny_model)
    with Served(root) as served:
        with served.store() as store, store.begin() as tx:
            tx.add_samples([_measured(sample_of("train-00", 0, "the answer behind"))])
            tx.add_metrics(
                [Metric(round=1, step="measure", tick=0, name="monitor/proxy", value=0.4, low=0.2, high=0.6)]
                + [Metric(round=1, step="optimise", tick=n, name="objective/scores", value=0.1 * n) for n in (1, 2, 3)]
                + [Metric(round=1, step="optimise", tick=n, name="objective/kl", value=0.2 * n) for n in (1, 2, 3)]
            )
        page = join(person(), served.owner_link(), f"{served.url}/progress")
        expect(page.locator("#score .points path")).to_have_count(4)
        expect(page.locator("#score .errorbars path.yerror")).to_have_count(1)
        page.locator("summary").first.click()
        page.get_by_role("button", name="Answers of round 1, monitor 0").click()
        expect(page.locator("#samples")).to_contain_text("the answer behind")
        before = page.locator("#behind").bounding_box()
        page.wait_for_timeout(4000)  # it asks again meanwhile, and nothing moves
        assert page.locator("#behind").bounding_box() == before


def test_the_progress_page_says_where_to_stop_and_a_point_of_the_path_opens_its_answers(
    tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]
):
    root = rated_run(tmp_path / "run", tiny_model)
    folder = root / "rounds" / "r1" / "shown"
    folder.mkdir(parents=True, exist_ok=True)
    with Served(root) as served:
        page = join(person(), served.owner_link(), f"{served.url}/progress")
        expect(page.locator("#strip div").first).to_be_visible()
        expect(page.locator("#path")).to_be_hidden()
        with served.store() as store, store.begin() as tx:
            row = {"prompt_id": "train-00", "text": "said then", "ended": True, "length": 2, "score": 1.0}
            (folder / "00009.jsonl").write_text(json.dumps(row) + "\n")
            tx.add_metrics(
                [
                    Metric(round=1, step="optimise", tick=k, name=name, value=value)
                    for k, d in ((k, 0.3 * k) for k in range(1, 13))
                    for name, value in (
                        ("objective/kl", d * d), ("objective/scores", d), ("gold/utility", d - d * d / 4)
                    )
                ]
            )  # fmt: skip
        expect(page.locator("#stop-said")).to_contain_text("Stop here: ", timeout=15_000)
        expect(page.locator("#whole .annotation-text", has_text="Stop here")).to_be_visible()
        point = page.locator("#whole .points path").nth(8).bounding_box()
        assert point
        page.mouse.click(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)

        expect(page.locator("#samples")).to_contain_text("said then")


def _measured(sample: Sample) -> Sample:
    return replace(sample, id="r1/monitor/policy-r1/train-00/0", purpose="monitor", policy="policy-r1")


@pytest.fixture
def ranking(tiny_model: Path, tmp_path: Path) -> Iterator[Served]:
    """A served run in which three answers are to be put in order."""
    root = rated_run(tmp_path / "run", tiny_model, 0, rate=Rate(pairs=20, held_out=6, rank=True))
    with Served(root) as served:
        prompt = Prompt(id="train-r", split="train", text="we love tea")
        samples = [sample_of(prompt.id, i, text) for i, text in enumerate(RANKED)]
        pairs = [pair_of(f"r1/rank/{i}{j}", samples[i], samples[j], "r1/rank") for i, j in ((0, 1), (0, 2), (1, 2))]
        with served.store() as store, store.begin() as tx:
            tx.add_prompts([prompt])
            tx.add_samples(samples)
            tx.add_pairs(pairs)
        yield served


def order_in(served: Served) -> dict[str, str]:
    """Which of two answers each pair's vote prefers."""
    with served.store() as store:
        choice = {v.pair_id: v.choice for v in store.votes()}
        texts = {s.id: s.text for s in store.samples()}
        return {f"{texts[p.sample_a]} / {texts[p.sample_b]}": choice.get(p.id, "none") for p in store.pairs()}


def key_of(page: Page, text: str) -> str:
    """The number under which an answer stands on the page."""
    shown = page.locator("#answers .text").all_inner_texts()
    return str(shown.index(text) + 1)


def test_answers_are_ranked_by_number_keys(ranking: Served, person: Callable[..., BrowserContext]):
    page = join(person(), ranking.owner_link(), f"{ranking.url}/rank")
    expect(page.locator("#ranking")).to_be_visible()
    for text in ("best tea", "better tea"):
        page.keyboard.press(key_of(page, text))
    page.keyboard.press("Enter")
    saved(page)

    assert order_in(ranking) == {
        "good tea / better tea": "b", "good tea / best tea": "b", "better tea / best tea": "b"
    }  # fmt: skip


def test_answers_are_ranked_by_dragging_and_may_be_equal(ranking: Served, person: Callable[..., BrowserContext]):
    page = join(person(), ranking.owner_link(), f"{ranking.url}/rank")
    expect(page.locator("#ranking")).to_be_visible()
    best, better = key_of(page, "best tea"), key_of(page, "better tea")
    page.keyboard.press(better)
    page.keyboard.press(best)  # the third follows by itself: better > best > good
    chips = page.locator("#order [data-at]")
    first, second = chips.nth(0).bounding_box(), chips.nth(1).bounding_box()
    assert first
    assert second
    page.mouse.move(second["x"] + 5, second["y"] + 5)
    page.mouse.down()
    page.mouse.move(first["x"] + 5, first["y"] + 5, steps=5)
    page.mouse.up()
    expect(chips.nth(0)).to_have_text(best)
    page.keyboard.press("Backspace")
    page.keyboard.press("t")
    page.keyboard.press(key_of(page, "good tea"))
    page.keyboard.press("Enter")
    saved(page)

    assert order_in(ranking) == {
        "good tea / better tea": "tie", "good tea / best tea": "b", "better tea / best tea": "b"
    }  # fmt: skip


def test_a_demonstration_reaches_the_store_and_its_draft_survives_a_reload(served: Served, rater: Page):
    rater.goto(f"{served.url}/demonstrate")
    expect(rater.locator("#demonstration")).to_be_visible()
    expect(rater.locator("#use")).to_contain_text("kept for the next run to learn from")
    rater.locator("#answer").fill("Good tea takes ti")
    asked = rater.locator("#prompt").inner_text()
    rater.reload()
    if rater.locator("#prompt").inner_text() == asked:
        expect(rater.locator("#answer")).to_have_value("Good tea takes ti")
    rater.locator("#answer").fill("Good tea takes time.")
    asked = rater.locator("#prompt").inner_text()
    rater.keyboard.press("Control+Enter")
    saved(rater)

    with served.store() as store:
        [written] = store.people.demonstrations()
        texts = {p.id: p.text for p in store.prompts()}
    assert (texts[written.prompt_id], written.text) == (asked, "Good tea takes time.")


FILM = """async (width) => {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: 64, height: 48 });
  const pen = canvas.getContext("2d");
  const recorder = new MediaRecorder(canvas.captureStream(20), { mimeType: "video/webm" });
  const pieces = [];
  recorder.ondataavailable = (event) => pieces.push(event.data);
  const over = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  for (let n = 0; n < 16; n += 1) {
    pen.fillStyle = `hsl(${n * width}deg 80% 50%)`;
    pen.fillRect(0, 0, 4 * n + width, 48);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  recorder.stop();
  await over;
  return [...new Uint8Array(await new Blob(pieces).arrayBuffer())];
}"""


def test_two_clips_play_side_by_side_in_step(tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]):
    root = rated_run(tmp_path / "run", tiny_model, 1)
    film = person().new_page()
    for i in (0, 1):
        file = clip_path(root, f"r1/rate/reference/train-00/{i}", "video/webm")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(film.evaluate(FILM, 7 + 9 * i)))
    with Served(root) as served:
        page = join(person(), served.owner_link(), f"{served.url}/rate")
        expect(page.locator("video")).to_have_count(2)
        page.wait_for_function("() => [...document.querySelectorAll('video')].every((v) => v.currentTime > 0.2)")
        page.wait_for_timeout(2500)  # longer than the clips: they loop
        times = page.evaluate("() => [...document.querySelectorAll('video')].map((v) => [v.currentTime, v.muted])")
        page.keyboard.press("p")
        paused = page.evaluate("() => [...document.querySelectorAll('video')].every((v) => v.paused)")
        page.keyboard.press("ArrowLeft")
        saved(page)
        part = page.context.request.get(
            f"{served.url}/api/clips/r1/rate/reference/train-00/0", headers={"Range": "bytes=0-9"}
        )
        forged = page.context.request.get(f"{served.url}/api/clips/..%2F..%2Fplan.toml")

    assert [muted for _, muted in times] == [True, True]
    assert abs(times[0][0] - times[1][0]) < 0.25
    assert paused
    assert (part.status, len(part.body()), part.headers["content-type"]) == (206, 10, "video/webm")
    assert forged.status == 404


def test_poses_are_drawn_and_loop(tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]):
    root = rated_run(tmp_path / "run", tiny_model, 1)
    frames = [[[0, 0], [n / 20, 1]] for n in range(20)]  # a second
    for i in (0, 1):
        file = clip_path(root, f"r1/rate/reference/train-00/{i}", "application/json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"fps": 20, "edges": [[0, 1]], "frames": frames}))
    with Served(root) as served:
        page = join(person(), served.owner_link(), f"{served.url}/rate")
        expect(page.locator("canvas")).to_have_count(2)
        drawn = "() => [...document.querySelectorAll('canvas')].map((c) => c.toDataURL())"
        page.wait_for_function(
            "() => { const c = document.querySelector('canvas');"
            " return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v); }"
        )
        page.wait_for_timeout(1600)
        before = page.evaluate(drawn)
        page.wait_for_timeout(300)
        after = page.evaluate(drawn)

    assert before[0] != after[0]
    assert before[1] != after[1]
