"""Trackers by name: a run's figures in TensorBoard, W&B or trackio while it goes on.

The store is the figures' home. A tracker that fails, say for want of a network, is told once and left out; the run
goes on. Metric names are those of the store, which are TRL's where TRL has one (`objective/kl`, `val/ratio`, ...).
"""

import importlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from backflip.core.errors import ConfigError
from backflip.core.records import Metric
from backflip.cycle.plan import Plan
from backflip.cycle.tools import Tracker, Untracked, Watcher
from backflip.store import Store

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""The package that each tracker needs; the extra of Backflip that brings it has the tracker's name."""
FOLDER = "trackers"
"""Where a run's folder keeps what a tracker writes to the disk."""


class Board(Protocol):
    """One tracker's own way to take figures."""

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Show figures by name at `step`, a number of optimiser steps since the run began."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


@contextmanager
def open_tracker(root: Path, plan: Plan, store: Store, watcher: Watcher) -> Iterator[Tracker]:
    """The trackers that the plan names, closed at the end of the block; one that shows nothing when it names none.

    Raises: ConfigError when a tracker's package is not installed.
    """
    if not plan.trackers:
        yield Untracked()
        return
    missing = [name for name in dict.fromkeys(plan.trackers) if find_spec(PACKAGES[name]) is None]
    if missing:
        raise ConfigError(
            f"The plan's trackers name {missing[0]}, and the package {PACKAGES[missing[0]]} is not installed.\n"
            "Trackers are extras; none comes with Backflip.\n"
            f"Install it with: pip install 'backflip[{missing[0]}]', or take it out of `trackers`."
        )
    with _quiet_threads():
        tracker = _Boards(root, plan, store, watcher)
        try:
            yield tracker
        finally:
            tracker.close()


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """A tracker's own thread that dies, say on a full disk, prints no traceback: its next write tells why."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith(tuple(PACKAGES.values())):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class _Boards:
    """Every tracker of a run."""

    def __init__(self, root: Path, plan: Plan, store: Store, watcher: Watcher) -> None:
        self._watcher = watcher
        self._ticks: dict[int, int] = defaultdict(int)
        for m in store.metrics(step="optimise"):
            self._ticks[m.round] = max(self._ticks[m.round], m.tick)
        self._boards: dict[str, Board] = {}
        for name in dict.fromkeys(plan.trackers):
            self._try(name, partial(self._open, name, root, plan))

    def log(self, metrics: Sequence[Metric]) -> None:
        """See `Tracker.log`."""
        by_step: dict[int, dict[str, float]] = defaultdict(dict)
        for m in metrics:
            if m.step == "optimise":
                self._ticks[m.round] = max(self._ticks[m.round], m.tick)
            elif m.tick:
                continue  # earlier policies scored anew: the report shows them, a time axis cannot
            by_step[self._place(m)][m.name] = m.value
        for step, figures in sorted(by_step.items()):
            for name, board in list(self._boards.items()):
                self._try(name, partial(board.write, figures, step))

    def close(self) -> None:
        """Close every board."""
        for name, board in list(self._boards.items()):
            self._try(name, board.close)

    def _open(self, name: str, root: Path, plan: Plan) -> None:
        self._boards[name] = BOARDS[name](root, plan)

    def _place(self, m: Metric) -> int:
        """Optimiser steps that the run had taken when the figure was measured."""
        before = sum(ticks for number, ticks in self._ticks.items() if number < m.round)
        if m.step == "optimise":
            return before + m.tick
        return before + (self._ticks[m.round] if m.step == "measure" else 0)

    def _try(self, name: str, act: Callable[[], Any]) -> None:
        """Do it; a tracker that fails is told of once and asked no more."""
        try:
            act()
        except Exception as e:  # noqa: BLE001 (whatever three other projects may raise)
            self._boards.pop(name, None)
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            self._watcher.say(f"{name} failed and is left out: {reason}. The figures are kept in the run all the same.")


class _TensorBoard:
    def __init__(self, root: Path, plan: Plan) -> None:
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(root / FOLDER))

    def write(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """W&B. Its own environment variables hold: WANDB_MODE=offline keeps everything on this machine."""

    def __init__(self, root: Path, plan: Plan) -> None:
        (root / FOLDER).mkdir(exist_ok=True)
        name = root.resolve().name
        self._run = importlib.import_module("wandb").init(
            project="backflip", name=name, id=f"{name}-{plan.seed}", resume="allow", dir=str(root / FOLDER),
            config=asdict(plan) | {"database": ""},
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log({**figures, "step": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """trackio: a database on this machine; `trackio show` opens it."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self._package = importlib.import_module("trackio")
        name = f"{root.resolve().name}-{plan.seed}"
        self._package.init(project="backflip", name=name, config=asdict(plan) | {"database": ""}, resume="allow")

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._package.log(dict(figures), step=step)

    def close(self) -> None:
        self._package.finish()


BOARDS: dict[str, Callable[[Path, Plan], Board]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
}
