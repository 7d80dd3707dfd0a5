"""`backflip rate` and `backflip run --people`, as a user starts them."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import new_run
from voters import Browser, Server, run_with_pairs

from backflip.cycle.folder import DATABASE
from backflip.cycle.overview import running, serving
from backflip.cycle.plan import Rate
from backflip.store import open_store

ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def wait_until(true: object, patience_s: float = 90.0) -> None:
    until = time.monotonic() + patience_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_owners_link_is_told_once_and_works_once(tmp_path: Path) -> None:
    root = run_with_pairs(tmp_path / "run")
    with Server(root) as server:
        assert server.told["address"].startswith("http://127.0.0.1:")
        path = re.sub("^http://[^/]*", "", server.told["owner_link"])
        asyncio.run(come_in(server.port, path))
        server.kill(signal.SIGTERM)
        server.start()
        assert server.told["owner_link"] is None
        log = server.log.read_text()
    assert path.rpartition("/")[2] not in log
    with Server(root, "--owner-link") as server:
        assert "/join/" in server.told["owner_link"]


def test_one_server_serves_a_run(tmp_path: Path) -> None:
    root = run_with_pairs(tmp_path / "run")
    with Server(root), pytest.raises(RuntimeError, match="are being served by process"):
        Server(root).start()


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with Server(run_with_pairs(tmp_path / "one")) as server:
        other = Server(run_with_pairs(tmp_path / "two"))
        other.port = server.port
        with pytest.raises(RuntimeError, match=r"cannot be listened on(.|\n)*--port"):
            other.start()


@pytest.mark.slow
def test_a_run_and_its_pages_start_and_stop_together(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, rate=Rate(pairs=6, held_out=2, double_share=0.0))
    plan = root / "plan.toml"
    plan.write_text(plan.read_text().replace('by = "personas"', 'by = "people"'))
    log = tmp_path / "said.txt"
    with log.open("w") as said, subprocess.Popen(
        [sys.executable, "-m", "backflip", "run", "--dir", str(root), "--people"], stdout=said, stderr=said,
        env=os.environ | ENV,
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: "people rate" in log.read_text())
            served = serving(root)
            assert served
            os.kill(served, signal.SIGKILL)  # it is started anew
            wait_until(lambda: serving(root) not in (None, served) and running(root) is not None)
            wait_until(lambda: log.read_text().count(" is served on ") == 2)
            asyncio.run(judge_everything(root, log))
            wait_until(lambda: "stay up until Ctrl-C" in log.read_text())
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130, log.read_text()
    assert (serving(root), running(root)) == (None, None)
    assert (root / "report.html").exists()
    assert "Traceback" not in log.read_text()


async def come_in(port: int, path: str) -> None:
    """Open a link, and go."""
    browser = Browser(port)
    await browser.join(path)
    browser.close()


async def judge_everything(root: Path, log: Path) -> None:
    """Come in by the newest link and vote until the run is finished and nothing is asked."""
    port, path = re.findall(r"http://127.0.0.1:(\d+)(/join/\S+)", log.read_text())[-1]
    browser = Browser(int(port))
    await browser.join(path)
    judged, until = 0, time.monotonic() + 120
    while time.monotonic() < until:
        pairs = (await browser.get("/api/pairs?count=1"))["pairs"]
        if not pairs and "stay up until Ctrl-C" in log.read_text():
            break
        for pair in pairs:
            ballot = {"key": f"key-number-{judged}", "pair": pair["pair"], "choice": "left", "latency_s": 1}
            status, _, body = await browser.ask("POST", "/api/votes", ballot)
            assert status == 201, body
            judged += 1
        await asyncio.sleep(0.05)
    with open_store(root / DATABASE) as store:
        assert len(store.votes()) == judged
        assert store.metrics(round=1, name="people/win_rate") != []
    assert judged >= 6
    browser.close()
