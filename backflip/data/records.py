"""What a row of a data set says, once it has been understood."""

from dataclasses import dataclass
from typing import Literal

from backflip.core.errors import DataError
from backflip.core.records import Split

Form = Literal["preferences", "thumbs", "demonstrations", "prompts"]
"""What the rows of a data set are."""
Messages = tuple[tuple[str, str], ...]
"""A conversation: (role, content) of each turn; roles are system, user and assistant."""
RaterKind = Literal["person", "persona", "judge"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt alone."""

    where: str
    """File and line or row, for messages."""
    prompt: Messages
    """Ends with what the user says."""
    split: Split | None = None
    """None: whoever takes it in decides."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One rater's judgement of two answers to a prompt."""

    where: str
    prompt: Messages
    chosen: str
    rejected: str
    rater: str = ""
    """Empty when the data do not say who judged."""
    rater_kind: RaterKind | None = None
    tie: bool = False
    """True: neither was better, and which is called chosen means nothing."""
    strength: int | None = None
    """1 to 3."""
    strength_ignored: bool = False
    """The source says how sure the rater was, on another scale."""
    split: Split | None = None
    shown_first: Literal["chosen", "rejected"] | None = None
    chosen_ended: bool = True
    """False when the answer was cut off."""
    rejected_ended: bool = True
    pair: str = ""
    """What the source calls the pair; equal answers under two names are two pairs."""
    ranking: str = ""
    """The ranking the judgement is part of; empty for a pair alone."""
    reason: str = ""
    at: float | None = None
    """Seconds since the epoch (UTC)."""
    latency_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Thumb:
    """One answer and whether it was liked."""

    where: str
    prompt: Messages
    answer: str
    up: bool
    rater: str = ""
    rater_kind: RaterKind | None = None
    split: Split | None = None


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt and how it ought to be answered."""

    where: str
    prompt: Messages
    answer: str
    split: Split | None = None


Record = Request | Preference | Thumb | Demonstration


def fault(where: str, fact: str, cause: str) -> DataError:
    """The error for one row: what is wrong, why that cannot be used, what to do."""
    return DataError(f"{where}: {fact}.\n{cause}\nCorrect the row, or leave such rows out with --skip-bad.")
