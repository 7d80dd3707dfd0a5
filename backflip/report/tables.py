"""The page's tables: rows of finished words and positions, ready to print."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from backflip.report.data import Attribute, Estimate, RaterRow, ReportData, Step, Timing
from backflip.report.words import NONE, duration, interval, number, percent


@dataclass(frozen=True, kw_only=True)
class Table:
    """Heads and rows of text; the first column names the row."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Whisker:
    """One attribute's gain as a dot on a line; positions in percent of the drawing's width."""

    name: str
    before: str
    after: str
    gain: str
    span: str
    share: str
    weight: str
    dot: float
    low: float
    high: float
    risen: bool


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Gains of all attributes on one common scale, largest first."""

    zero: float
    whiskers: tuple[Whisker, ...]
    weighted: bool


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One step's time: its words, and its length in percent of the longest."""

    name: str
    words: str
    width: float


def forest(attributes: Sequence[Attribute]) -> Forest | None:
    """The gains as dots with whiskers; None when no gain was measured."""
    known = [(a, a.gain) for a in attributes if a.gain is not None]
    if not known:
        return None
    ends = [0.0, *(v for _, g in known for v in (g.value, g.low, g.high) if v is not None and math.isfinite(v))]
    low, high = min(ends), max(ends)
    width = (high - low) or 1.0

    def place(value: float | None, otherwise: float) -> float:
        at = otherwise if value is None or not math.isfinite(value) else value
        return round(3 + 94 * (at - low) / width, 2)

    return Forest(
        zero=place(0.0, 0.0),
        weighted=any(a.weight is not None for a, _ in known),
        whiskers=tuple(
            Whisker(
                name=a.name,
                before=_value(a.reference),
                after=_value(a.policy),
                gain=number(g.value, signed=True),
                span=interval(g),
                share=percent(a.share),
                weight=number(a.weight),
                dot=place(g.value, 0.0),
                low=place(g.low, g.value),
                high=place(g.high, g.value),
                risen=a.risen,
            )
            for a, g in sorted(known, key=lambda one: -one[1].value)
        ),
    )


def versions(data: ReportData) -> Table | None:
    """The numbers behind the first figure: one row per measured policy."""
    if not data.versions:
        return None
    wins = {c.round: c.win_rate for c in data.monitor}
    spread = {c.round: c.spread for c in data.monitor} | {
        0: data.monitor[-1].spread_reference if data.monitor else None
    }
    rows = [
        (
            f"after round {v.number}" if v.number else "untouched model",
            _value(v.kl, 1),
            _with_span(v.proxy),
            _with_span(v.proxy_heldout),
            _with_span(v.utility),
            _with_span(spread.get(v.number)),
            _share(wins.get(v.number)) if v.number else NONE,
        )
        for v in data.versions
    ]
    heads = (
        "policy",
        "KL, nats",
        "score (newest reward)",
        "score, held out",
        "true utility",
        "ensemble spread",
        "win rate",
    )
    return _without_empty(Table(heads=heads, rows=tuple(rows)))


def stages(data: ReportData) -> Table | None:
    """The policy and the untouched model beside every other model, each on the same prompts."""
    measured = data.headline
    if not data.others or measured is None:
        return None
    names = {
        "base": "base model",
        "zero-shot": "zero-shot “TL;DR:”",
        "reference": "after stage 0 (SFT)" if data.stage_zero else "untouched model",
    }
    others = [(names.get(o.name, o.name), _with_span(o.utility), _value(o.length, 0)) for o in data.others]
    ours = [
        (names["reference"], _with_span(measured.utility_reference), _value(measured.length_reference, 0)),
        (f"policy after round {measured.round} (RLHF)", _with_span(measured.utility), _value(measured.length, 0)),
    ]
    wins = [
        tuple(_share(e) for e in column)
        for o in data.others
        for column in [[None] * len(others) + [o.win_rate_reference, o.win_rate]]
    ]
    heads = ("model", "true utility", "tokens", *(f"wins against the {names.get(o.name, o.name)}" for o in data.others))
    rows = [(*row, *(w[i] for w in wins)) for i, row in enumerate([*others, *ours])]
    return _without_empty(Table(heads=heads, rows=tuple(rows)))


def fits(data: ReportData) -> Table | None:
    """The numbers behind the reward model's figure."""
    rows = [
        (
            f"round {f.round}",
            NONE if f.votes is None else str(f.votes),
            _share(f.heldout_accuracy),
            _share(f.agreement),
            _share(f.train_accuracy),
            _value(f.heldout_logloss),
        )
        for f in data.fits
    ]
    heads = ("fit", "votes", "right on unseen votes", "raters agree", "right on its own votes", "log loss, nats")
    return _without_empty(Table(heads=heads, rows=tuple(rows))) if rows else None


def raters(rows: Sequence[RaterRow]) -> Table | None:
    """Votes per rater."""
    if not rows:
        return None
    kinds = {"person": "person", "persona": "simulated", "judge": "language model"}
    printed = tuple(
        (
            r.name,
            kinds.get(r.kind, r.kind),
            str(r.votes),
            str(r.ties),
            str(r.skips) if any(x.skips for x in rows) else NONE,
            str(r.retracted) if any(x.retracted for x in rows) else NONE,
            percent(r.left),
            f"{percent(r.agreed / r.compared)} of {r.compared}" if r.compared else NONE,
            _share(r.reliability),
            _points(r.without),
            duration(r.latency_s),
        )
        for r in rows
    )
    heads = (
        "rater",
        "kind",
        "votes",
        "ties",
        "skipped",
        "taken back",
        "chose the left",
        "agrees with others",
        "reliability",
        "reward without, points",
        "typical time",
    )
    return _without_empty(Table(heads=heads, rows=printed))


