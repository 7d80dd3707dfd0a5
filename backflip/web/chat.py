"""Talk to the newest policy: answers stream token by token; thumbs and pairs go to the store, for the next fit.

The model is loaded when it is first asked for, and again once a round has left a newer one; it answers in a thread
of its own, one question at a time. An answer is kept once it is complete: file first, rows second.
"""

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from backflip.core.errors import BackflipError, DataError
from backflip.core.records import TALK, Answer, Pair, Prompt, Sample, ThumbVote
from backflip.cycle.artefacts import samples_of, save_answers
from backflip.cycle.folder import REFERENCE
from backflip.web.answers import Told
from backflip.web.security import Session, csrf_checked

if TYPE_CHECKING:
    from backflip.cycle.talk import Policy

router = APIRouter()

MOST_WAITING = 8
"""Questions that may wait for the model."""
HALF = "\ufffd"
"""What a character looks like of which only some bytes have been drawn."""

_log = logging.getLogger(__name__)
_Event = dict[str, Any] | BaseException


class Turn(BaseModel):
    """One turn of a talk."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1, max_length=20_000)


class Talk(BaseModel):
    """The talk so far; `again` names the answer that shall get a second one beside it."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Turn] = Field(min_length=1, max_length=200)
    again: str | None = Field(None, max_length=400)


class Thumb(BaseModel):
    """Whether an answer is good. A second thumb on the same answer takes the first one's place."""

    model_config = ConfigDict(extra="forbid")
    key: str = Field(min_length=8, max_length=80)
    sample: str = Field(min_length=1, max_length=400)
    up: bool


@final
class Talker:
    """The newest policy of a run, in one thread."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._policy: Policy | None = None
        self._worker = ThreadPoolExecutor(1, "chat")
        self._stopped = threading.Event()
        self.waiting = 0

    def close(self) -> None:
        """Let the answer in the making go, and end the thread."""
        self._stopped.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def ask(self, prompt: Prompt, first: Sample | None, tell: Callable[[_Event], None], gone: threading.Event) -> None:
        """Answer in the thread: `tell` hears pieces of text, at last what was stored, or the error."""
        self.waiting += 1

        def over(work: Future[None]) -> None:
            self.waiting -= 1
            if not work.cancelled() and (error := work.exception()) is not None:
                tell(error)

        self._worker.submit(self._answer, prompt, first, tell, gone).add_done_callback(over)

    def _answer(
        self, prompt: Prompt, first: Sample | None, tell: Callable[[_Event], None], gone: threading.Event
    ) -> None:
        policy, round = self._newest()
        told = self._run.store.samples(purpose="chat", policy=policy.version)
        index = sum(s.prompt_id == prompt.id for s in told)
        sent = ""
        for piece in policy.stream(prompt, index):
            if self._stopped.is_set() or gone.is_set():
                return
            if isinstance(piece, Answer):
                tell({"done": True, "text": piece.text} | self._keep(prompt, piece, round, first))
            elif len(text := piece.rstrip(HALF)) > len(sent) and text.startswith(sent):
                tell({"text": text[len(sent) :]})
                sent = text

    def _newest(self) -> "tuple[Policy, int]":
        """The newest finished policy and its round; before there is one, the untouched model and 0."""
        from backflip.cycle.talk import load_policy

        made = self._run.store.models(kind="policy")
        version, round = (made[-1].id, made[-1].round) if made else (REFERENCE, 0)
        if self._policy is None or self._policy.version != version:
            self._policy = None  # let the old one go first: two may not fit into memory
            self._policy = load_policy(self._run.root, version)
        return self._policy, round

    def _keep(self, prompt: Prompt, answer: Answer, round: int, first: Sample | None) -> dict[str, Any]:
        """Store an answer, and the pair it makes with `first`; returns their ids."""
        digest = _digest([answer.policy, prompt.id, answer.index])
        artefact = f"chat/{digest}.safetensors"
        save_answers(self._run.root / artefact, [answer])
        [sample] = samples_of([answer], round=round, purpose="chat", artefact=artefact)
        pair = None
        if first is not None and first.text != sample.text:
            pair = Pair(
                id=TALK + _digest([first.id, sample.id]), round=round, stream="fit", prompt_id=prompt.id,
                sample_a=first.id, sample_b=sample.id, policy=answer.policy, raters_wanted=0,
            )  # fmt: skip
        with self._run.store.begin() as tx:
            tx.add_prompts([prompt])
            tx.add_samples([sample])
            tx.add_pairs([pair] if pair else [])
        return {"sample": sample.id, "pair": pair.id if pair else None}


def talker(request: Request) -> Talker:
    """The server's one `Talker`, made when it is first needed."""
    state = request.app.state
    if getattr(state, "talker", None) is None:
        state.talker = Talker(state.run)
    return state.talker  # type: ignore[no-any-return]


