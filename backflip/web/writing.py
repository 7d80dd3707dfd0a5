"""The API of the ranking and the demonstration page."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from backflip.core.records import TALK, Demonstration, Pair, Prompt, Vote
from backflip.core.rng import seed_of
from backflip.cycle.folder import SFT_FOLDER
from backflip.cycle.people import learned_keys
from backflip.raters.rankings import choices
from backflip.web.answers import Told
from backflip.web.security import Session, sender, visitor
from backflip.web.served import Served, turns
from backflip.web.serving import ids_of
from backflip.web.votes import Id, Key, Latency, nothing_to_do, put, served

router = APIRouter(prefix="/api", default_response_class=Told)


class Order(BaseModel):
    """Answers from best to worst; those that stand together are equally good."""

    model_config = ConfigDict(extra="forbid")
    key: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{8,56}$")]
    ranking: Id
    order: Annotated[list[Annotated[list[Id], Field(min_length=1, max_length=64)]], Field(min_length=1, max_length=64)]
    latency_s: Latency
    guidelines: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class Written(BaseModel):
    """The answer that one would have wanted."""

    model_config = ConfigDict(extra="forbid")
    key: Key
    prompt: Id
    text: Annotated[str, Field(min_length=1, max_length=20_000, pattern=r"\S")]


@router.get("/rankings")
async def rankings(
    request: Request,
    session: Annotated[Session, Depends(visitor)],
    count: Annotated[int, Query(ge=1, le=8)] = 2,
    after: Annotated[str, Query(max_length=8000)] = "",
) -> Told:
    """The next rankings: answers to one prompt, to be put in order."""
    run = served(request)
    desk = await run.fresh()
    found = desk.next_rankings(session.rater_id, count, set(after.split(",")) - {""})
    texts = await run.told([p for pairs in found for p in pairs])
    told = [
        {
            "ranking": pairs[0].ranking,
            "prompt": texts.prompts[pairs[0].prompt_id],
            "answers": [texts.samples[i] for i in _screen(run, pairs, session)],
        }
        for pairs in found
    ]
    return Told({"rankings": told, "waiting": "" if told or after else nothing_to_do(run)})


@router.post("/rankings", status_code=201)
async def rank(given: Order, request: Request, session: Annotated[Session, Depends(sender)]) -> Told:
    """Store an order as the votes on its pairs, once they are on the disk."""
    run = served(request)
    pairs = (await run.fresh()).rankings.get(given.ranking)
    if pairs is None:
        raise HTTPException(404, "There is no such ranking.")
    try:
        said = choices(pairs, given.order)
    except ValueError:
        raise HTTPException(422, "An order holds every answer of its ranking exactly once.") from None
    place = {sample: n for n, sample in enumerate(_screen(run, pairs, session))}
    votes = [
        Vote(
            key=f"{given.key}-{n}",
            pair_id=p.id,
            rater_id=session.rater_id,
            choice=said[p.id],
            shown=_side(place, p),
            latency_s=given.latency_s,
            at=time.time(),
            guidelines=given.guidelines,
        )
        for n, p in enumerate(sorted(pairs, key=lambda p: p.id))
    ]
    return await put(run, votes, given.key)


def _screen(run: Served, pairs: list[Pair], session: Session) -> list[str]:
    """The answers of a ranking in the order in which this rater sees them, by lot."""
    asked = sorted(set(ids_of(pairs)))
    return sorted(asked, key=lambda i: seed_of(run.plan.seed, "shown", pairs[0].ranking, session.rater_id, i))


def _side(place: dict[str, int], pair: Pair) -> Literal["ab", "ba"]:
    return "ab" if place[pair.sample_a] < place[pair.sample_b] else "ba"


@router.get("/demonstration")
def demonstration(
    request: Request,
    session: Annotated[Session, Depends(visitor)],
    after: Annotated[str, Query(max_length=400)] = "",
) -> Told:
    """A prompt that one may answer oneself; `after` is one that one would rather not."""
    run = served(request)
    done = {d.prompt_id for d in run.store.people.demonstrations() if d.rater_id == session.rater_id}
    own = own_prompts(run)
    lot = {p.id: seed_of(run.plan.seed, "demonstration", session.rater_id, p.id) for p in own}
    left = {p.id: p for p in own if p.id not in done}
    if not left:
        return Told({"prompt": None, "messages": [], "use": _use(run)})
    since = lot.get(after, -1)
    chosen = min(left, key=lambda i: (lot[i] <= since, lot[i]))
    return Told({"prompt": chosen, "messages": turns(left[chosen]), "use": _use(run)})


def _use(run: Served) -> str:
    """What is done with a written answer, in one or two sentences."""
    config = run.plan.sft
    if not config.planned or learned_keys(run.store) is not None or (run.root / SFT_FOLDER).exists():
        return (
            "What you write is kept for the next run to learn from, and the owner exports it. This run does not learn "
            "from it: its untouched model, with which everything is compared, stays as it is."
        )
    there = len(run.store.people.demonstrations())
    count = f": {there} of {config.written} answers are there" if there < config.written else ""
    return f"Before its first round, the model learns from what you write{count}."


@router.post("/demonstrations", status_code=201)
def demonstrate(given: Written, request: Request, session: Annotated[Session, Depends(sender)]) -> Told:
    """Store the answer that one would have wanted."""
    run = served(request)
    if given.prompt not in {p.id for p in own_prompts(run)}:
        raise HTTPException(404, "There is no such prompt.")
    written = Demonstration(
        key=given.key, prompt_id=given.prompt, rater_id=session.rater_id, text=given.text, at=time.time()
    )
    return Told({"key": given.key}, 201 if run.store.people.add_demonstration(written) else 200)


def own_prompts(run: Served) -> list[Prompt]:
    """The run's own prompts for training: not those of talks, nor of imported answers."""
    return [p for p in run.store.prompts("train") if not p.id.startswith((TALK, "import-"))]
