"""The panel: score, gold and people against the distance from the start, best of n beside them, and where to stop."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from backflip.measure.alarm import BACK_TO, JUDGED, WINS
from backflip.report.alarm import distance, looks, wilson
from backflip.report.data import Estimate, ReportData, Step, Version
from backflip.report.drawing import (
    EndLabel,
    Figure,
    Key,
    Trace,
    above,
    dots,
    end_labels,
    layout,
    line,
    measured,
    plot_height,
    span,
    upright,
)  # fmt: skip
from backflip.report.palette import LIGHT
from backflip.report.stop import wide
from backflip.report.words import number, percent
from backflip.stats.overopt import Course, course

BELOW, ABOVE = (0.0, 0.27), (0.35, 1.0)
"""Shares of the figure's height for wins and gains, where there are wins."""
LEAST = 5
"""Steps of a round from which its course is drawn."""
WHERE = "<br>√KL %{x:.2f}: %{customdata[1]:.1f} nats<extra>%{customdata[2]}</extra>"
SYMBOLS = {"proxy": "diamond", "truth": "square", "after": "circle"}
NAMES = {"proxy": "score", "truth": "true utility"}
Point = tuple[float, Estimate, Version]


def draw(data: ReportData) -> Figure | None:
    """The whole picture; None before two versions or five steps are measured."""
    sd = data.baseline.sd if data.baseline else None
    gains = {"proxy": _gain(data.versions, "proxy", 1.0), "truth": _gain(data.versions, "utility", sd)}
    if not any(len(points) > 1 for points in gains.values()) and not _course(data, "proxy"):
        return None
    won = _wins(data)
    best = _best_of_n(data)
    upper = [*_steps(data), *_paths(data, gains), *best]
    traces = [*upper, *won]
    for trace in upper:
        trace["yaxis"] = "y2"
    right = _edge(traces, data)
    reached = [0.0, *(v for t in upper for v in _reach(t))]
    limits = span(reached)
    frame = layout(
        x_title="√KL (√nats per answer)",
        x_range=(-0.02 * right, right), y_range=(0.0, 1.0), height=520 if won else 440, right=80,
        shapes=_shapes(data, bool(won)),
    )  # fmt: skip
    domain = ABOVE if won else (0.0, 1.0)
    frame["yaxis2"] = frame["yaxis"] | {"range": list(limits), "domain": list(domain), "nticks": 6}
    if won:
        frame["yaxis"] |= {"domain": list(BELOW), "tickformat": ".0%", "nticks": 4}
        frame["yaxis"]["range"] = list(span([0.5, *(v for t in won for v in _reach(t))]))
    else:
        frame["yaxis"] |= {"visible": False}
    height = plot_height(frame) * (domain[1] - domain[0])
    labels = [label | {"yref": "y2"} for label in end_labels(_ends(data, gains), limits, height)]
    frame["annotations"] = [*_words(data, right), *labels, *([_wins_word(won[-1])] if won else [])]
    return Figure(
        id="panel", data=traces, layout=frame, alt=_alt(data, gains), key=_key(data, traces, gains, right),
        unit="Gain over the untouched model, in standard deviations of its answers"
        + ("; below, share of comparisons won against it" if won else ""),
    )  # fmt: skip


def _root(kl: float) -> float:
    return math.sqrt(max(kl, 0.0))


def _gain(versions: Sequence[Version], what: str, sd: float | None) -> list[Point]:
    """(sqrt(KL), gain over version 0 in units of `sd`, the version); the untouched model itself has no interval."""
    known = [(v, e, v.kl) for v in versions if (e := getattr(v, what)) is not None and v.kl is not None]
    known = [(v, e, kl) for v, e, kl in known if math.isfinite(e.value) and math.isfinite(kl.value)]
    if not known or known[0][0].number != 0 or not sd:
        return []
    zero = known[0][1].value
    out = [(0.0, Estimate(value=0.0), known[0][0])]
    for v, e, kl in known[1:]:
        low, high = (None if b is None else (b - zero) / sd for b in (e.low, e.high))
        out.append((_root(kl.value), Estimate(value=(e.value - zero) / sd, low=low, high=high), v))
    return out


