"""A run with pairs to judge, its real server in a process of its own, and raters who vote over the network.

Shared by the tests of the server and by bench/rating_load.py. Nothing here imports torch.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import numpy as np

import backflip
from backflip.core.records import Pair, Prompt, Sample, Stream
from backflip.cycle.folder import PLAN, run_store, start_run
from backflip.cycle.plan import Plan, Rate, read_plan
from backflip.raters.personas import Crowd
from backflip.store import Store
from backflip.web.invites import new_invite

CHOICES = ["left", "right", "tie", "skip", "bad"]


def run_with_pairs(root: Path, pairs: int = 12, *, text: str = "An answer.", database: str = "", **rate: Any) -> Path:
    """The folder of a run whose first round has `pairs` pairs for people; the first tenth wants two raters."""
    start_run(root, Plan(rounds=1, rate=Rate(**rate), raters=Crowd(by="people"), database=database))
    with run_store(root, read_plan(root / PLAN)) as store:
        open_pairs(store, pairs, text=text)
    return root


def open_pairs(store: Store, pairs: int, *, text: str = "An answer.", round: int = 1, stream: Stream = "fit") -> None:
    """Open pairs of answers that say `text`, one pair a prompt."""
    names = [f"r{round}/{stream}/q{n:05}" for n in range(pairs)]
    split = "train" if stream == "fit" else "monitor"
    with store.begin() as tx:
        tx.start_round(round, "reference", 1.0)
        tx.add_prompts([Prompt(id=f"{n}/q", split=split, text=f"Request {n}") for n in names])  # type: ignore[arg-type]
        tx.add_samples(
            [
                Sample(
                    id=f"{n}/{i}", round=round, purpose="rate", prompt_id=f"{n}/q", policy="reference", index=i,
                    text=f"{text} ({i})", ended=True, length=9, artefact="none", row=i,
                )
                for n in names
                for i in (0, 1)
            ]
        )  # fmt: skip
        tx.add_pairs(
            [
                Pair(
                    id=f"{n}/0-1", round=round, stream=stream, prompt_id=f"{n}/q", sample_a=f"{n}/0", sample_b=f"{n}/1",
                    policy="reference", raters_wanted=1 + (i < pairs // 10),
                )
                for i, n in enumerate(names)
            ]
        )  # fmt: skip


def links(root: Path, count: int) -> list[str]:
    """Paths of one-time links for so many raters."""
    with run_store(root, read_plan(root / PLAN)) as store:
        return [new_invite(store, "rater", f"Rater {n}") for n in range(count)]


class Server:
    """`backflip rate` in a process of its own, which may be killed and started again on the same port."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root, self.options, self.port = root, options, 0
        self.log = root / "server.log"
        self.told: dict[str, Any] = {}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def start(self) -> None:
        """Start it and wait until it says where it is."""
        words = ["rate", str(self.root), "--json", "--port", str(self.port), *self.options]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(backflip.__file__).parents[1])}
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "backflip", *words], stdout=subprocess.PIPE, stderr=log, text=True, env=env
            )
        assert self._process.stdout is not None
        document = ""
        while not document.endswith("}\n"):
            line = self._process.stdout.readline()
            if not line:
                self.kill()
                raise RuntimeError(f"the server ended:\n{self.log.read_text()[-4000:]}")
            document += line
        self.told = json.loads(document)
        self.port = urlsplit(self.told["address"]).port or 0

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it with a signal; its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return code


