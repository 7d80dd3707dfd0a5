"""Talking to the policy in a real browser: answers stream, thumbs and pairs reach the store."""

from collections.abc import Callable
from pathlib import Path

import pytest
from browsing import Served, invite, join
from playwright.sync_api import BrowserContext, Page, expect

from backflip.cycle.artefacts import load_answers


@pytest.fixture
def talk(served: Served, rater: Page) -> Page:
    """A rater's chat page."""
    rater.goto(f"{served.url}/chat")
    expect(rater.locator("#opening")).to_be_visible()
    return rater


def ask(page: Page, text: str, answers: int = 1) -> None:
    """Ask, and wait until the answer is whole."""
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Good answer")).to_have_count(answers, timeout=60_000)


def saved(page: Page) -> None:
    """Wait until the server has everything."""
    expect(page.locator("#status")).to_have_text("Saved")


def test_an_answer_streams_piece_by_piece_and_is_kept(served: Served, talk: Page):
    talk.evaluate(
        """() => {
          window.grown = new Set();
          new MutationObserver(() => {
            const text = document.querySelector(".reply .text");
            if (text) window.grown.add(text.innerText.length);
          }).observe(document.getElementById("talk"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    ask(talk, "we love tea")
    shown = talk.locator(".reply .text").inner_text()

    assert len(talk.evaluate("() => [...window.grown]")) > 2
    with served.store() as store:
        [sample] = store.samples(purpose="chat")
        [prompt] = [p for p in store.prompts() if p.id.startswith("chat/")]
        assert (sample.text, sample.prompt_id, prompt.text, prompt.split) == (shown, prompt.id, "we love tea", "train")
        [answer] = load_answers(served.root, [sample])
    assert len(answer.tokens) == len(answer.logp) == sample.length


def test_the_talk_so_far_goes_with_the_next_question(served: Served, talk: Page):
    ask(talk, "we love tea")
    first = talk.locator(".reply .text").inner_text()
    ask(talk, "is it good", answers=2)

    with served.store() as store:
        [prompt] = [p for p in store.prompts() if p.text == "is it good"]
    assert prompt.history == (("user", "we love tea"), ("assistant", first))


def test_thumbs_reach_the_store_and_a_change_of_mind_counts_once(served: Served, talk: Page):
    ask(talk, "we love tea")
    talk.get_by_role("button", name="Good answer").click()
    saved(talk)
    with served.store() as store:
        assert [t.up for t in store.thumbs()] == [True]
    talk.get_by_role("button", name="Bad answer").click()
    expect(talk.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
    expect(talk.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "false")
    expect(talk.locator("#status")).to_have_attribute("data-waiting", "0")

    with served.store() as store:
        [thumb] = store.thumbs()
        [sample] = store.samples(purpose="chat")
    assert (thumb.up, thumb.sample_id) == (False, sample.id)


def test_again_puts_a_second_answer_beside_the_first_and_asks_which_is_better(served: Served, talk: Page):
    ask(talk, "we love tea")
    talk.get_by_role("button", name="Again").click()
    expect(talk.get_by_role("group", name="Which answer is better?")).to_be_visible(timeout=60_000)
    both = talk.locator(".reply .text").all_inner_texts()
    talk.get_by_role("button", name="Second is better").click()
    saved(talk)
    ask(talk, "is it good", answers=3)

    with served.store() as store:
        [vote] = store.votes()
        [pair] = [p for p in store.pairs() if p.id == vote.pair_id]
        texts = {s.id: s.text for s in store.samples(purpose="chat")}
        [prompt] = [p for p in store.prompts() if p.text == "is it good"]
        waiting = {p.id for p, _ in store.wanting()}
    assert (vote.choice, vote.shown, pair.stream) == ("b", "ab", "fit")
    assert [texts[pair.sample_a], texts[pair.sample_b]] == both
    assert prompt.history[-1] == ("assistant", both[1])  # the talk goes on from the better one
    assert pair.id not in waiting  # no round waits for what was said in a talk


def test_a_talk_that_is_too_long_is_told_in_a_sentence(
    served: Served, owner: BrowserContext, person: Callable[..., BrowserContext], tmp_path: Path
):
    page = join(person(calm=True), invite(owner, served, "Ada"), f"{served.url}/chat")
    page.locator("#message").fill("tea " * 200)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("too long", timeout=60_000)

    assert page.locator("#message").input_value() == ("tea " * 200).strip()  # it may be shortened
    with served.store() as store:
        assert store.samples(purpose="chat") == []