def health(steps: Sequence[Step]) -> Table | None:
    """One row per round: what goes wrong first when a climb goes wrong, as far as the optimiser tells it."""
    rows = []
    for of_round, group in groupby(steps, key=lambda s: s.round):
        inside = list(group)

        def seen(name: str, inside: list[Step] = inside) -> list[float]:
            return [s.values[name] for s in inside if name in s.values]

        rows.append(
            (
                f"round {of_round}",
                str(len(inside)),
                _summary(seen("step/refused"), lambda v: str(len(v))),
                _summary(seen("val/ratio_first"), lambda v: number(max(v, key=_off_one), 4)),
                _summary(seen("val/sampler_ratio"), lambda v: number(max(v, key=_off_one), 4)),
                _summary(seen("policy/clipfrac_avg"), lambda v: percent(sum(v) / len(v), 1)),
                _summary(seen("policy/approxkl_avg"), lambda v: number(sum(v) / len(v), 4)),
                _summary(seen("objective/entropy"), lambda v: f"{number(v[0])} → {number(v[-1])}"),
                _summary(seen("loss/value_avg"), lambda v: f"{number(v[0], 3)} → {number(v[-1], 3)}"),
                _summary(seen("grad/norm"), lambda v: number(max(v, key=_size))),
                _summary(seen("ended/share"), lambda v: f"{percent(v[0])} → {percent(v[-1])}"),
            )
        )
    heads = (
        "round",
        "steps",
        "steps left out, not finite",
        "ratio, first minibatch (worst)",
        "ratio, trainer to sampler (worst)",
        "clipped (mean)",
        "approximate KL per update (mean)",
        "entropy, nats per token, first → last",
        "value loss, first → last",
        "gradient norm (largest)",
        "answers ended, first → last",
    )
    return _without_empty(Table(heads=heads, rows=tuple(rows))) if rows else None


STEP_COLUMNS = (
    ("KL", "objective/kl", 2),
    ("KL coef.", "objective/kl_coef", 3),
    ("score", "objective/scores", 3),
    ("true utility", "gold/utility", 3),
    ("reward − KL", "objective/rlhf_reward", 3),
    ("entropy", "objective/entropy", 2),
    ("ratio first", "val/ratio_first", 4),
    ("ratio", "val/ratio", 4),
    ("to sampler", "val/sampler_ratio", 4),
    ("clipped", "policy/clipfrac_avg", 3),
    ("approx. KL", "policy/approxkl_avg", 4),
    ("policy loss", "loss/policy_avg", 4),
    ("value loss", "loss/value_avg", 3),
    ("grad. norm", "grad/norm", 2),
    ("length", "length/mean", 1),
    ("ended", "ended/share", 2),
)


def every_step(steps: Sequence[Step]) -> Table | None:
    """All steps of the optimiser, number by number."""
    rows = tuple(
        (f"{s.round}.{s.tick}", *(number(s.values.get(name), digits) for _, name, digits in STEP_COLUMNS))
        for s in steps
    )
    return _without_empty(Table(heads=("step", *(head for head, _, _ in STEP_COLUMNS)), rows=rows)) if rows else None


def timing(rounds: Sequence[Timing]) -> list[tuple[str, str, list[Bar]]]:
    """(round, its total, one bar per step); bars share one scale."""
    longest = max((s for t in rounds for s in t.seconds.values()), default=0.0) or 1.0
    return [
        (
            f"Round {t.round}",
            duration(sum(t.seconds.values())),
            [Bar(name=n, words=duration(s), width=round(100 * s / longest, 1)) for n, s in t.seconds.items()],
        )
        for t in rounds
    ]


def _off_one(value: float) -> float:
    return abs(value - 1) if math.isfinite(value) else math.inf


def _size(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _summary(values: list[float], words: Callable[[list[float]], str]) -> str:
    return words(values) if values else NONE


def _value(estimate: Estimate | None, digits: int = 2) -> str:
    return number(estimate.value if estimate else None, digits)


def _with_span(estimate: Estimate | None, digits: int = 2) -> str:
    span = interval(estimate, digits)
    return f"{_value(estimate, digits)} ({span})" if span else _value(estimate, digits)


def _points(change: Estimate | None) -> str:
    """A change of a share, in points of a hundred."""
    if change is None:
        return NONE
    ends = "" if change.low is None or change.high is None else f" [{100 * change.low:+.0f}, {100 * change.high:+.0f}]"
    return f"{100 * change.value:+.0f}{ends}"


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    span = interval(estimate, share=True)
    return f"{percent(estimate.value)} ({span})" if span else percent(estimate.value)


def _without_empty(table: Table) -> Table:
    """The table less the columns that say nothing in any row."""
    keep = [i for i in range(len(table.heads)) if i == 0 or any(row[i] != NONE for row in table.rows)]
    return Table(
        heads=tuple(table.heads[i] for i in keep), rows=tuple(tuple(row[i] for i in keep) for row in table.rows)
    )
