"""A run and its raters at once: a round that waits for people goes on when the last vote arrives."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from browsing import Served, invite, join, wait_until
from playwright.sync_api import BrowserContext, Page, expect
from tiny_run import new_run

from backflip.cycle.folder import DATABASE
from backflip.cycle.plan import Rate
from backflip.raters.personas import Crowd
from backflip.store import open_store

SHOWN = "() => ['prompt', 'left-text', 'right-text'].map((id) => document.getElementById(id).innerText).join()"


def rate_by_keyboard(page: Page, count: int) -> None:
    """Judge so many pairs with the arrow keys, each once the one before has gone."""
    for n in range(count):
        expect(page.locator("#pair")).to_be_visible(timeout=60_000)
        before = page.evaluate(SHOWN)
        page.keyboard.press(("ArrowLeft", "ArrowRight")[n % 2])
        page.wait_for_function(
            f"before => document.getElementById('pair').hidden || ({SHOWN})() !== before", arg=before
        )


def test_a_run_paused_for_people_goes_on_when_the_last_vote_arrives(
    tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]
):
    rate = Rate(pairs=8, held_out=2, double_share=0, repeat_share=0)
    root = new_run(tmp_path / "run", tiny_model, rounds=1, rate=rate, raters=Crowd(by="people"))
    trainer = None
    served = Served(root)
    try:
        served.start()
        command = [sys.executable, "-m", "backflip", "run", "--dir", str(root)]
        with (root / "trainer.log").open("ab") as log:
            trainer = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"NO_COLOR": "1"})
        owner = person()
        join(owner, served.owner_link()).close()
        page = join(person(), invite(owner, served, "Ada"))
        watching = owner.new_page()
        watching.goto(f"{served.url}/progress")
        expect(page.locator("#pair")).to_be_visible(timeout=60_000)
        rate_by_keyboard(page, 7)
        with served.store() as store:
            wait_until("seven votes are there", lambda: len(store.votes()) == 7)
            assert "fit" not in store.steps_done(1)  # it waits for the last one
        rate_by_keyboard(page, 1)
        wait_until("it asks how the policy compares", lambda: _compared(served))
        expect(watching.locator("#score .points path").first).to_be_visible(timeout=20_000)  # live
        expect(watching.locator("#state")).to_contain_text("to compare it with the untouched model", timeout=20_000)
        rate_by_keyboard(page, _compared(served))
        wait_until("the round is measured", lambda: "measure" in _done(served))
        expect(watching.locator("#strip")).to_contain_text(re.compile(r"Wins\s*\d+%"), timeout=20_000)
        wait_until("the run is over", lambda: trainer.poll() is not None)
    finally:
        served.kill()
        if trainer is not None:
            trainer.kill()
            trainer.wait(30)

    assert trainer.returncode == 0, (root / "trainer.log").read_text()
    with served.store() as store:
        assert len(store.votes(round=1, stream="fit")) + len(store.votes(round=1, stream="random")) == 8
        assert len(store.votes(round=1, stream="reference")) == len(store.pairs(stream="reference"))
        assert {r.kind for r in store.raters() if r.id in {v.rater_id for v in store.votes()}} == {"person"}


def _compared(served: Served) -> int:
    """How many pairs of the policy against the untouched model are open."""
    with served.store() as store:
        return sum(p.stream == "reference" for p, _ in store.wanting())


def _done(served: Served) -> set[str]:
    with served.store() as store:
        return store.steps_done(1) if store.rounds() else set()


@contextmanager
def started(root: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`backflip run plan.toml --people`, as the README says."""
    command = [sys.executable, "-m", "backflip", "run", str(root / "plan.toml"), "--people", "--dir", str(root / "run")]
    with log.open("wb") as said, subprocess.Popen(
        command, stdout=said, stderr=said, env=os.environ | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(60)


def test_a_newcomer_rates_thirty_pairs_and_sees_the_next_round_use_them(
    tiny_model: Path, tmp_path: Path, person: Callable[..., BrowserContext]
):
    root, log = tmp_path, tmp_path / "said.txt"
    new_run(root, tiny_model, rate=Rate(pairs=30, held_out=6, double_share=0, repeat_share=0))
    with started(root, log) as process:
        wait_until("the owner's link is told", lambda: "/join/" in log.read_text() or process.poll() is not None)
        [link] = re.findall(r"http://127\.0\.0\.1:\d+/join/\S+", log.read_text())
        owner = join(person(), link)
        owner.get_by_label("Name").fill("Ada")
        owner.get_by_role("button", name="Make a link").click()
        expect(owner.locator("#link")).to_have_value(re.compile("/join/"))
        rater = join(person(), owner.locator("#link").input_value())
        rate_by_keyboard(rater, 30)
        expect(rater.locator("#pair")).to_be_visible(timeout=120_000)  # what round 2's policy answered: by itself
        with open_store(root / "run" / DATABASE) as store:
            wait_until("round 2 asks", lambda: store.rounds() == [1, 2] and store.pairs(round=2))
            [fitted] = store.metrics(round=1, step="fit", name="votes/count")
            voted = store.votes(round=1, stream="fit") + store.votes(round=1, stream="random")
            assert (len(voted), store.watermark(1), fitted.value) == (30, 30, 30)
            assert "optimise" in store.steps_done(1)
        owner.goto(link[: link.index("/join/")] + "/progress")
        expect(owner.locator("#strip")).to_contain_text(re.compile(r"Rounds begun\s*2"), timeout=20_000)
        expect(owner.locator("#score .points path").first).to_be_visible(timeout=20_000)
        owner.locator("summary").first.click()
        owner.locator("#rows button").first.click()
        expect(owner.locator("#samples article").first).to_be_visible()
