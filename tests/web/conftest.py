"""A run whose pairs wait for people, its app in this process, and people who have come in."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from voters import run_with_pairs

from backflip.store import Store
from backflip.web.app import create_app
from backflip.web.invites import new_invite
from backflip.web.settings import Settings

HERE = "http://127.0.0.1:8000"


class Person:
    """Somebody who was let in, at their browser."""

    def __init__(self, app: FastAPI, role: str, name: str) -> None:
        self.client = TestClient(app, base_url=HERE, follow_redirects=False)
        self.store: Store = app.state.run.store
        self.link = new_invite(self.store, role, name)  # type: ignore[arg-type]
        self.joined = self.client.get(self.link)
        self.me = self.get("/api/me").json()
        self.id = self.me["rater"]
        self.client.headers["X-CSRF-Token"] = self.me["csrf"]
        self._keys = (f"{name.lower()}-key-{n:05}" for n in itertools.count())

    def get(self, path: str) -> Any:
        return self.client.get(path)

    def post(self, path: str, **content: Any) -> Any:
        return self.client.post(path, json=content)

    def pairs(self, count: int = 4, after: str = "") -> list[dict[str, Any]]:
        return list(self.get(f"/api/pairs?count={count}&after={after}").json()["pairs"])

    def vote(self, pair: dict[str, Any] | str, choice: str = "left", **more: Any) -> Any:
        asked = {"pair": pair} if isinstance(pair, str) else {"pair": pair["pair"], "repeat": pair["repeat"]}
        return self.post("/api/votes", **({"key": self.key(), "choice": choice, "latency_s": 1.5} | asked | more))

    def key(self) -> str:
        return next(self._keys)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return run_with_pairs(tmp_path / "run", 12, repeat_share=0.0)


@pytest.fixture
def serve() -> Iterator[Callable[..., FastAPI]]:
    """`serve(root, **settings)`: the app of a run, closed at the end."""
    apps: list[FastAPI] = []

    def start(root: Path, **settings: Any) -> FastAPI:
        apps.append(create_app(root, settings=Settings(**settings)))
        return apps[-1]

    yield start
    for app in apps:
        app.state.run.close()


@pytest.fixture
def app(root: Path, serve: Callable[..., FastAPI]) -> FastAPI:
    return serve(root)


@pytest.fixture
def let_in(app: FastAPI) -> Callable[..., Person]:
    """`let_in("Ann")`: a rater; `let_in("Olga", "owner")`: an owner."""
    return lambda name, role="rater": Person(app, role, name)


@pytest.fixture
def ann(let_in: Callable[..., Person]) -> Person:
    return let_in("Ann")


@pytest.fixture
def bob(let_in: Callable[..., Person]) -> Person:
    return let_in("Bob")


@pytest.fixture
def olga(let_in: Callable[..., Person]) -> Person:
    return let_in("Olga", "owner")