def _of_steps(data: ReportData, tone: str, number_: int) -> list[tuple[Step, float, float]]:
    """(step, sqrt(KL), gain) of a round's steps: its own score, or the true utility of its answers."""
    base = data.baseline
    if tone == "truth" and (base is None or base.train_mean is None):
        return []
    zero, sd = (base.train_mean or 0.0, base.sd) if tone == "truth" and base else (0.0, 1.0)
    name = "gold/utility" if tone == "truth" else "objective/scores"
    out = []
    for s in data.steps:
        kl, value = s.values.get("objective/kl", math.nan), s.values.get(name, math.nan)
        if s.round == number_ and math.isfinite(kl) and math.isfinite(value):
            out.append((s, _root(kl), (value - zero) / sd))
    return out


def _course(data: ReportData, tone: str) -> Course | None:
    """The course of the newest round's climb; None with too few steps, or all at much the same distance."""
    found = _of_steps(data, tone, data.steps[-1].round) if data.steps else []
    if len(found) < LEAST or not wide([d for _, d, _ in found]):
        return None
    return _smooth(tuple(d for _, d, _ in found), tuple(y for *_, y in found))


@cache
def _smooth(d: tuple[float, ...], value: tuple[float, ...]) -> Course:
    return course(d, value, seed=0)


def _steps(data: ReportData) -> list[Trace]:
    """Single steps as dots, and the newest round's course with its band."""
    out: list[Trace] = []
    for number_ in sorted({s.round for s in data.steps}):
        newest = number_ == data.steps[-1].round
        for tone in ("proxy", "truth"):
            found = _of_steps(data, tone, number_)
            if not found or (tone == "proxy" and not newest):  # an earlier round's score has another scale
                continue
            told = [[f"r{s.round}-s{s.tick}", d * d, f"round {s.round}, step {s.tick}"] for s, d, _ in found]
            hover = f"{NAMES[tone]} %{{y:+.2f}} SD" + WHERE
            dot = dots([d for _, d, _ in found], [y for *_, y in found], tone, customdata=told, hovertemplate=hover)
            dot["marker"] |= {"symbol": SYMBOLS[tone], "size": 6} | ({} if newest else {"opacity": 0.2})
            out.append(dot)
            way = _course(data, tone) if newest else None
            if way is not None:
                x, band = way.d.tolist(), LIGHT[f"{tone}-band"]
                out += [
                    line(x, way.low.tolist(), tone, width=0, hoverinfo="skip"),
                    line(x, way.high.tolist(), tone, width=0, hoverinfo="skip", fill="tonexty", fillcolor=band),
                    line(x, way.middle.tolist(), tone, width=3, hoverinfo="skip", name=f"{tone} course"),
                ]
    return out


def _paths(data: ReportData, gains: dict[str, list[Point]]) -> list[Trace]:
    """What was measured after each round, joined in the order of the rounds where there are several."""
    out: list[Trace] = []
    for tone, points in gains.items():
        if len(points) < 2:
            continue
        x = [p[0] for p in points]
        if len(points) > 2 or _course(data, tone) is None:
            thin = {"width": 1 if _course(data, tone) else 2, "dash": "dot" if _course(data, tone) else "solid"}
            out.append(line(x, [p[1].value for p in points], tone, style=thin, hoverinfo="skip"))
        told = [[f"r{v.number}", x * x, f"after round {v.number}" if v.number else "untouched"] for x, _, v in points]
        hover = f"{NAMES[tone]} %{{y:+.2f}} SD" + WHERE
        trace = measured(x, [p[1] for p in points], tone, name=NAMES[tone], customdata=told, hovertemplate=hover)
        trace["marker"] |= {"symbol": SYMBOLS[tone], "size": 10}
        out.append(trace)
    return out


