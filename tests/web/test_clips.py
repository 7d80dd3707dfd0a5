"""Clips are found by a sample's id and by nothing else."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from backflip.web import clips
from backflip.web.security import who

SAMPLE = "r1/rate/policy-r1/train-01/0"


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """A server of clips alone, in which everybody is let in; the run's folder holds a secret beside them."""
    (tmp_path / "plan.toml").write_text("secret")
    app = FastAPI()
    app.include_router(clips.router)
    app.state.run = SimpleNamespace(root=tmp_path)
    app.dependency_overrides[who] = lambda: None
    return TestClient(app)


def save(root: Path, kind: str, content: bytes) -> None:
    file = clips.clip_path(root, SAMPLE, kind)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)


@pytest.mark.parametrize("kind", clips.KINDS)
def test_a_clip_comes_with_its_own_type_whole_or_in_part(client: TestClient, tmp_path: Path, kind: str):
    assert clips.clip_type(tmp_path, SAMPLE) is None
    save(tmp_path, kind, b"0123456789")
    whole = client.get(f"/api/clips/{SAMPLE}")
    part = client.get(f"/api/clips/{SAMPLE}", headers={"Range": "bytes=2-4"})

    assert clips.clip_type(tmp_path, SAMPLE) == kind
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, b"0123456789", kind)
    assert (part.status_code, part.content) == (206, b"234")


@pytest.mark.parametrize(
    "path", ["plan.toml", "../plan.toml", "..%2Fplan.toml", "..%2F..%2Fetc%2Fpasswd", "%00", "a" * 5000, "clips"]
)
def test_no_path_leads_to_another_file(client: TestClient, path: str):
    answer = client.get(f"/api/clips/{path}")

    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_a_clip_lies_below_clips_whatever_the_id_is(tmp_path: Path):
    for id in ("../../x", "/etc/passwd", "a\x00b", "\ud800", "x" * 10_000):
        assert clips.clip_path(tmp_path, id, "video/webm").parent == tmp_path / "clips"
