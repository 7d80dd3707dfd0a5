"""The API of the rating page: who I am, the next pairs, votes and how they are taken back, and flags."""

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from backflip.core.errors import DataError
from backflip.core.records import TALK, Choice, Flag, Pair, Vote
from backflip.cycle.people import learned_keys
from backflip.web.answers import Told
from backflip.web.security import Session, sender, visitor
from backflip.web.served import Served, Texts
from backflip.web.serving import Asked, on_screen

router = APIRouter(prefix="/api", default_response_class=Told)

Key = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{8,64}$")]
"""A name that the client gives what it sends, such as a UUID: sent again, it is stored once."""
Id = Annotated[str, Field(min_length=1, max_length=400)]
Reason = Annotated[str, Field(max_length=2000)]
Latency = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]


class Ballot(BaseModel):
    """A vote on a pair, as the rater saw it."""

    model_config = ConfigDict(extra="forbid")
    key: Key
    pair: Id
    repeat: Literal[0, 1] = 0
    choice: Literal["left", "right", "tie", "skip", "bad"]
    strength: Annotated[int, Field(ge=1, le=3)] | None = None
    reason: Reason = ""
    latency_s: Latency
    guidelines: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class Undo(BaseModel):
    """Takes a vote back."""

    model_config = ConfigDict(extra="forbid")
    key: Key


class Harm(BaseModel):
    """Calls an answer harmful."""

    model_config = ConfigDict(extra="forbid")
    key: Key
    sample: Id
    reason: Reason = ""


@router.get("/me")
def me(session: Annotated[Session, Depends(visitor)]) -> Told:
    """Who I am, and the token that every POST must bear as X-CSRF-Token."""
    return Told({"name": session.name, "role": session.role, "rater": session.rater_id, "csrf": session.csrf})


@router.get("/pairs")
async def pairs(
    request: Request,
    session: Annotated[Session, Depends(visitor)],
    count: Annotated[int, Query(ge=1, le=16)] = 4,
    after: Annotated[str, Query(max_length=8000)] = "",
) -> Told:
    """The next pairs to judge; `after` names those already at hand. Each is kept for you for some minutes."""
    run = served(request)
    desk = await run.fresh()
    asked = desk.next_pairs(session.rater_id, count, set(after.split(",")) - {""})
    told = await run.told([a.pair for a in asked])
    done, wanted = desk.progress()
    guide = run.guidelines
    return Told(
        {
            "pairs": [_told(a, told) for a in asked],
            "progress": {"mine": desk.judged_by(session.rater_id), "done": done, "wanted": wanted},
            "guidelines": {"version": guide.version if guide else 0, "text": guide.text if guide else ""},
            "waiting": "" if asked or after else nothing_to_do(run),
        }
    )


def _told(asked: Asked, told: Texts) -> dict[str, Any]:
    left, right = on_screen(asked.pair, asked.shown)
    return {
        "pair": asked.pair.id,
        "shown": asked.shown,
        "repeat": asked.repeat,
        "prompt": told.prompts[asked.pair.prompt_id],
        "left": told.samples[left],
        "right": told.samples[right],
        "strength": True,
    }


def nothing_to_do(run: Served) -> str:
    """Why there is nothing to judge, in one sentence."""
    if "measure" in run.store.steps_done(run.plan.rounds):
        return "The run is finished and everything is judged: thank you."
    if run.plan.sft.written and not run.store.rounds() and learned_keys(run.store) is None:
        return "Nothing is to be judged yet: the model first learns from answers that people write, under Write."
    if not run.desk.pairs:
        return "Nothing is to be judged yet: the model is writing its first answers, and they come here by themselves."
    return "Everything is judged for now: new pairs come once the model has written new answers."


@router.post("/votes", status_code=201)
async def vote(ballot: Ballot, request: Request, session: Annotated[Session, Depends(sender)]) -> Told:
    """Store a vote. It is answered once it is on the disk: 201, or 200 when its key is known already."""
    run = served(request)
    pair, shown = await _judged(run, ballot, session)
    cast = Vote(
        key=ballot.key,
        pair_id=pair.id,
        rater_id=session.rater_id,
        choice=_choice(ballot.choice, shown),
        shown=shown,
        latency_s=ballot.latency_s,
        at=time.time(),
        strength=ballot.strength,
        reason=ballot.reason,
        repeat=ballot.repeat,
        guidelines=ballot.guidelines,
    )
    return await put(run, [cast], ballot.key)


async def put(run: Served, votes: list[Vote], key: str) -> Told:
    """Cast votes and wait for the disk. Raises: HTTPException 409 when they break a rule."""
    try:
        new = await asyncio.wrap_future(run.box.cast(votes))
    except DataError as e:
        raise HTTPException(409, str(e).partition("\n")[0]) from None
    if new:
        for one in votes:
            run.desk.note(one)
    return Told({"key": key}, 201 if new else 200)


async def _judged(run: Served, ballot: Ballot, session: Session) -> tuple[Pair, Literal["ab", "ba"]]:
    """The pair that a vote is about, and how it stood on the screen. Raises: HTTPException 404 or 409."""
    desk = await run.fresh()
    pair = desk.pairs.get(ballot.pair) or await asyncio.to_thread(run.store.pair, ballot.pair)
    if pair is None:
        raise HTTPException(404, "There is no such pair.")
    if pair.ranking:
        raise HTTPException(409, "This pair is part of a ranking: put the whole ranking in order.")
    if ballot.repeat and not desk.may_repeat(pair.id, session.rater_id):
        raise HTTPException(409, "This pair does not come back to you.")
    return pair, "ab" if pair.id.startswith(TALK) else desk.shown(pair.id, session.rater_id, ballot.repeat)


def _choice(said: Literal["left", "right", "tie", "skip", "bad"], shown: Literal["ab", "ba"]) -> Choice:
    if said == "left":
        return "a" if shown == "ab" else "b"
    if said == "right":
        return "b" if shown == "ab" else "a"
    return said


@router.post("/votes/{key}/retract", status_code=201)
async def retract(key: str, undo: Undo, request: Request, session: Annotated[Session, Depends(sender)]) -> Told:
    """Take a vote of one's own back; the pair may then be judged again."""
    run = served(request)
    target = await asyncio.to_thread(run.store.vote, key)
    if target is None or target.rater_id != session.rater_id or target.choice == "retract":
        raise HTTPException(404, "You have cast no such vote.")
    taken_back = Vote(
        key=undo.key,
        pair_id=target.pair_id,
        rater_id=session.rater_id,
        choice="retract",
        shown=target.shown,
        latency_s=0.0,
        at=time.time(),
        retracts=target.key,
        repeat=target.repeat,
    )
    return await put(run, [taken_back], undo.key)


@router.post("/flags", status_code=201)
def flag(harm: Harm, request: Request, session: Annotated[Session, Depends(sender)]) -> Told:
    """Call an answer harmful."""
    store = served(request).store
    try:
        store.samples_by_id([harm.sample])
    except DataError:
        raise HTTPException(404, "There is no such answer.") from None
    mark = Flag(key=harm.key, sample_id=harm.sample, rater_id=session.rater_id, reason=harm.reason, at=time.time())
    return Told({"key": harm.key}, 201 if store.people.add_flag(mark) else 200)


def served(request: Request) -> Served:
    """The run that is served."""
    run: Served = request.app.state.run
    return run
