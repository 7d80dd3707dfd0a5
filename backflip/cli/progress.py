"""Shows a run's progress: one live bar on a terminal, a line every few seconds elsewhere. Writes to standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # importing it would import torch, before anything can be shown
    from backflip.cycle.tools import Watcher

EVERY_S = 5.0
"""Seconds between two plain lines about the same piece of work."""
HEAD_START_S = 1.0
"""Units reported this soon were done before, by a run that was stopped: they say nothing about the pace."""


class Work:
    """One piece of work: how far it is, and how long it will still take."""

    def __init__(self, what: str, total: int, now: float) -> None:
        self.what, self.total, self.began = what, total, now
        self.done, self.early, self.note = 0, 0, ""

    def advance(self, count: int, note: str, now: float) -> None:
        """Count `count` more units."""
        self.done += count
        if now - self.began < HEAD_START_S:
            self.early = self.done
        self.note = note or self.note

    def left_s(self, now: float) -> float | None:
        """Seconds still to go at the pace so far; None while that cannot be told."""
        made = self.done - self.early
        return None if made <= 0 else max(0.0, (now - self.began) / made * (self.total - self.done))

    def times(self, now: float) -> str:
        """`1:05, about 2:10 left`."""
        left = self.left_s(now)
        words = clock(now - self.began)
        return words if left is None or self.done >= self.total else f"{words}, about {clock(left)} left"


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


@contextmanager
def watching(stream: TextIO | None = None) -> "Iterator[Watcher]":
    """A watcher that fits `stream` (standard error): live on a terminal, plain lines elsewhere."""
    console = Console(file=stream or sys.stderr, highlight=False)
    if not console.is_terminal:
        yield PlainWatcher(stream or sys.stderr)
        return
    watcher = LiveWatcher(console)
    with Live(console=console, get_renderable=watcher.draw, refresh_per_second=4, transient=True):
        yield watcher


class LiveWatcher:
    """A `Watcher` on a terminal: what is said stays, below it lives one bar."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.now = console, clock
        self.work: Work | None = None
        self.spinner = Spinner("dots")

    def begin(self, what: str, total: int) -> None:
        """See `Watcher.begin`."""
        self.work = Work(what, total, self.now())

    def advance(self, count: int = 1, note: str = "") -> None:
        """See `Watcher.advance`."""
        if self.work:
            self.work.advance(count, note, self.now())

    def say(self, line: str) -> None:
        """See `Watcher.say`."""
        self.console.print(Text(line))

    def draw(self) -> RenderableType:
        """The work as two lines: what and its note, then the bar with its times."""
        if self.work is None:
            return Columns([self.spinner, "starting"])
        work, now = self.work, self.now()
        head = Text(work.what, style="bold", no_wrap=True, overflow="ellipsis")
        if work.note:
            head.append(f"  {work.note}", style="not bold")
        row = Table.grid(padding=(0, 1))
        row.add_row(
            self.spinner,
            ProgressBar(total=max(1, work.total), completed=work.done, width=30),
            Text(f"{work.done}/{work.total}"),
            Text(work.times(now), style="dim"),
        )
        return Group(head, row)


class PlainWatcher:
    """A `Watcher` for logs, pipes and notebooks: plain lines, at most one every few seconds for a piece of work.

    >>> import sys, backflip
    >>> backflip.run_rounds("runs/mine", backflip.PlainWatcher(sys.stdout))  # doctest: +ELLIPSIS
    loading ...
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.now = stream, clock
        self.work: Work | None = None
        self.told: float | None = None

    def begin(self, what: str, total: int) -> None:
        """See `Watcher.begin`."""
        self.work, self.told = Work(what, total, self.now()), None
        self.say(f"{what} ...")

    def advance(self, count: int = 1, note: str = "") -> None:
        """See `Watcher.advance`. The first and the last news are told at once."""
        if self.work is None:
            return
        now = self.now()
        self.work.advance(count, note, now)
        finished = self.work.done >= self.work.total
        if self.told is not None and now - self.told < EVERY_S and not finished:
            return
        self.told = now
        words = [f"{self.work.what}: {self.work.done}/{self.work.total}", self.work.note, self.work.times(now)]
        self.say(", ".join(w for w in words if w))

    def say(self, line: str) -> None:
        """See `Watcher.say`."""
        print(line, file=self.stream, flush=True)
