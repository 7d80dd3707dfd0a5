"""A run whose pairs wait for people, its app in this process, and people who have come in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from person import Person
from voters import run_with_pairs

from backflip.web.app import create_app
from backflip.web.settings import Settings


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
