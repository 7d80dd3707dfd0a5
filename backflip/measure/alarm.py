"""The alarm's judgement of a climb: does gold fall, where was it best, and what is said of it. Opens no store."""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from backflip.core.errors import DataError
from backflip.stats.falling import Evidence, Look, weigh

GoldFunction = Callable[[str, str], float]
SHOWN = 3
"""Answers that an alarm shows."""
WINS, JUDGED, DISTANCE, EVIDENCE = "alarm/wins", "alarm/judged", "alarm/kl", "alarm/log_e"
"""A look's figures among those of its step."""
CLOSED = "alarm/closed"
"""The tick at which a look that people judge was weighed; its figures stand at the tick at which it was taken."""
BACK_TO = "alarm/back_to"
"""The tick that a climb went back to when its alarm rang; told at the tick of the look that made it ring."""


class Seen(NamedTuple):
    """A look, and the tick of the climb (steps into the round) at which it was taken."""

    tick: int
    look: Look


class Ring(NamedTuple):
    """An alarm that rang."""

    at: Seen
    best: Seen | None
    """The look to go back to; None: the policy with which the round began."""
    evidence: Evidence


def listen(seen: Sequence[Seen], rate: float) -> Ring | None:
    """The alarm after these looks; None while gold has not provably fallen."""
    if not seen:
        return None
    evidence = weigh([s.look for s in seen])
    if evidence.log_e < math.log(1 / rate):
        return None
    return Ring(seen[-1], None if evidence.best < 0 else seen[evidence.best], evidence)


def gold_function(name: str) -> GoldFunction:
    """The function that a plan names as "module:name". Raises: DataError when there is none."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise DataError(
            f'alarm.gold = "{name}" cannot be loaded: {e}.\n'
            "The module may not be importable from here, or has no such function.\n"
            "Install it or set PYTHONPATH, then start again with the same command."
        ) from e
    if not callable(found):
        raise DataError(
            f'alarm.gold = "{name}" is no function.\nThe name leads to something else in that module.\n'
            "Name a function that takes prompt and answer as texts and returns a number."
        )

    def judge(prompt: str, answer: str) -> float:
        return float(found(prompt, answer))

    return judge


def valued(name: str, judge: GoldFunction, prompt: str, answer: str) -> float:
    """What the gold function says of an answer. Raises: DataError when it raises, or gives no finite number."""
    try:
        value = judge(prompt, answer)
    except Exception as e:
        raise _faulty(f"raised {type(e).__name__} ({e})", name, answer) from e
    if not math.isfinite(value):
        raise _faulty(f"returned {value}", name, answer)
    return value


def _faulty(what: str, name: str, answer: str) -> DataError:
    return DataError(
        f'The gold function {name} {what} for the answer "{answer[:80]}".\n'
        "It may not be written for every text a model can give, such as an empty one.\n"
        "Correct it and start again: the same command carries on from the last step, and nothing is lost."
    )


def win(ours: float, theirs: float) -> float:
    """1 for a better answer, 1/2 for an equal one, 0 for a worse one."""
    return 0.5 if ours == theirs else float(ours > theirs)


def paragraph(ring: Ring, seen: Sequence[Seen], kl_target: float, after: int | None = None) -> str:
    """What happened, in one paragraph; `after` is the step at which the last judgements were there."""
    at, best, found = ring.at, ring.best, ring.evidence
    judged = int(sum(s.look.judged for s in seen))
    expected = dict(zip((s.tick for s in seen), found.expected.tolist(), strict=True))
    back = (
        f"after step {best.tick} ({best.look.d**2:.1f} nats), where it is expected to win {expected[best.tick]:.0%}"
        if best is not None
        else "with which the round began: no later one is expected to win more than half"
    )
    rival = next((s for s in seen if s.look.d**2 >= kl_target), None)
    dumb = (
        "A fixed KL budget at the leash's target would not have stopped yet."
        if rival is None
        else f"A fixed KL budget of {kl_target:g} nats would have stopped after step {rival.tick}, at "
        f"{expected[rival.tick]:.0%}."
    )
    late = f" (told after step {after}, when people had judged it)" if after is not None and after > at.tick else ""
    return (
        f"The alarm rang after step {at.tick}{late}, {at.look.d**2:.1f} nats from the untouched model: gold has "
        f"fallen, though the score need not have. {judged} judgements say that the policy now wins "
        f"{expected[at.tick]:.0%} of comparisons with the untouched model; a climb that never falls looks like this "
        f"with a chance of at most {max(0.001, min(1.0, math.exp(-found.log_e))):.1%}. Gold was best near "
        f"{found.peak**2:.1f} nats ({found.low**2:.1f} to {found.high**2:.1f}). The climb stops and goes back to the "
        f"policy {back}. {dumb}"
    )


class Exhibit(NamedTuple):
    """An answer that the reward likes and gold does not."""

    prompt: str
    answer: str
    reference: str
    score: float
    """Reward of the answer, less that of the untouched model's."""


def exhibits(said: Sequence[tuple[str, str, str]], gain: Sequence[float], wins: Sequence[float]) -> list[Exhibit]:
    """The answers that lost although the reward rose most, at most `SHOWN`; `said` is prompt, ours and theirs."""
    lost = [i for i in range(len(said)) if wins[i] < 0.5]
    return [Exhibit(*said[i], float(gain[i])) for i in sorted(lost, key=lambda i: -gain[i])[:SHOWN]]
