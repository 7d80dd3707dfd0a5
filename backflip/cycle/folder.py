"""A run's folder: what lies where in it, who works on it, and where its store is."""

import itertools
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from backflip.core.disk import disk_told
from backflip.core.errors import BusyError, ConfigError, DataError
from backflip.cycle.artefacts import write_text
from backflip.cycle.plan import Plan, plan_toml, read_plan
from backflip.store import Store, open_store

PLAN, LOCK, OWNER = "plan.toml", "run.lock", "run.pid"
WEB_LOCK, WEB_OWNER = "web.lock", "web.pid"
"""Held by the process that serves the run's pages."""
DATABASE = "run.db"
"""The store of a run whose plan names no other."""
PUBLISHED = ("adapter", "policy", "reward")
"""What the last round leaves below `models/`."""
REFERENCE = "reference"
"""Version of the run's untouched model: what KL and wins are counted from."""
BASE = "base"
"""Version of the model that stage 0 began with, where there is a stage 0."""
LOOKS = "look/"
"""How the versions of answers begin that were drawn for people to judge amid a climb."""
SFT_FOLDER = Path("models") / "sft"
"""Where stage 0 leaves its model in a run's folder."""
NAME = "run.id"
"""The run's name in a database elsewhere, so that no two runs write into the same one."""
RunPath = str | os.PathLike[str]
"""A run's folder, however it is given: a text, a `Path` or a `Run`."""


def start_run(root: Path, plan: Plan) -> None:
    """Make the folder of a new run.

    Raises: ConfigError when it cannot be made, or already holds a run with another plan.
    """
    file = root / PLAN
    text = plan_toml(plan)
    try:
        if not file.exists():
            write_text(file, text)
            return
    except OSError as e:
        raise ConfigError(f"{root} cannot be a run's folder: {e.strerror}.\nChoose another with --dir.") from None
    if read_plan(file) != plan:
        raise ConfigError(
            f"{root} already holds a run with another plan.\n"
            f"To change that run, edit {file} and carry it on with: backflip run --dir {root}\n"
            "To start a run of its own, choose another folder with --dir."
        )


@contextmanager
def only_process(root: Path) -> Iterator[None]:
    """Hold the run's lock; the system lets it go when the process ends, however it ends.

    Raises: BusyError naming the process that holds it; BackflipError when the folder cannot be written.
    """
    busy = (
        f"{root} is being run by process {{who}}.\n"
        "A run takes one process at a time, so that nothing is done twice.\n"
        "Wait for it, stop it, or start another run with --dir."
    )
    with _held(root, LOCK, OWNER, busy):
        yield


@contextmanager
def only_server(root: Path) -> Iterator[None]:
    """Hold the lock of the process that serves the run's pages; else as `only_process`."""
    busy = (
        f"The pages of {root} are being served by process {{who}}.\n"
        "One server knows which pair is whose; two would ask people the same.\n"
        "Use that one, or stop it first."
    )
    with _held(root, WEB_LOCK, WEB_OWNER, busy):
        yield


@contextmanager
def _held(root: Path, lock_name: str, owner_name: str, busy: str) -> Iterator[None]:
    lock, owner = FileLock(root / lock_name), root / owner_name
    try:
        with disk_told(root / lock_name, "Make the folder writable or free some space, or copy the run elsewhere."):
            root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text().strip() if owner.exists() else "unknown"
        raise BusyError(busy.format(who=who)) from None
    try:
        with disk_told(owner):
            owner.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def has_begun(root: Path, plan: Plan) -> bool:
    """Whether the run in `root` has a store to look into. Raises: DataError when it had one that is gone."""
    there = (root / (NAME if plan.database else DATABASE)).exists()
    made = (p for pattern in ("rounds/*/*", "imports/*") for p in root.glob(pattern) if p.suffix != ".part")
    if not there and not plan.database and any(made):
        raise DataError(
            f"{root / DATABASE} is missing, and the run in {root} has begun.\n"
            "It was deleted, or left behind when the folder was copied; the votes and figures lie in it.\n"
            "Put it back from another copy of the run, or start a new run with --dir."
        )
    return there


def run_store(root: Path, plan: Plan) -> Store:
    """The store of the run in `root`, made if it is not there yet.

    Raises: ConfigError when the plan's database cannot be used or holds another run; DataError when the run's own is
    gone; BusyError.
    """
    has_begun(root, plan)  # a second store beside the files of a first would mix two runs
    if not plan.database:
        return open_store(root / DATABASE)
    store = open_store(plan.database)
    mark = root / NAME
    if not mark.exists():
        name = secrets.token_hex(8)
        write_text(mark, name)
    name = mark.read_text(encoding="utf-8")
    if store.note("run") is None:
        with store.begin() as tx:
            tx.set_note("run", name)
    if store.note("run") != name:
        store.close()
        raise ConfigError(
            f"The database of {root} holds another run already.\n"
            "A database serves one run, so that no run reads another's votes.\n"
            "Name an empty one in the plan's `database`, or leave it out to keep everything in the folder."
        )
    return store


def alarm_path(root: Path, number: int) -> Path:
    """Where the alarm of a round, if it rang, lies."""
    return root / "rounds" / f"r{number}" / "alarm.json"


def sft_checkpoints(root: Path) -> Path:
    """Where stage 0 keeps its way while it trains."""
    return root / "models" / "sft-checkpoints"


def find_run(wanted: RunPath | None) -> Path:
    """The run folder that is meant; None means the newest below runs/. Raises: ConfigError when there is none."""
    if wanted is None:
        return newest_run()
    if not (Path(wanted) / PLAN).is_file():
        raise ConfigError(
            f"{os.fspath(wanted)} holds no run: it has no {PLAN}.\n"
            "Give a run's folder, or none to mean the newest below runs/."
        )
    return Path(wanted)


def newest_run(root: Path = Path("runs")) -> Path:
    """The run folder below `root` that was worked on last. Raises: ConfigError when there is none."""
    found = sorted((p.parent for p in root.glob(f"*/{PLAN}")), key=last_worked_on)
    if not found:
        raise ConfigError(
            f"There is no run below {root.resolve()}.\nStart one with: backflip demo, or backflip run plan.toml"
        )
    return found[-1]


def last_worked_on(root: Path) -> float:
    """When a process last took the run in `root` up, or its plan was written; in seconds since the epoch."""
    return max(p.stat().st_mtime for p in (root / PLAN, root / OWNER) if p.exists())


def new_folder(name: str, root: Path = Path("runs")) -> Path:
    """A free folder name below `root`: by time, numbered from 2 when the same second has one already."""
    first = root / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([first], (first.with_name(f"{first.name}-{count}") for count in itertools.count(2)))
    return next(folder for folder in names if not folder.exists())
