"""What a run's votes say about those who cast them: no model is loaded and nothing is changed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.errors import DataError
from backflip.core.records import Rater, Vote
from backflip.cycle.folder import PLAN, RunPath, find_run, has_begun, run_store
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.votes import Features, Table, known_votes, stored_features, votes_table
from backflip.rewards.fit import Fitted, emphasis, fit_votes
from backflip.stats.agreement import (
    ORDER,
    Share,
    gold_accuracy,
    krippendorff_alpha,
    self_consistency,
    share_of,
)
from backflip.stats.bootstrap import Interval, bootstrap_mean
from backflip.stats.calibration import hits
from backflip.stats.evidence import without_rater
from backflip.stats.raters import LAPSE, Pooling, RaterFit, fit_raters
from backflip.stats.reliability import posterior_draws, reliability
from backflip.store import Store

Array = NDArray[np.float64]
DRAWS = 200
"""Draws of what may be true of raters and reward, behind the intervals of reliabilities."""


@dataclass(frozen=True, kw_only=True)
class Without:
    """The reward that would have been learned without a rater, against the one learned with everybody."""

    accuracy_change: Interval | None
    """On held-out votes: below 0 the rater helps. None where fewer than two held-out prompts were judged."""
    correlation: float
    """Of the two rewards, over the untouched model's answers."""


@dataclass(frozen=True, kw_only=True)
class RaterFigures:
    """One rater. Shares are of the votes in force, with intervals."""

    id: str
    name: str
    kind: str
    votes: int
    reliability: Interval | None
    """How often a decided vote is for the better answer; 0.5 is a coin, below it the rater votes against the others."""
    ties: Share | None
    """Share of votes that call a tie."""
    first: Share | None
    """Share of decided votes for the answer shown first; half where the rater does not lean."""
    consistent: Share | None
    """How often the rater said the same of a pair judged twice; None without repeats."""
    gold: Share | None
    """How often the rater agrees with the known answers; None without any."""
    without: Without | None
    """None where too little is left without the rater."""


@dataclass(frozen=True, kw_only=True)
class Raters:
    """Everybody who voted in a run, most votes first."""

    run: str
    votes: int
    alpha: Interval | None
    """Krippendorff's alpha, ties between the two sides: 1 is full agreement, 0 chance. None with too few doubles."""
    accuracy: Interval | None
    """Of the reward learned with everybody, on held-out votes."""
    raters: tuple[RaterFigures, ...]


def judge_raters(run: RunPath, gold: str | None = None) -> Raters:
    """What the votes so far say of each rater; `gold` names one whose votes are taken as known answers.

    Raises: DataError when nobody has voted on answers that were read, all votes are ties, or `gold` has not voted;
    ConfigError for a folder without a run.
    """
    root, plan = _begun(run)
    with run_store(root, plan) as store:
        return raters_of(root, plan, store, gold)


def _begun(run: RunPath) -> tuple[Path, Plan]:
    """A run's folder and plan. Raises: DataError when it has no store yet."""
    root = find_run(run)
    plan = read_plan(root / PLAN)
    if not has_begun(root, plan):
        raise DataError(
            f"{root} has no votes yet.\nIts first round has not begun.\nStart it: backflip run --dir {root}"
        )
    return root, plan


class Learned(NamedTuple):
    """What a run's votes so far teach."""

    root: Path
    plan: Plan
    fitted: Fitted
    reference: Array
    """(R, F) the untouched model's answers, standardised."""
    held_out: Table
    """Votes that serve no fit."""


def learned_so_far(run: RunPath) -> Learned:
    """Reward and raters learned from all votes so far. Raises: as `judge_raters`."""
    root, plan = _begun(run)
    with run_store(root, plan) as store:
        return _learned(root, plan, store)


def _learned(root: Path, plan: Plan, store: Store) -> Learned:
    table = stored_features(root, store)
    fitted, reference = _fit(plan, table, _table(store, table, "fit"))
    return Learned(root, plan, fitted, reference, _table(store, table, "random").decided())


def raters_of(root: Path, plan: Plan, store: Store, gold: str | None = None) -> Raters:
    """See `judge_raters`; of an open store."""
    votes = store.votes(repeats=True)
    answers = _known_answers(store, votes, gold)
    judged = [v for v in votes if v.verdict is not None]
    _, _, fitted, reference, held_out = _learned(root, plan, store)
    trust = _reliabilities(fitted, plan.seed)
    rows = []
    for r in store.raters():
        mine = [v for v in judged if v.rater_id == r.id]
        if not mine:
            continue
        number = fitted.raters.index(r.id) if r.id in fitted.raters else None
        rows.append(
            replace(
                _counted(r, mine, answers),
                reliability=None if number is None else trust[number],
                without=None if number is None else _without(fitted, number, reference, held_out, plan.seed),
            )
        )
    own = _right(fitted, fitted.crowd, held_out)
    return Raters(
        run=str(root),
        votes=len(judged),
        alpha=_alpha(judged, plan.seed),
        accuracy=_mean(own, held_out, plan.seed),
        raters=tuple(sorted(rows, key=lambda f: (-f.votes, f.name))),
    )


