"""Where along the policy's path to stop, by the best judge that the run has: gold's looks, the true utility, people."""

import math
from collections.abc import Sequence
from functools import cache

from backflip.measure.alarm import BACK_TO, DISTANCE, JUDGED, WINS
from backflip.report.alarm import distance, looks, stop_at
from backflip.report.data import BestOf, Estimate, PeopleRate, ReportData, Step, Stop, Version
from backflip.report.words import count, number, percent
from backflip.stats.best_of_n import best_of_n_kl
from backflip.stats.bootstrap import Interval
from backflip.stats.falling import Evidence, Look, weigh
from backflip.stats.overopt import FEWEST, turn_of_path


def where_to_stop(data: ReportData) -> Stop | None:
    """The sentence beside the panel, and the place it speaks of; None before anything is measured."""
    seen, found = looks(data), _by_utility(data)
    if seen and (found is None or found.at is None or any(BACK_TO in s.values for s in seen)):
        return _by_looks(seen)  # the true utility may tell of a turn that the looks are too few for
    if found is not None:
        return found
    if len(data.people) > 1:
        return _by_people(data.people, {v.number: v for v in data.versions})
    if not data.versions:
        return None
    return Stop(said="Where to stop cannot be told: nobody here knows gold, and people have judged one round at most.")


def _by_looks(seen: Sequence[Step]) -> Stop:
    judged = sum(int(s.values[JUDGED]) for s in seen)
    rang = next((s for s in seen if BACK_TO in s.values), None)
    if rang is None:
        far = max(s.values[DISTANCE] for s in seen)
        return Stop(
            said=f"No peak in sight: {count(judged, 'judgement')} up to {number(far, 1)} nats do not show gold falling."
        )
    evidence = _weighed(tuple((distance(s), s.values[WINS], int(s.values[JUDGED])) for s in seen))
    low, high = evidence.low**2, evidence.high**2
    best = stop_at(seen)
    kl = 0.0 if best is None else max(best.values[DISTANCE], 0.0)
    where = "at the untouched model" if best is None else f"step {best.tick}, {number(kl, 1)} nats"
    return Stop(
        said=f"Stop here: {where}. Beyond, gold falls whatever the score says: the alarm rang at step {rang.tick}, "
        f"{number(rang.values[DISTANCE], 1)} nats, and the policy went back.",
        over=f"gold peaks at {number(low, 1)} to {number(high, 1)} nats: 95% of the curves that fit "
        f"{count(judged, 'judgement')}",
        at=Estimate(value=kl, low=low, high=high),
    )


@cache
def _weighed(seen: tuple[tuple[float, float, int], ...]) -> Evidence:
    return weigh([Look(*s) for s in seen])


def _by_utility(data: ReportData) -> Stop | None:
    """By the rounds, where one was clearly better than the last; else by the newest round's steps."""
    verdict = data.verdict
    if verdict is not None and verdict.kind in ("parted", "fell"):
        best, kl = verdict.best, verdict.best.kl
        where = f"round {best.number}, {number(kl.value, 1)} nats" if best.number and kl else "at the untouched model"
        rose = "the score rose on while the true utility fell" if verdict.kind == "parted" else "neither rose"
        over = "KL: 95% over monitor prompts" if kl and kl.low is not None else ""
        return Stop(said=f"Stop here: {where}. After that {rose}.", over=over, at=kl or Estimate(value=0.0))
    steps = [s for s in data.steps if s.round == data.steps[-1].round and _measured(s)]
    d = tuple(math.sqrt(max(s.values["objective/kl"], 0.0)) for s in steps)
    if len(steps) >= FEWEST and wide(d):
        return _by_steps(steps, _turn(d, tuple(s.values["gold/utility"] for s in steps)))
    if verdict is None:
        return None
    if verdict.kind == "perhaps":
        return Stop(said="No peak in sight that is sure: the true utility fell at the end, but within its interval.")
    return Stop(said=f"No peak in sight: the true utility is highest at round {verdict.best.number}, the last.")


def wide(d: Sequence[float]) -> bool:
    """Whether a climb went far enough for a course: over a third of the way out; a later round may only hover."""
    return max(d) - min(d) > max(d) / 3


def _measured(step: Step) -> bool:
    return all(math.isfinite(step.values.get(name, math.nan)) for name in ("objective/kl", "gold/utility"))


@cache
def _turn(d: tuple[float, ...], gold: tuple[float, ...]) -> Interval | None:
    return turn_of_path(d, gold, seed=0)


def _by_steps(steps: Sequence[Step], turn: Interval | None) -> Stop:
    whose = f"{len(steps)} steps of round {steps[0].round}"
    if turn is None:
        far = max(s.values["objective/kl"] for s in steps)
        return Stop(said=f"No peak in sight: the true utility has not turned in {whose}, up to {number(far, 1)} nats.")
    at = Estimate(**{k: v**2 for k, v in turn._asdict().items()})
    return Stop(
        said=f"Stop here: {number(at.value, 1)} nats. Beyond, the true utility falls.",
        over=f"{number(at.low, 1)} to {number(at.high, 1)} nats: 95% by bootstrap over {whose}",
        at=at,
    )


def _by_people(rates: Sequence[PeopleRate], versions: dict[int, Version]) -> Stop:
    last, best = rates[-1], max(rates, key=lambda p: p.win_rate.value)
    told = [percent(p.win_rate.value) for p in (best, last)]
    apart = (last.win_rate.high or 1.0) < best.win_rate.value and (best.win_rate.low or 0.0) > last.win_rate.value
    if best is last or not apart:
        return Stop(said=f"No peak in sight: raters have not clearly liked a later round less ({told[1]} at the last).")
    found = versions.get(best.round)
    at = found.kl if found else None
    return Stop(
        said=f"Stop here: round {best.round}. Raters chose that policy in {told[0]} of comparisons, now {told[1]}.",
        over="KL: 95% over monitor prompts" if at and at.low is not None else "",
        at=at,
    )


def best_of_said(found: BestOf | None) -> str:
    """What best of n says of the score, in a sentence; empty where gold is not known."""
    if found is None or not found.laws:
        return ""
    most = found.points[-1].n
    told = [law for law in found.laws if law.error and law.flat_error]
    judged = ""
    if told:
        law = min(told, key=lambda one: one.error.value if one.error else math.inf)
        assert law.error is not None
        assert law.flat_error is not None
        name = "best of n" if law.form == "best_of_n" else "RL"
        sure = law.gain is not None and law.gain.low is not None and law.gain.low > 0
        judged = (
            f" The law for {name} foretold n > {most // 4} best: off by {number(law.error.value)}, and "
            f"{number(law.flat_error.value)} for the guess that nothing changes, on prompts it had not seen"
            f"{'.' if sure else '; with so few prompts that may be chance.'}"
        )
    if found.peak is None:
        return f"Best of n: no peak in sight up to n = {most}.{judged}"
    ends = [_n_of(kl, most) for kl in (found.peak.value, found.peak.low, found.peak.high) if kl is not None]
    span = f" ({ends[1]} to {ends[2]}, 95% over prompts)" if len(ends) == 3 else ""
    return f"Best of n: gold is highest near n = {ends[0]}{span}.{judged}"


def _n_of(kl: float, most: int) -> int:
    """The smallest n whose best is as far away."""
    return next((n for n in range(1, most) if best_of_n_kl(n) >= kl), most)
