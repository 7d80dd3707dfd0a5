"""The API of the progress page: where the run is, its curves, who votes, and the answers behind a point."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from backflip.core.records import Metric, Sample, Vote
from backflip.cycle.folder import REFERENCE
from backflip.cycle.overview import STEPS, running
from backflip.cycle.people import learned_keys, round_named, waiting, waits_since
from backflip.cycle.shown import load_shown
from backflip.cycle.wins import metrics_now
from backflip.web.answers import Told
from backflip.web.panel import live_panel
from backflip.web.security import Session, visitor
from backflip.web.served import Served, turns
from backflip.web.votes import served

router = APIRouter(prefix="/api", default_response_class=Told)
Step = Literal["monitor", "final", "optimise"]

CURVES: dict[str, dict[str, tuple[str, ...]]] = {
    **{
        split: {
            "proxy": (f"{split}/proxy",),
            "kl": (f"{split}/kl",),
            "win_rate": ("people/win_rate", f"{split}/win_rate") if split == "monitor" else (f"{split}/win_rate",),
            "gold": (f"{split}/utility",),
        }
        for split in ("monitor", "final")
    },
    "optimise": {"proxy": ("objective/scores",), "kl": ("objective/kl",), "win_rate": (), "gold": ("gold/utility",)},
}
"""What each curve shows, by the metrics it is read from; the first that is there counts."""
MOST_SAMPLES = 50


@router.get("/progress")
def progress(request: Request, session: Annotated[Session, Depends(visitor)]) -> Told:
    """Where the run is, live."""
    run = served(request)
    store = run.store
    votes = store.votes()
    names = {r.id: r.name for r in store.raters()}
    counted = Counter(v.rater_id for v in votes)
    pairs = {p.id: p.round for p in store.pairs()}
    by_round, votes_by_round = Counter(pairs.values()), Counter(pairs[v.pair_id] for v in votes)
    rounds = [
        {
            "round": n,
            "steps": [s for s in STEPS if s in done],
            "pairs": by_round[n],
            "votes": votes_by_round[n],
        }
        for n in store.rounds()
        for done in [store.steps_done(n)]
    ]
    state, waits_for = _state(run, rounds)
    metrics = metrics_now(store)
    return Told(
        {
            "rounds": rounds,
            "curves": list(_curves(metrics)),
            "panel": live_panel(run, metrics),
            "votes": [{"rater": r, "name": names.get(r, r), "count": n} for r, n in counted.most_common()],
            "agreement": _agreement(votes, run.plan.seed),
            "state": state,
            "waits_for": waits_for,
        }
    )


def _state(run: Served, rounds: list[dict[str, Any]]) -> tuple[str, str]:
    """One word for what the run does, and a sentence for what it waits for."""
    newest = rounds[-1] if rounds else None
    if newest and newest["round"] >= run.plan.rounds and "measure" in newest["steps"]:
        return "done", ""
    if running(run.root) is None:
        return "paused", f"Nobody carries the run: carry it on with backflip run --dir {run.root.name}."
    return next((("waiting", what) for what in _waits_for(run, newest)), ("running", ""))


def _waits_for(run: Served, newest: dict[str, Any] | None) -> Iterator[str]:
    """What the run waits for, in a sentence."""
    store, rate = run.store, run.plan.rate
    if newest is None:
        missing = run.plan.sft.written - len(store.people.demonstrations())
        if waits_since(store, "stage 0") is not None and learned_keys(store) is None and missing > 0:
            yield f"Stage 0 waits for {missing} more written answer{'s' * (missing != 1)}."
        return
    number, steps = newest["round"], newest["steps"]
    comparing = waits_since(store, round_named(number, reference=True)) is not None and "measure" not in steps
    if comparing or ("sample" in steps and "rate" not in steps):
        now = waiting(store, number, rate, reference=comparing)
        missing = now.wanted - now.cast
        why = ", to compare it with the untouched model" * comparing
        if missing > 0:
            yield f"Round {number} waits for {missing} more vote{'s' * (missing != 1)}{why}."


def _curves(metrics: Iterable[Metric]) -> Iterable[dict[str, Any]]:
    points: dict[tuple[int, str, int], dict[str, Metric]] = {}
    for m in metrics:
        for step, shown in CURVES.items():
            of_step = m.step == ("optimise" if step == "optimise" else "measure")
            if of_step and any(m.name in names for names in shown.values()):
                points.setdefault((m.round, step, m.tick), {})[m.name] = m
    for (round, step, tick), found in sorted(points.items()):
        point: dict[str, Any] = {"round": round, "step": step, "tick": tick}
        for what, names in CURVES[step].items():
            metric = next((found[name] for name in names if name in found), None)
            if what == "gold" and metric is None:
                continue
            point[what] = _finite(metric.value) if metric else None
            point[f"{what}_low"] = _finite(metric.low) if metric else None
            point[f"{what}_high"] = _finite(metric.high) if metric else None
        yield point


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value or value in (float("inf"), float("-inf")) else value


def _agreement(votes: Iterable[Vote], seed: int) -> dict[str, Any] | None:
    """How often two raters say the same; None while fewer than two pairs have two."""
    said = [v for v in votes if v.verdict is not None]
    judged = Counter(v.pair_id for v in said)
    twice = [v for v in said if judged[v.pair_id] > 1]
    if sum(n > 1 for n in judged.values()) < 2:
        return None
    from backflip.stats.agreement import pair_agreement  # scipy takes long to import

    found = pair_agreement(
        [v.pair_id for v in twice], [v.rater_id for v in twice], [v.verdict or "" for v in twice], seed
    )
    share = found.share
    return {"value": share.value, "low": _finite(share.low), "high": _finite(share.high), "pairs": found.pairs}


@router.get("/samples")
def samples(
    request: Request,
    session: Annotated[Session, Depends(visitor)],
    round: Annotated[int, Query(ge=0, le=100_000)],
    step: Step = "monitor",
    tick: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> Told:
    """The answers behind a point of a curve: those that were measured, or the few that are kept of a climb's step."""
    run = served(request)
    found = _behind(run, round, step)[:MOST_SAMPLES]
    prompts = {p.id: p for p in run.store.prompts()}
    told = [{"sample": s.id, "policy": s.policy, "prompt": turns(prompts[s.prompt_id]), "text": s.text} for s in found]
    if step == "optimise" and (kept := load_shown(run.root, round, tick, prompts)):
        told = [
            {
                "sample": f"r{round}/step/{tick}/{s.prompt_id}",
                "policy": f"step {tick}, score {s.score:+.2f}",
                "prompt": turns(prompts[s.prompt_id]),
                "text": s.text,
            }
            for s in kept
        ]
    return Told({"samples": told})


def _behind(run: Served, round: int, step: Step) -> list[Sample]:
    if step == "optimise":  # where a step's own answers are not kept: those that the round began with
        return run.store.samples(round=round, purpose="rate")
    return run.store.samples(purpose=step, policy=f"policy-r{round}" if round else REFERENCE)
