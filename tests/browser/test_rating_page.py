"""The rating page in a real browser: keys, undo, speed, and no vote lost."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from browsing import Served, invite, join, rated_run, wait_until
from playwright.sync_api import BrowserContext, Page, expect

KEYS = ["ArrowLeft", "ArrowRight", "t", "u", "b", "1", "2", "ArrowLeft", "t", "ArrowRight"]


def request_on(page: Page) -> str:
    """The request that is shown, once there is one."""
    expect(page.locator("#pair")).to_be_visible()
    return page.locator("#prompt").inner_text()


def press_and_see(page: Page, key: str) -> str:
    """Press a key; returns the request that was judged."""
    before = request_on(page)
    page.keyboard.press(key)
    expect(page.locator("#prompt")).not_to_have_text(before)
    return before


def test_ten_pairs_are_judged_by_keyboard_alone_and_one_is_undone(served: Served, rater: Page):
    judged = [press_and_see(rater, key) for key in KEYS]
    rater.keyboard.press("z")
    expect(rater.locator("#prompt")).to_have_text(judged[-1])
    expect(rater.locator("#status")).to_have_attribute("data-waiting", "0")

    with served.store() as store:
        votes, log = store.votes(), store.vote_log()
        asked = {p.id: p.text for p in store.prompts()}
        request_of = {p.id: asked[p.prompt_id] for p in store.pairs()}
    assert len(set(judged)) == 10
    assert [request_of[v.pair_id] for v in votes] == judged[:9]
    assert [v.choice for v in log[2:5]] == ["tie", "skip", "bad"]
    assert [v.choice for v in log[10:]] == ["retract"]
    # "left" is the answer that stood on the left: a where the order was ab, else b
    assert votes[0].choice == votes[0].shown[0]
    assert votes[1].choice == votes[1].shown[1]


def test_the_side_that_is_chosen_is_the_answer_that_is_stored(served: Served, rater: Page):
    request_on(rater)
    wanted = rater.locator("#right-text").inner_text()
    press_and_see(rater, "ArrowRight")
    expect(rater.locator("#status")).to_have_attribute("data-waiting", "0")

    with served.store() as store:
        [vote] = store.votes()
        [pair] = [p for p in store.pairs() if p.id == vote.pair_id]
        texts = {s.id: s.text for s in store.samples()}
    assert texts[pair.sample_a if vote.choice == "a" else pair.sample_b] == wanted


def test_strength_reason_and_time_go_with_the_vote(served: Served, rater: Page):
    request_on(rater)
    time.sleep(1.2)
    if rater.locator("#strength").is_visible():
        rater.keyboard.press("s")
        rater.keyboard.press("s")
    rater.keyboard.press("r")
    rater.keyboard.type("kinder, and it ends")
    rater.keyboard.press("Enter")
    press_and_see(rater, "ArrowLeft")
    expect(rater.locator("#status")).to_have_attribute("data-waiting", "0")

    with served.store() as store:
        [vote] = store.votes()
    assert (vote.strength, vote.reason) == (2, "kinder, and it ends")
    assert 1.2 < vote.latency_s < 30


def test_the_next_pair_shows_within_one_frame_of_the_key_however_slow_the_network(rater: Page):
    first = request_on(rater)
    rater.wait_for_timeout(1000)  # the next pairs are fetched
    rater.route("**/api/**", lambda route: None)  # from here on the server answers nothing
    rater.evaluate(
        """() => addEventListener("keydown", () => {
          requestAnimationFrame(() => { window.after = document.getElementById("prompt").innerText; });
        }, { capture: true, once: true })"""
    )
    rater.keyboard.press("ArrowLeft")
    rater.wait_for_function("() => window.after")

    assert rater.evaluate("() => window.after") not in ("", first)
    for _ in range(3):  # at least four pairs wait in the page
        press_and_see(rater, "t")


def test_no_vote_is_lost_when_the_server_is_killed_in_mid_session(
    served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]
):
    page = join(person(calm=True), invite(owner, served, "Ada"))
    judged = [press_and_see(page, "ArrowLeft") for _ in range(3)]
    page.wait_for_timeout(1000)  # the next pairs are fetched
    served.kill()
    judged += [press_and_see(page, "ArrowRight") for _ in range(3)]
    expect(page.locator("#status")).to_contain_text("waiting for the connection")
    served.start()
    expect(page.locator("#status")).to_have_text("Saved", timeout=30_000)
    judged += [press_and_see(page, "t") for _ in range(3)]
    expect(page.locator("#status")).to_have_attribute("data-waiting", "0")

    with served.store() as store:
        asked = {p.id: p.text for p in store.prompts()}
        request_of = {p.id: asked[p.prompt_id] for p in store.pairs()}
        votes = store.votes()
    assert [request_of[v.pair_id] for v in votes] == judged


def test_unsent_votes_survive_a_reload(served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]):
    page = join(person(calm=True), invite(owner, served, "Ada"))
    request_on(page)
    page.route("**/api/votes", lambda route: route.abort())
    judged = [press_and_see(page, "ArrowLeft") for _ in range(2)]
    expect(page.locator("#status")).to_contain_text("2 votes waiting for the connection")
    page.reload()
    assert request_on(page) not in judged  # what is judged is not asked again
    page.unroute("**/api/votes")
    expect(page.locator("#status")).to_have_attribute("data-waiting", "0", timeout=30_000)

    with served.store() as store:
        assert len(store.votes()) == 2


def test_a_vote_whose_acknowledgement_was_lost_is_stored_once(
    served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]
):
    page = join(person(calm=True), invite(owner, served, "Ada"))
    request_on(page)
    lost = []

    def lose(route):  # the server has it, the page does not know
        if not lost:
            lost.append(route.fetch().status)
            route.abort()
        else:
            route.continue_()

    page.route("**/api/votes", lose)
    press_and_see(page, "ArrowLeft")
    expect(page.locator("#status")).to_have_text("Saved", timeout=30_000)

    with served.store() as store:
        assert lost == [201]
        assert len(store.vote_log()) == 1


def test_two_raters_are_told_apart(served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]):
    pages = [join(person(), invite(owner, served, name)) for name in ("Ada", "Ben")]
    for page in pages:
        for _ in range(4):
            press_and_see(page, "ArrowLeft")
        expect(page.locator("#status")).to_have_attribute("data-waiting", "0")

    with served.store() as store:
        by = {v.rater_id for v in store.votes()}
        names = {r.name for r in store.raters() if r.id in by}
        assert (len(store.votes()), names) == (8, {"Ada", "Ben"})


def test_a_flag_names_the_harmful_answer_and_leaves_the_vote_open(served: Served, rater: Page):
    before = request_on(rater)
    harmful = rater.locator("#right-text").inner_text()
    rater.keyboard.press("h")
    expect(rater.locator("#flag-dialog")).to_be_visible()
    rater.keyboard.press("2")
    expect(rater.locator("#flag-dialog")).to_be_hidden()
    expect(rater.locator("#status")).to_have_attribute("data-waiting", "0")

    assert request_on(rater) == before
    with served.store() as store:
        [flag] = store.people.flags()
        assert store.samples_by_id([flag.sample_id])[flag.sample_id].text == harmful
        assert store.votes() == []


def test_the_guidelines_are_one_key_away_and_every_vote_knows_their_version(
    served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]
):
    page = owner.new_page()
    page.goto(f"{served.url}/owner")
    page.get_by_label("What raters are asked to look at").fill("Prefer the kinder answer.")
    page.get_by_role("button", name="Save as a new version").click()
    expect(page.locator("#status")).to_contain_text("Saved")
    rater = join(person(), invite(owner, served, "Ada"))
    expect(rater.locator("#guidelines")).to_be_visible()  # nobody has read this version yet
    rater.keyboard.press("Escape")
    rater.keyboard.press("g")
    expect(rater.locator("#guidelines-text")).to_have_text("Prefer the kinder answer.")
    rater.keyboard.press("Escape")
    press_and_see(rater, "ArrowLeft")
    expect(rater.locator("#status")).to_have_attribute("data-waiting", "0")

    with served.store() as store:
        [vote] = store.votes()
        assert vote.guidelines == store.people.guidelines()[-1].version > 0


def test_nothing_jumps_however_long_an_answer_is(
    tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]
):
    texts = ["short", "also short", "long " * 4000, "word", "a", "line\n" * 500]
    with Served(rated_run(tmp_path / "run", tiny_model, 5, texts)) as served:
        page = join(person(), served.owner_link(), f"{served.url}/rate")
        request_on(page)
        places = set()
        for _ in range(4):
            boxes = [page.locator(f"[data-choice={c}]").bounding_box() for c in ("left", "right", "tie", "bad", "skip")]
            places.add(tuple(sorted((b["x"], b["y"], b["width"]) for b in boxes if b)))
            assert page.evaluate("() => document.documentElement.scrollHeight <= innerHeight")
            press_and_see(page, "t")

    assert len(places) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_in_light_and_dark(
    served: Served, owner: BrowserContext, person: Callable[..., BrowserContext], scheme: str
):
    page = join(person(color_scheme=scheme), invite(owner, served, "Ada"))
    request_on(page)
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    red = int(ground.split("(")[1].split(",")[0])

    assert (red > 200) == (scheme == "light")


def test_a_page_left_open_goes_on_by_itself_when_new_pairs_come(served: Served, rater: Page):
    for _ in range(15):
        press_and_see(rater, "t")
    rater.keyboard.press("t")
    expect(rater.locator("#empty")).to_be_visible()
    wait_until("all votes are stored", lambda: rater.locator("#status").get_attribute("data-waiting") == "0")

    with served.store() as store:
        one = store.pairs()[0]
        with store.begin() as tx:
            tx.add_pairs([replace(one, id="r1/late", sample_a=one.sample_b, sample_b=one.sample_a)])
    expect(rater.locator("#pair")).to_be_visible(timeout=15_000)
