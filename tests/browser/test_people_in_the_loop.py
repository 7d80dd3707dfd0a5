"""A run and its raters at once: a round that waits for people goes on when the last vote arrives."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from browsing import Served, invite, join, wait_until
from playwright.sync_api import BrowserContext, expect
from tiny_run import new_run

from backflip.cycle.plan import Rate
from backflip.raters.personas import Crowd

SHOWN = "() => ['prompt', 'left-text', 'right-text'].map((id) => document.getElementById(id).innerText).join()"


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
        for n in range(8):
            expect(page.locator("#pair")).to_be_visible(timeout=30_000)
            if n == 7:
                with served.store() as store:
                    assert "fit" not in store.steps_done(1)  # it waits for the last one
            before = page.evaluate(SHOWN)
            page.keyboard.press("ArrowLeft")
            page.wait_for_function(
                f"before => document.getElementById('pair').hidden || ({SHOWN})() !== before", arg=before
            )
        wait_until("the round is measured", lambda: "measure" in _done(served))
        expect(watching.locator("#score .points path").first).to_be_visible(timeout=20_000)  # live
        wait_until("the run is over", lambda: trainer.poll() is not None)
    finally:
        served.kill()
        if trainer is not None:
            trainer.kill()
            trainer.wait(30)

    assert trainer.returncode == 0, (root / "trainer.log").read_text()
    with served.store() as store:
        assert len(store.votes(round=1)) == 8
        assert {r.kind for r in store.raters() if r.id in {v.rater_id for v in store.votes()}} == {"person"}


def _done(served: Served) -> set[str]:
    with served.store() as store:
        return store.steps_done(1) if store.rounds() else set()
