"""The records every floor speaks. Frozen: a record is a fact, never a handle into the store."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "monitor", "final"]
Stream = Literal["fit", "random", "reference"]
"""What a pair's votes serve: fitting the reward; judging selection and calibration (random arm);
judging the policy against the reference. The last two are never read by a fit."""
Choice = Literal["a", "b", "tie", "skip", "bad", "retract"]
"""What a vote says: which answer is better, neither, cannot tell, both bad; or that an earlier vote is taken back."""
Verdict = Literal["a", "b", "tie"]
Purpose = Literal["rate", "monitor", "final", "chat"]

TALK = "chat/"
"""How the ids of prompts and pairs begin that were made by talking to a policy."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request, in one of three splits that never mix."""

    id: str
    split: Split
    text: str
    topic: str = ""
    form: str = ""
    """The form that was asked for, in the task's own words; empty when none was."""
    history: tuple[tuple[str, str], ...] = ()
    """What was said before `text`, as (role, content); roles are system, user and assistant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a sampler returns for one prompt.

    Shapes: tokens (T,) int64, logp (T,) float32 in nats, both of the sampled tokens, the stop token
    included when `ended`. `text` leaves the stop token out.
    """

    prompt_id: str
    index: int
    policy: str
    tokens: NDArray[np.int64]
    logp: NDArray[np.float32]
    ended: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A stored answer. Its token arrays lie in row `row` of the artefact `artefact` (path relative to the run)."""

    id: str
    round: int
    purpose: Purpose
    prompt_id: str
    policy: str
    index: int
    text: str
    ended: bool
    length: int
    """Tokens, the stop token included."""
    artefact: str
    row: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one prompt, open for judgement."""

    id: str
    round: int
    stream: Stream
    prompt_id: str
    sample_a: str
    sample_b: str
    policy: str
    """Version of the policy whose answers are judged."""
    probability: float = 1.0
    """Inclusion probability of the pair under the selection that chose it."""
    raters_wanted: int = 1
    ranking: str = ""
    """The ranking it is part of: its answers were put in order together with others; empty for a pair alone."""


@dataclass(frozen=True, kw_only=True)
class Rater:
    """Somebody who votes: a person, a simulated persona, a language model as judge."""

    id: str
    kind: Literal["person", "persona", "judge"]
    name: str


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One judgement. Append-only: an undo is a new vote with choice "retract" that names the old key."""

    key: str
    """Idempotency key: casting the same key twice stores one vote."""
    pair_id: str
    rater_id: str
    choice: Choice
    shown: Literal["ab", "ba"]
    """Order on the screen: "ba" put answer b on the left."""
    latency_s: float
    at: float
    """Seconds since the epoch (UTC)."""
    strength: int | None = None
    """1 to 3, when the rater gave one."""
    reason: str = ""
    retracts: str | None = None
    repeat: int = 0
    """0 the first time a rater judges the pair, 1 when the plan has them judge it once more."""
    guidelines: int = 0
    """Version of the guidelines the rater had at hand; 0 when there were none."""
    seq: int | None = None
    """Commit order, given by the store; what a watermark counts."""

    @property
    def verdict(self) -> Verdict | None:
        """What the vote says of the two answers against each other: both bad is a tie; None when it does not say."""
        return "tie" if self.choice == "bad" else self.choice if self.choice in ("a", "b", "tie") else None


@dataclass(frozen=True, kw_only=True)
class ThumbVote:
    """A thumb under one answer. Append-only as a `Vote`; a retraction names in `retracts` the key it takes back."""

    key: str
    sample_id: str
    rater_id: str
    up: bool
    at: float
    """Seconds since the epoch (UTC)."""
    retracts: str | None = None
    seq: int | None = None
    """Commit order, counted together with votes, so that one watermark holds for both."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Somebody calls an answer harmful."""

    key: str
    sample_id: str
    rater_id: str
    reason: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """The answer that somebody would have wanted to a prompt."""

    key: str
    prompt_id: str
    rater_id: str
    text: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Guidelines:
    """What raters are asked to look at; a new version never replaces the former one."""

    version: int
    text: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Invite:
    """A link that lets one person in, once. The link itself is never stored, only the hash of its token."""

    token_hash: str
    role: Literal["rater", "owner"]
    name: str
    at: float
    used_at: float | None = None
    rater_id: str | None = None
    """Who came in by it."""
    revoked_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Login:
    """A browser that is let in, by the hash of its cookie's token."""

    token_hash: str
    rater_id: str
    role: Literal["rater", "owner"]
    at: float
    revoked_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A saved model and where it came from."""

    id: str
    kind: Literal["base", "sft", "policy", "reward"]
    round: int
    parent: str | None
    path: str
    """Relative to the run folder; absolute for the base model."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number. `tick` counts optimiser steps within the round (0 where it does not apply)."""

    round: int
    step: str
    tick: int
    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What a fit reads of one vote: indices into the scored answers, and who said what."""

    a: int
    b: int
    choice: Literal["a", "b", "tie", "skip"]
    rater_id: str
    weight: float = 1.0
    shown: Literal[-1, 0, 1] = 0
    """1 where a stood first on the screen, -1 where b did, 0 where it is not known."""
    strength: int = 0
    """1 to 3, 0 where none was given."""


@dataclass(frozen=True, kw_only=True)
class Thumbed:
    """What a fit reads of one thumb: the index of a scored answer, and who said what."""

    item: int
    up: bool
    rater_id: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The true utility of one answer: the value and the attributes it is made of."""

    value: float
    attributes: dict[str, float] = field(default_factory=dict)
