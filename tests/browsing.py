"""A run that is served, and people's browsers on it: what the tests of the pages share."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from playwright.sync_api import BrowserContext, Page
from tiny_run import all_prompts, new_run

from backflip.core.records import Pair, Prompt, Sample
from backflip.cycle.folder import DATABASE
from backflip.cycle.plan import Rate
from backflip.raters.personas import Crowd
from backflip.store import Store, open_store

PATIENCE_S = 60
AUDIT = (Path(__file__).parent / "browser" / "audit.js").read_text(encoding="utf-8")
"""A script that lists what a page gets wrong for those who listen, use only keys, or see little contrast."""


def rated_run(root: Path, model: Path, count: int = 16, texts: Sequence[str] = (), **changes: Any) -> Path:
    """A run whose first round has drawn two answers to each of `count` prompts and waits for people.

    `texts` are the first answers in order; the others say which they are. Nothing of it was computed.
    """
    new_run(root, model, **{"raters": Crowd(by="people"), "rate": Rate(double_share=0, repeat_share=0)} | changes)
    prompts = [Prompt(id=f"train-{n:02d}", split="train", text=f"Request {n}: we love tea") for n in range(count)]
    samples: list[Sample] = []
    pairs: list[Pair] = []
    for n, prompt in enumerate(prompts):
        told = [texts[i] if i < len(texts) else f"answer {i % 2} to request {n}" for i in (2 * n, 2 * n + 1)]
        a, b = (sample_of(prompt.id, i, text) for i, text in enumerate(told))
        samples += [a, b]
        pairs.append(pair_of(f"r1/{n:02d}", a, b))
    with open_store(root / DATABASE) as store, store.begin() as tx:
        tx.add_prompts([*prompts, *(p for p in all_prompts() if p.split != "train")])
        tx.start_round(1, "reference", time.time())
        tx.add_samples(samples)
        tx.add_pairs(pairs)
    return root


def sample_of(prompt_id: str, index: int, text: str) -> Sample:
    """One answer of round 1, as the cycle would store it."""
    return Sample(
        id=f"r1/rate/reference/{prompt_id}/{index}", round=1, purpose="rate", prompt_id=prompt_id, policy="reference",
        index=index, text=text, ended=True, length=4, artefact="rounds/r1/none.safetensors", row=0,
    )  # fmt: skip


def pair_of(id: str, a: Sample, b: Sample, ranking: str = "") -> Pair:
    """An open pair of round 1."""
    return Pair(
        id=id, round=1, stream="fit", prompt_id=a.prompt_id, sample_a=a.id, sample_b=b.id, policy="reference",
        ranking=ranking,
    )  # fmt: skip


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class Served:
    """A run's server in a process of its own; it can be killed and started again on the same port."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = root / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "backflip", "rate", str(self.root), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"NO_COLOR": "1"})
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                urllib.request.urlopen(f"{self.url}/rate", timeout=5)
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"the server did not answer\n{self.log.read_text()}")

    def kill(self) -> None:
        """SIGKILL: the server gets no chance to tidy up."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)

    def owner_link(self) -> str:
        """The link the server printed for its owner."""
        links = re.findall(r"https?://\S+/join/\S+", self.log.read_text())
        assert links, self.log.read_text()
        return str(links[-1])

    def store(self) -> Store:
        """The run's store, opened beside the server."""
        return open_store(self.root / DATABASE)


def join(context: BrowserContext, link: str, path: str = "") -> Page:
    """Follow an invitation, and open another page of the run if one is named."""
    page = context.new_page()
    page.goto(link)
    if path:
        page.goto(path)
    return page


def invite(owner: BrowserContext, served: Served, name: str, role: str = "rater") -> str:
    """An invitation made by the owner, through the API."""
    csrf = owner.request.get(f"{served.url}/api/me").json()["csrf"]
    made = owner.request.post(
        f"{served.url}/api/owner/invites", data={"name": name, "role": role}, headers={"X-CSRF-Token": csrf}
    )
    assert made.ok, made.text()
    link: str = made.json()["link"]
    return link if link.startswith("http") else f"{served.url}{link}"


def wait_until(told: str, true: Any, patience_s: float = PATIENCE_S) -> None:
    """Wait until `true()` is."""
    until = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < until, f"waited {patience_s:g} s: {told}"
        time.sleep(0.05)