def _best_of_n(data: ReportData) -> list[Trace]:
    """Best of n as dashes: what the untouched model would reach without learning anything."""
    if data.best_of is None:
        return []
    points = data.best_of.points
    out = []
    for tone, found in (
        ("proxy", [(p, p.proxy) for p in points]),
        ("truth", [(p, p.gold) for p in points if p.gold is not None]),
    ):
        if not found:
            continue
        x = [0.0, *(_root(p.kl) for p, _ in found)]
        told = [["", 0.0, "best of 1"], *(["", p.kl, f"best of {p.n}"] for p, _ in found)]
        spans = ["", *(f" ({number(e.low)} to {number(e.high)} over prompts)" for _, e in found)]
        told = [[*t, s] for t, s in zip(told, spans, strict=True)]
        out.append(
            line(
                x, [0.0, *(e.value for _, e in found)], tone, style={"dash": "dash", "width": 2},
                name=f"best of n, {tone}", customdata=told,
                hovertemplate=f"{NAMES[tone]} %{{y:+.2f}} SD%{{customdata[3]}}" + WHERE,
            )
        )  # fmt: skip
    return out


def _wins(data: ReportData) -> list[Trace]:
    """Shares of wins: by gold at the alarm's looks, by raters after each round."""
    out = []
    if seen := looks(data):
        told = [[f"r{s.round}-s{s.tick}", distance(s) ** 2, f"round {s.round}, step {s.tick}"] for s in seen]
        won = [wilson(s.values[WINS], s.values[JUDGED]) for s in seen]
        hover = "gold: wins %{y:.0%}" + WHERE
        out.append(
            measured([distance(s) for s in seen], won, "truth", name="wins", customdata=told, hovertemplate=hover)
        )
        out[-1]["marker"] |= {"symbol": SYMBOLS["truth"]}
    kl = {v.number: v.kl.value for v in data.versions if v.kl is not None and math.isfinite(v.kl.value)}
    rated = [p for p in data.people if p.round in kl]
    if rated:
        told = [[f"r{p.round}", kl[p.round], f"after round {p.round}"] for p in rated]
        x, points = [_root(kl[p.round]) for p in rated], [p.win_rate for p in rated]
        hover = "raters: wins %{y:.0%}" + WHERE
        out.append(measured(x, points, "after", name="raters", customdata=told, hovertemplate=hover))
        out[-1]["marker"] |= {"symbol": SYMBOLS["after"]}
    return out


def _wins_word(trace: Trace) -> dict[str, Any]:
    """What the lower part counts, at its right end."""
    label = EndLabel(x=1, y=trace["y"][-1], text=f"wins<br>{percent(trace['y'][-1])}", tone="ink")
    return end_labels([label], (0.0, 1.0), 1.0)[0]


def _reach(trace: Trace) -> list[float]:
    """The values a trace takes, with the ends of its intervals."""
    y = [v for v in trace["y"] if v is not None]
    bars = trace.get("error_y")
    if bars is None:
        return y
    ends = zip(y, bars["array"], bars["arrayminus"], strict=True)
    return [*y, *(e for v, up, down in ends for e in (v + up, v - down))]


def _edge(traces: Sequence[Trace], data: ReportData) -> float:
    """The right end of the axis of distances."""
    stop = data.stop.at.value if data.stop and data.stop.at else 0.0
    return 1.03 * max([_root(stop), *(x for t in traces for x in t["x"] if x is not None)]) or 1.0


