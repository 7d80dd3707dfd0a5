"""The API of the owner's page: who rates and how, invitations, guidelines, exports, and forgetting somebody."""

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from backflip.core.errors import BusyError
from backflip.core.records import Vote
from backflip.cycle.export import demonstration_rows, vote_rows, write_table
from backflip.cycle.forget import forget as forget_in
from backflip.web.answers import Told
from backflip.web.invites import new_invite
from backflip.web.security import Session
from backflip.web.security import owner as owner_alone
from backflip.web.votes import served

router = APIRouter(prefix="/api/owner", default_response_class=Told)
Owner = Annotated[Session, Depends(owner_alone)]
_SHOWN = 16
"""Digits of an invitation's hash that name it on the page: enough to tell them apart, not to use one."""


class NewInvite(BaseModel):
    """Whom to let in."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=80, pattern=r"\S")]
    role: Literal["rater", "owner"] = "rater"


class NewGuidelines(BaseModel):
    """What raters shall look at."""

    model_config = ConfigDict(extra="forbid")
    text: Annotated[str, Field(max_length=20_000)]


class Nothing(BaseModel):
    """A request that says all in its address."""

    model_config = ConfigDict(extra="forbid")


@router.get("/raters")
def raters(request: Request, session: Owner) -> Told:
    """Everybody who was let in, how they vote, and the invitations that nobody has used."""
    store = served(request).store
    shut_out: dict[str, bool] = {}
    roles: dict[str, str] = {}
    for login in store.people.logins():
        roles[login.rater_id] = login.role
        shut_out[login.rater_id] = shut_out.get(login.rater_id, True) and login.revoked_at is not None
    votes = store.votes()
    agreed = _agreement(votes)
    mine: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        mine[vote.rater_id].append(vote)
    rows = [
        {"rater": r.id, "name": r.name, "role": roles.get(r.id, "rater"), "revoked": shut_out.get(r.id, False)}
        | _figures(mine[r.id], agreed.get(r.id, []))
        for r in store.raters()
        if r.kind == "person"
    ]
    open_still = [i for i in store.people.invites() if i.used_at is None and i.revoked_at is None]
    told = [
        {"invite": i.token_hash[:_SHOWN], "name": i.name, "role": i.role, "at": i.at, "used_at": i.used_at}
        for i in open_still
    ]
    return Told({"raters": rows, "invites": told})


def _figures(votes: list[Vote], agreed: list[float]) -> dict[str, Any]:
    """How one rater votes."""
    decided = [v for v in votes if v.choice in ("a", "b")]
    return {
        "votes": len(votes),
        "agreement": fmean(agreed) if agreed else None,
        "agreement_pairs": len(agreed),
        "median_s": median(v.latency_s for v in votes) if votes else None,
        "left_share": fmean(v.choice == v.shown[0] for v in decided) if decided else None,
        "last_at": max(v.at for v in votes) if votes else None,
    }


def _agreement(votes: list[Vote]) -> dict[str, list[float]]:
    """By rater, for every pair that others judged too: the share of them who said the same."""
    by_pair: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.verdict is not None:
            by_pair[vote.pair_id].append(vote)
    out: dict[str, list[float]] = defaultdict(list)
    for cast in by_pair.values():
        for one in cast if len(cast) > 1 else ():
            out[one.rater_id].append(fmean(one.verdict == v.verdict for v in cast if v is not one))
    return out


@router.post("/invites", status_code=201)
def invite(given: NewInvite, request: Request, session: Owner) -> Told:
    """Make a link that lets one person in, once. It is told here and nowhere else."""
    path = new_invite(served(request).store, given.role, given.name.strip())
    port = (request.scope.get("server") or (None, None))[1]
    return Told({"link": request.app.state.settings.link(path, port)}, 201)


@router.post("/invites/{invite}/revoke")
def revoke_invite(invite: str, request: Request, session: Owner, body: Nothing | None = None) -> Told:
    """Make a link void that nobody has used."""
    store = served(request).store
    found = [i.token_hash for i in store.people.invites() if i.token_hash[:_SHOWN] == invite]
    if not found or not store.people.revoke_invite(found[0], time.time()):
        raise HTTPException(404, "There is no such link that could still be used.")
    return Told({"invite": invite})


@router.post("/raters/{rater}/revoke")
def revoke(rater: str, request: Request, session: Owner, body: Nothing | None = None) -> Told:
    """Shut somebody out at once; their votes stay."""
    _not_oneself(rater, session)
    if not served(request).store.people.revoke_rater(rater, time.time()):
        raise HTTPException(404, "There is nobody of that name who could come in.")
    return Told({"rater": rater})


@router.post("/raters/{rater}/forget")
def forget(rater: str, request: Request, session: Owner, body: Nothing | None = None) -> Told:
    """Delete somebody's name and votes for good. Raises: HTTPException 409 while the run is trained."""
    _not_oneself(rater, session)
    run = served(request)
    if rater not in {r.id for r in run.store.raters() if r.kind == "person"}:
        raise HTTPException(404, "There is no such rater.")
    run.store.people.revoke_rater(rater, time.time())
    try:
        gone = forget_in(run.root, rater)
    except BusyError as e:
        raise HTTPException(
            409, f"Shut out, but not forgotten yet: {str(e).partition(chr(10))[0]} Stop the run, then try again."
        ) from None
    run.begin_anew()
    return Told(
        {
            "rater": rater, "votes": gone.votes, "demonstrations": gone.demonstrations, "imitated": gone.imitated,
            "refit": list(gone.refit), "measured": list(gone.measured),
            "files": [str(f.relative_to(run.root)) for f in gone.files],
        }
    )  # fmt: skip


def _not_oneself(rater: str, session: Session) -> None:
    if rater == session.rater_id:
        raise HTTPException(409, "You cannot shut yourself out: use the command line.")


@router.get("/guidelines")
def guidelines(request: Request, session: Owner) -> Told:
    """Every version of the guidelines, the newest first."""
    versions = served(request).store.people.guidelines()[::-1]
    return Told({"versions": [{"version": g.version, "text": g.text, "at": g.at} for g in versions]})


@router.post("/guidelines", status_code=201)
def write_guidelines(given: NewGuidelines, request: Request, session: Owner) -> Told:
    """Store a new version of the guidelines; every later vote knows it."""
    run = served(request)
    run.guidelines = run.store.people.add_guidelines(given.text)
    return Told({"version": run.guidelines.version}, 201)


@router.get("/export", response_class=Response)
def export(
    request: Request,
    session: Owner,
    form: Literal["jsonl", "parquet"] = "jsonl",
    what: Literal["votes", "demonstrations"] = "votes",
) -> Response:
    """Every vote in force that says something, or every written answer, as a file.

    Raises: HTTPException 409 without pyarrow.
    """
    rows = vote_rows if what == "votes" else demonstration_rows
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{what}.{form}"
        write_table(file, rows(served(request).store), form)
        kind = "application/jsonl" if form == "jsonl" else "application/vnd.apache.parquet"
        headers = {"Content-Disposition": f'attachment; filename="{file.name}"'}
        return Response(file.read_bytes(), headers=headers, media_type=kind)
