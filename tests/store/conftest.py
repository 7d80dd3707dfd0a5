"""Every store test runs on SQLite and on a real PostgreSQL server, started once for the session."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import backflip
from backflip.core.records import Pair, Prompt, Rater, Sample, Vote
from backflip.store import Store, open_store
from backflip.store.tables import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store may be made, on each dialect."""
    if request.param == "sqlite":
        return str(tmp_path / "run.db")
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without content, to be copied: quicker than migrating anew for every test."""
    path = tmp_path_factory.mktemp("store") / "template.db"
    open_store(path).close()
    return path


@pytest.fixture(scope="session")
def postgresql_template(postgresql: str) -> str:
    """URL of a store to be emptied before every test."""
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shared")
    url = f"{postgresql}&options=-csearch_path%3Dshared"
    open_store(url).close()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store lies that has its tables and no content, on each dialect."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "run.db")
        return str(tmp_path / "run.db")
    url = str(request.getfixturevalue("postgresql_template"))
    with psycopg.connect(url) as connection:
        connection.execute("SET session_replication_role = replica")  # lets a superuser past the triggers
        for table in metadata.tables:
            if table != "counters":
                connection.execute(f"DELETE FROM {table}")
        connection.execute("UPDATE counters SET value = 0")
    return url


@pytest.fixture
def store(made: str) -> Iterator[Store]:
    with open_store(made) as opened:
        yield opened


@pytest.fixture
def voted(store: Store) -> Store:
    """Round 1 with three pairs: p1 and p2 (fit, p2 wants two raters), p3 (random); raters ann and bob."""

    def sample(name: str) -> Sample:
        return Sample(
            id=name, round=1, purpose="rate", prompt_id="q", policy="v0", index=0, text="Hello.", ended=True,
            length=3, artefact="r1.safetensors", row=0,
        )  # fmt: skip

    def pair(name: str, stream: str, wanted: int) -> Pair:
        return Pair(
            id=name, round=1, stream=stream, prompt_id="q", sample_a="s1", sample_b="s2", policy="v0",
            raters_wanted=wanted,
        )  # fmt: skip

    with store.begin() as tx:
        tx.start_round(1, "v0", 1000.0)
        tx.add_prompts([Prompt(id="q", split="train", text="Say hello.")])
        tx.add_raters([Rater(id=name, kind="person", name=name.title()) for name in ("ann", "bob")])
        tx.add_samples([sample("s1"), sample("s2")])
        tx.add_pairs([pair("p1", "fit", 1), pair("p2", "fit", 2), pair("p3", "random", 1)])
    return store


@pytest.fixture
def ballot() -> Callable[..., Vote]:
    """`ballot("k1", "p1", "ann")`: a vote with key, pair and rater; the rest is filled in."""

    def make(key: str, pair: str, rater: str, choice: str = "a", retracts: str | None = None, at: float = 5.0) -> Vote:
        return Vote(
            key=key, pair_id=pair, rater_id=rater, choice=choice, shown="ab", latency_s=1.5, at=at, retracts=retracts
        )

    return make


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`spawn(code, *args)`: another Python process; its output is a pipe of lines."""
    children: list[subprocess.Popen[str]] = []

    def start(code: str, *args: str) -> subprocess.Popen[str]:
        path = str(Path(backflip.__file__).parents[1])
        child = subprocess.Popen(
            [sys.executable, "-c", code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()