def _table(store: Store, table: Features, stream: str) -> Table:
    votes = known_votes(store, table, store.votes(stream=stream))  # type: ignore[arg-type]
    there = {i for ids, _ in table.values() for i in ids}
    thumbs = [t for t in store.thumbs() if t.sample_id in there] if stream == "fit" else []
    if not votes and not thumbs and stream == "fit":
        raise DataError(
            "There are no votes to judge raters by.\n"
            "Nobody has voted yet, or the run has not come to its first fit, which reads the answers.\n"
            "Carry the run on with `backflip run`, then ask again."
        )
    return votes_table(store, table, votes, thumbs)


def _fit(plan: Plan, table: Features, seen: Table) -> tuple[Fitted, Array]:
    """Reward and raters learned from all votes so far, and the untouched model's answers, standardised."""
    features = table[1][1] if 1 in table else seen.features
    fitted = fit_votes(
        seen.features, seen.feedback, seen.prompt, features, replace(plan.fit, raters="pooled"), seed=plan.seed,
        emphasis=emphasis(features.shape[1]), thumbs=seen.thumbs,
    )  # fmt: skip
    return fitted, (features - fitted.reward.mean) / fitted.reward.scale


def _reliabilities(fitted: Fitted, seed: int) -> list[Interval]:
    """By rater's number, how often a decided vote is for the better answer, of pairs like those that were asked."""
    pairs, rows, crowd = fitted.evidence.pairs, fitted.rows, fitted.crowd
    assert pairs is not None
    apart = rows[pairs.a] - rows[pairs.b] if len(pairs.a) else rows - rows.mean(0)
    drawn = posterior_draws(rows, fitted.evidence, crowd, seed, prior=fitted.reward.prior, draws=DRAWS)
    return [Interval(*map(float, i)) for i in zip(*reliability(crowd, drawn, apart), strict=True)]


def _without(fitted: Fitted, rater: int, reference: Array, held_out: Table, seed: int) -> Without | None:
    """What would be learned without one rater; how far raters differ is taken as learned with everybody."""
    crowd = fitted.crowd
    pooling = Pooling() if crowd.has[LAPSE] else Pooling(lapse=None)
    rest = without_rater(fitted.evidence, rater)
    try:
        less = fit_raters(fitted.rows, rest, pooling, prior=fitted.reward.prior, start=crowd, spread=crowd.spread)
    except DataError:  # nothing, or nothing but ties
        return None
    one, other = (reference @ (fitted.basis @ fit.weight) for fit in (crowd, less))
    alike = float(np.corrcoef(one, other)[0, 1]) if min(one.std(), other.std()) > 0 else 0.0
    change = _right(fitted, less, held_out) - _right(fitted, crowd, held_out)
    return Without(accuracy_change=_mean(change, held_out, seed), correlation=alike)


def _right(fitted: Fitted, crowd: RaterFit, held_out: Table) -> Array:
    """(P,) whether the better-rewarded answer won each held-out vote; ties count half."""
    score = (held_out.features / fitted.reward.scale) @ (fitted.basis @ crowd.weight)
    return hits(held_out.apart(score), held_out.outcome)


def _mean(values: Array, held_out: Table, seed: int) -> Interval | None:
    unit = [held_out.prompt[f.a] for f in held_out.feedback]
    return bootstrap_mean(values, seed, unit=unit) if len(set(unit)) > 1 else None


def _counted(rater: Rater, mine: Sequence[Vote], answers: dict[str, str]) -> RaterFigures:
    """What counting the rater's votes that say something tells."""
    once = [v for v in mine if not v.repeat]
    decided = [v for v in once if v.verdict != "tie"]
    told = [v for v in once if v.pair_id in answers]
    pairs, who, said = _columns(mine)
    gold = gold_accuracy([answers[v.pair_id] for v in told], *_columns(told)[1:])
    return RaterFigures(
        id=rater.id,
        name=rater.name,
        kind=rater.kind,
        votes=len(once),
        reliability=None,
        ties=share_of(len(once) - len(decided), len(once)) if once else None,
        first=share_of(sum(v.verdict == v.shown[0] for v in decided), len(decided)) if decided else None,
        consistent=self_consistency(pairs, who, said).get(rater.id),
        gold=gold.get(rater.id),
        without=None,
    )


def _known_answers(store: Store, votes: Sequence[Vote], gold: str | None) -> dict[str, str]:
    """The known answer to each pair that has one: what the rater `gold` said of it."""
    if gold is None:
        return {}
    named = {r.id for r in store.raters() if gold in (r.id, r.name)}
    said = {v.pair_id: v.verdict for v in votes if v.rater_id in named and v.verdict is not None}
    if not said:
        raise DataError(
            f'"{gold}" has not voted, so there are no known answers.\n'
            "The rater whose votes are taken as known is named by id or by name.\n"
            f"Those who may vote: {', '.join(r.name for r in store.raters()) or 'nobody yet'}."
        )
    return said  # type: ignore[return-value]


def _alpha(judged: Sequence[Vote], seed: int) -> Interval | None:
    once = [v for v in judged if not v.repeat]
    pairs, who, said = _columns(once)
    try:
        return krippendorff_alpha(pairs, who, [ORDER[c] for c in said], "ordinal", seed)
    except ValueError:  # too few pairs that two raters judged, or always the same said
        return None


def _columns(votes: Sequence[Vote]) -> tuple[list[str], list[str], list[str]]:
    """Pair, rater and verdict of each vote."""
    return [v.pair_id for v in votes], [v.rater_id for v in votes], [v.verdict or "skip" for v in votes]
