"""Clips of samples: short videos, or poses that the page draws. Found by the sample's id, never by a name of a file."""

import hashlib
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import FileResponse

from backflip.web.security import Session, who

router = APIRouter()

KINDS = {"video/webm": ".webm", "video/mp4": ".mp4", "application/json": ".json"}
"""Content types a clip may have, and how its file ends. JSON holds poses: fps, edges and frames of joints."""


def clip_path(root: Path, sample_id: str, kind: str) -> Path:
    """Where the clip of a sample lies in a run's folder: a name made of the id's hash, so that no id can leave it."""
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return root / "clips" / f"{digest}{KINDS[kind]}"


def clip_type(root: Path, sample_id: str) -> str | None:
    """The content type of a sample's clip; None when it has none."""
    return next((kind for kind in KINDS if clip_path(root, sample_id, kind).is_file()), None)


@router.get("/api/clips/{sample:path}", response_class=FileResponse, responses={404: {"description": "No such clip."}})
def clip(sample: str, request: Request, session: Annotated[Session, Depends(who)]) -> FileResponse:
    """The clip of a sample; parts of it may be asked for (Range). Raises: HTTPException 404."""
    root = request.app.state.run.root
    kind = clip_type(root, sample)
    if kind is None:
        raise HTTPException(404, "There is no such clip.")
    return FileResponse(
        clip_path(root, sample, kind), media_type=kind, headers={"Cache-Control": "private, max-age=600"}
    )