class Browser:
    """One connection to the server, kept open, with its cookie."""

    def __init__(self, port: int) -> None:
        self._port, self._cookie = port, ""
        self._csrf = ""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def join(self, link: str) -> None:
        """Come in by a one-time link."""
        status, headers, _ = await self.ask("GET", link)
        assert status == 303, status
        self._cookie = headers["set-cookie"].partition(";")[0]
        self._csrf = (await self.get("/api/me"))["csrf"]

    async def get(self, path: str) -> Any:
        """A JSON document. Raises: OSError without an answer of 200."""
        status, _, body = await self.ask("GET", path)
        if status != 200:
            raise OSError(f"GET {path}: {status}")
        return json.loads(body)

    async def ask(self, method: str, path: str, content: Any = None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body. Raises: OSError when the server does not answer."""
        body = b"" if content is None else json.dumps(content).encode()
        lines = [
            f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}", f"Cookie: {self._cookie}",
            f"X-CSRF-Token: {self._csrf}", f"Content-Length: {len(body)}", "Content-Type: application/json",
        ]  # fmt: skip
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:]) if k}
            return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))
        except (OSError, EOFError, asyncio.IncompleteReadError, ValueError) as e:
            self.close()
            raise OSError(f"{method} {path}: no answer") from e

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Tally:
    """What the raters saw."""

    vote_s: list[float] = field(default_factory=list)
    pairs_s: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    """Answers that were no answer, while no kill could be the reason."""
    killing: bool = False
    """Whether the server may be away just now."""

    def failed(self, what: object) -> None:
        """Count an error, unless the server was killed."""
        if not self.killing:
            self.errors[str(what)] += 1


async def rate_until(
    stop: asyncio.Event, browser: Browser, tally: Tally, think_s: tuple[float, float], seed: list[int]
) -> None:
    """Judge pair after pair, the next ones always at hand, each vote sent until it is acknowledged."""
    chance = np.random.default_rng(seed)
    queue: list[dict[str, Any]] = []
    await asyncio.sleep(chance.uniform(0, think_s[1]))
    while not stop.is_set():
        if len(queue) <= 2:
            held = quote(",".join(p["pair"] for p in queue))
            began = time.monotonic()
            try:
                queue += (await browser.get(f"/api/pairs?count={4 - len(queue)}&after={held}"))["pairs"]
                tally.pairs_s.append(time.monotonic() - began)
            except OSError as e:
                tally.failed(e)
                await asyncio.sleep(0.2)
        if not queue:
            await asyncio.sleep(0.2)
            continue
        pair, think = queue.pop(0), chance.uniform(*think_s)
        await asyncio.sleep(think)
        ballot = {
            "key": str(uuid.UUID(bytes=chance.bytes(16))), "pair": pair["pair"], "repeat": pair["repeat"],
            "choice": CHOICES[chance.integers(5)], "latency_s": think,
        }  # fmt: skip
        await _vote(stop, browser, tally, ballot)
    browser.close()


async def _vote(stop: asyncio.Event, browser: Browser, tally: Tally, ballot: dict[str, Any]) -> None:
    """Send a vote until it is acknowledged, as the page does."""
    while True:
        began = time.monotonic()
        try:
            status, _, body = await browser.ask("POST", "/api/votes", ballot)
        except OSError as e:
            tally.failed(e)
        else:
            if status in (200, 201):
                tally.vote_s.append(time.monotonic() - began)
                tally.acknowledged.append(ballot["key"])
                return
            if status < 500:
                tally.errors[f"POST /api/votes: {status} {body[:100]!r}"] += 1
                return
            tally.failed(f"POST /api/votes: {status}")
        if stop.is_set():
            return
        await asyncio.sleep(0.2)


async def vote_together(
    server: Server, raters: int, *, think_s: tuple[float, float], seconds: float, kills: int = 0, seed: int = 0
) -> Tally:
    """Let raters vote for so long, or until the server was killed `kills` times and started again each time."""
    tally, stop = Tally(), asyncio.Event()
    browsers = [Browser(server.port) for _ in range(raters)]
    paths = links(server.root, raters)
    for at in range(0, raters, 20):
        await asyncio.gather(*(b.join(p) for b, p in zip(browsers[at : at + 20], paths[at : at + 20], strict=True)))
    tasks = [asyncio.create_task(rate_until(stop, b, tally, think_s, [seed, n])) for n, b in enumerate(browsers)]
    chance = np.random.default_rng([seed, raters, kills])
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0.2, 1.8) * seconds)
        tally.killing = True
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await asyncio.sleep(0.5)  # requests that met no server are sent again
        tally.killing = False
    await asyncio.sleep(seconds)
    stop.set()
    await asyncio.gather(*tasks)
    return tally


def lost_and_doubled(root: Path, acknowledged: list[str]) -> tuple[int, int]:
    """Acknowledged votes that the store lacks; votes that stand there more often than once."""
    with run_store(root, read_plan(root / PLAN)) as store:
        log = store.vote_log()
        keys = Counter(v.key for v in log)
        places = Counter((v.pair_id, v.rater_id, v.repeat) for v in store.votes(repeats=True))
    lost = len(set(acknowledged) - keys.keys())
    return lost, sum(n - 1 for n in keys.values()) + sum(n - 1 for n in places.values())