def close(app: FastAPI) -> None:
    """End the thread of the chat, if there is one."""
    if getattr(app.state, "talker", None) is not None:
        app.state.talker.close()


@router.post("/api/chat", response_class=StreamingResponse)
async def chat(talk: Talk, request: Request, session: Annotated[Session, Depends(csrf_checked)]) -> StreamingResponse:
    """Stream an answer as events: {"text": piece} ..., then {"done": true, "text", "sample", "pair"}.

    Raises: HTTPException 400 when the talk cannot be answered, 404 for an unknown `again`, 429 when too many wait.
    """
    prompt, speaker = prompt_of(talk), talker(request)
    first = await asyncio.to_thread(_first, request, talk.again, prompt)
    if speaker.waiting >= MOST_WAITING:
        raise HTTPException(
            429, "Too many people are talking to the model: try again in a moment.", {"Retry-After": "5"}
        )
    loop, heard, gone = asyncio.get_running_loop(), asyncio.Queue[_Event](), threading.Event()
    speaker.ask(prompt, first, lambda event: _hand(loop, heard, event), gone)
    opening = await heard.get()  # what cannot be answered is a plain error, not a stream
    if isinstance(opening, BaseException):
        raise _refusal(opening)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(opening, heard, gone), media_type="text/event-stream", headers=headers)


@router.post("/api/thumbs", status_code=201)
def thumb(given: Thumb, request: Request, session: Annotated[Session, Depends(csrf_checked)]) -> Told:
    """Store a thumb on an answer of the chat: 201, or 200 when its key is known already, also when it was replaced.

    Raises: HTTPException 404 for an unknown answer; DataError when the key is taken by another thumb.
    """
    store = request.app.state.run.store
    _chat_sample(store, given.sample)
    cast = partial(ThumbVote, sample_id=given.sample, rater_id=session.rater_id, up=given.up, at=time.time())
    mine = [t for t in store.thumbs() if (t.sample_id, t.rater_id) == (given.sample, session.rater_id)]
    undone = [] if store.thumb(given.key) else [cast(key=f"{given.key}-undo", retracts=t.key) for t in mine]
    with store.begin() as tx:
        new = tx.add_thumbs([*undone, cast(key=given.key)])
    return Told({"key": given.key}, 201 if new else 200)


def prompt_of(talk: Talk) -> Prompt:
    """A talk as the prompt its next answer belongs to: the same talk is the same prompt.

    Raises: HTTPException 422 when the last turn is not the user's.
    """
    *before, last = talk.messages
    if last.role != "user" or not last.content.strip():
        raise HTTPException(422, "The last turn of a talk must be the user's, and say something.")
    turns = tuple((turn.role, turn.content) for turn in before)
    digest = _digest([*turns, ("user", last.content)])
    return Prompt(id=TALK + digest, split="train", text=last.content, history=turns)


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def _first(request: Request, again: str | None, prompt: Prompt) -> Sample | None:
    """The answer that gets a second one beside it. Raises: HTTPException 404 when it is none to this talk."""
    if again is None:
        return None
    sample = _chat_sample(request.app.state.run.store, again)
    if sample.prompt_id != prompt.id:
        raise HTTPException(404, "That answer belongs to another talk.")
    return sample


def _chat_sample(store: Any, id: str) -> Sample:
    try:
        [sample] = store.samples_by_id([id]).values()
    except DataError:
        sample = None
    if sample is None or sample.purpose != "chat":
        raise HTTPException(404, "There is no such answer of the chat.")
    found: Sample = sample
    return found


def _hand(loop: asyncio.AbstractEventLoop, heard: "asyncio.Queue[_Event]", event: _Event) -> None:
    """Hand an event from the model's thread to the server's; a server that has gone hears nothing."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(heard.put_nowait, event)


def _refusal(error: BaseException) -> HTTPException:
    """An error as the reader is told it."""
    if isinstance(error, DataError):
        return HTTPException(400, "The model cannot answer this: the talk is too long for it. Begin a new one.")
    if isinstance(error, BackflipError):
        return HTTPException(503, str(error).partition("\n")[0])
    _log.error("the chat broke off", exc_info=error)
    return HTTPException(503, "The model could not answer. The server's log says why.")


async def _events(opening: _Event, heard: "asyncio.Queue[_Event]", gone: threading.Event) -> AsyncIterator[str]:
    """The events of one answer; whoever stops listening stops the model."""
    event = opening
    try:
        while True:
            if isinstance(event, BaseException):
                event = {"error": _refusal(event).detail}
            yield f"data: {json.dumps(event)}\n\n"
            if "text" not in event or "done" in event:
                return
            event = await heard.get()
    finally:
        gone.set()