def _shapes(data: ReportData, wins: bool) -> list[dict[str, Any]]:
    """The rules: no gain, even wins, the KL budget, the alarm, where to stop and its interval."""
    level = upright(0.0, dash="solid") | {"xref": "paper", "x0": 0, "x1": 1, "y0": 0.0, "y1": 0.0, "yref": "y2"}
    out = [level]
    if wins:
        even = level | {"y0": 0.5, "y1": 0.5, "yref": "y", "line": {"color": LIGHT["muted"], "width": 1.5}}
        out.append(even)
    if data.kl_target is not None:
        out.append(upright(_root(data.kl_target)) | {"line": {"color": LIGHT["muted"], "width": 1, "dash": "dot"}})
    rang = _rang(data)
    if rang is not None:
        out.append(upright(rang) | {"line": {"color": LIGHT["muted"], "width": 2, "dash": "dash"}})
    if data.stop and (at := data.stop.at):
        if at.low is not None and at.high is not None:
            out.append(
                {"type": "rect", "layer": "below", "xref": "x", "yref": "paper", "x0": _root(at.low), "y0": 0, "y1": 1,
                 "x1": _root(at.high), "fillcolor": LIGHT["before-band"], "line": {"width": 0}}
            )  # fmt: skip
        out.append(upright(_root(at.value)) | {"line": {"color": LIGHT["ink"], "width": 3}, "layer": "above"})
    return out


def _rang(data: ReportData) -> float | None:
    return next((distance(s) for s in looks(data) if BACK_TO in s.values), None)


def _words(data: ReportData, right: float) -> list[dict[str, Any]]:
    """The words at the rules; those of lesser rules give way."""
    out: list[dict[str, Any]] = []
    taken: list[float] = []
    places = [(data.stop.at.value if data.stop and data.stop.at else None, "<b>Stop here</b>", "ink", 14)]
    rang = _rang(data)
    places.append((None if rang is None else rang**2, "alarm rang", "muted", 11))
    budget = data.kl_target
    places.append((budget, f"KL budget {number(budget, 0 if budget and budget >= 1 else 2)}", "muted", 11))
    for kl, text, tone, size in places:
        x = None if kl is None else _root(kl)
        if x is None or x > right or any(abs(x - other) < 0.13 * right for other in taken):
            continue
        taken.append(x)
        anchor = "left" if x < 0.1 * right else "right" if x > 0.92 * right else "center"
        word = above(x, text, tone=tone, anchor=anchor)
        out.append(word | {"font": word["font"] | {"size": size}})
    return out


def _ends(data: ReportData, gains: dict[str, list[Point]]) -> list[EndLabel]:
    short = {"proxy": "score", "truth": "true<br>utility"}
    out = []
    for tone, points in gains.items():
        way = _course(data, tone)
        end = float(way.middle[-1]) if way is not None else points[-1][1].value if len(points) > 1 else None
        if end is not None:
            out.append(EndLabel(x=1, y=end, text=f"{short[tone]}<br>{number(end, signed=True)}", tone=tone))
    return out


def _key(data: ReportData, traces: Sequence[Trace], gains: dict[str, list[Point]], right: float) -> tuple[Key, ...]:
    names = {t.get("name") for t in traces}
    out = [Key(label="score (reward model)", tone="proxy", mark="diamond")]
    if len(gains["truth"]) > 1 or "truth course" in names:
        out.append(Key(label="true utility (gold)", tone="truth", mark="square"))
    if "wins" in names:
        out.append(Key(label="wins by gold", tone="truth", mark="square"))
    if "raters" in names:
        out.append(Key(label="wins by raters’ votes", tone="after", mark="circle"))
    if data.best_of is not None:
        out.append(Key(label="best of n, no learning", tone="before", mark="dash"))
    if (budget := data.kl_target) is not None:
        beyond = ", beyond the figure" if _root(budget) > right else ""
        out.append(Key(label=f"fixed KL budget, {budget:g} nats{beyond}", tone="before", mark="dotted"))
    if any("course" in str(name) for name in names):
        out.append(Key(label=f"course of round {data.steps[-1].round}’s steps", tone="before", mark="line"))
    return tuple(out)


def _alt(data: ReportData, gains: dict[str, list[Point]]) -> str:
    said = [data.stop.said] if data.stop else []
    said += [f"{NAMES[t]} ends at {number(p[-1][1].value, signed=True)}" for t, p in gains.items() if len(p) > 1]
    said += [f"step {s.tick} wins {percent(s.values[WINS] / s.values[JUDGED])}" for s in looks(data)]
    return "; ".join(said)
