"""The page's figures. Each function returns None when the run has no data for it."""

import math
from collections.abc import Sequence
from typing import Any

from backflip.report.data import Estimate, Lengths, ReportData, Step, Version
from backflip.report.drawing import (
    EndLabel,
    Figure,
    Key,
    above,
    dots,
    end_labels,
    layout,
    line,
    measured,
    plain,
    plot_height,
    span,
    upright,
)
from backflip.report.palette import LIGHT
from backflip.report.words import number, percent

NAMES = {"proxy": "Score", "truth": "True utility", "held": "Score, held out"}
SHORT = {"proxy": "score", "truth": "true<br>utility", "held": "held out"}

Point = tuple[float, Estimate]


def figures(data: ReportData) -> dict[str, Figure]:
    """Every figure there is data for, by its id."""
    drawn = [
        overoptimisation(data),
        steps_of(data, "proxy"),
        steps_of(data, "truth"),
        steps_of(data, "kl"),
        steps_of(data, "length"),
        reward_accuracy(data),
        people_rate(data),
        lengths(data.lengths),
    ]
    return {figure.id: figure for figure in drawn if figure is not None}


def overoptimisation(data: ReportData) -> Figure | None:
    """Proxy and true utility against sqrt(KL): gain over the untouched model, in standard deviations of its answers.

    The proxy is in that unit by construction. The true utility is divided by `data.baseline.sd`; without
    a baseline it is left out rather than drawn on another scale.
    """
    proxy = _gain([(v, v.proxy) for v in data.versions], 1.0)
    heldout = _gain([(v, v.proxy_heldout) for v in data.versions], 1.0)
    sd = data.baseline.sd if data.baseline else None
    truth = _gain([(v, v.utility) for v in data.versions], sd)
    if len(proxy) < 2:
        return None
    faint = _faint_steps(data, sd)
    traces: list[dict[str, Any]] = [dots(x, y, tone, hoverinfo="skip") for tone, (x, y) in faint.items() if x]
    series = [("proxy", "proxy", proxy), ("truth", "truth", truth), ("held", "proxy", heldout)]
    labels, values = [], [y for _, ys in faint.values() for y in ys]
    for name, tone, points in series:
        if len(points) < 2:
            continue
        x = [p[0] for p in points]
        style = {"dash": "dot", "width": 1.5} if name == "held" else {"width": 2.5}
        hover = NAMES[name] + " %{y:+.2f} SD<br>√KL %{x:.2f}<extra></extra>"
        traces.append(line(x, [p[1].value for p in points], tone, style=style, hoverinfo="skip"))
        if name != "held":
            traces.append(measured(x, [p[1] for p in points], tone, name=NAMES[name], hovertemplate=hover))
        end = points[-1][1].value
        labels.append(EndLabel(x=x[-1], y=end, text=f"{SHORT[name]}<br>{number(end, signed=True)}", tone=tone))
        values += [v for _, e in points for v in (e.value, e.low, e.high) if v is not None]
    limits = span(values, zero=True)
    right = max([p[0] for p in proxy] + [x for xs, _ in faint.values() for x in xs])
    frame = layout(
        x_title="√KL (√nats per answer)",
        x_range=(-0.03 * right, right * 1.03 or 1.0),
        y_range=limits,
        height=420,
        right=64,
        shapes=[_level(0.0), *(upright(x) for x, _ in proxy[1:])],
    )
    frame["annotations"] = [
        *(above(x, word) for x, word in _round_words(data.versions, right)),
        *end_labels(labels, limits, plot_height(frame)),
    ]
    key = [Key(label="score (reward model)", tone="proxy", mark="diamond")]
    key += [Key(label="true utility", tone="truth", mark="diamond")] if len(truth) > 1 else []
    key += [Key(label="score, held out", tone="proxy", mark="dash")] if len(heldout) > 1 else []
    key += [Key(label="single steps", tone="before", mark="dot")] if any(x for x, _ in faint.values()) else []
    return Figure(
        id="overoptimisation",
        data=traces,
        layout=frame,
        unit="Gain over the untouched model, in standard deviations of its answers",
        alt="; ".join(f"{NAMES[n]} ends at {number(p[-1][1].value, signed=True)}" for n, _, p in series if len(p) > 1),
        key=tuple(key),
    )


def _gain(points: Sequence[tuple[Version, Estimate | None]], sd: float | None) -> list[Point]:
    """(sqrt(KL), gain over version 0 in units of `sd`), for the versions that have both; the origin has no interval."""
    known = [(v, e) for v, e in points if e is not None and v.kl is not None]
    if not known or known[0][0].number != 0 or not sd:
        return []
    zero = known[0][1].value
    out = [(0.0, Estimate(value=0.0))]
    for v, e in known[1:]:
        assert v.kl is not None
        low, high = (None if b is None else (b - zero) / sd for b in (e.low, e.high))
        out.append((math.sqrt(max(v.kl.value, 0.0)), Estimate(value=(e.value - zero) / sd, low=low, high=high)))
    return out


def _faint_steps(data: ReportData, sd: float | None) -> dict[str, tuple[list[float], list[float]]]:
    """Single steps on the same axes: each round's own score, and the true utility of its rollouts."""
    out: dict[str, tuple[list[float], list[float]]] = {"proxy": ([], []), "truth": ([], [])}
    start = data.baseline.train_mean if data.baseline else None
    for step in data.steps:
        kl = step.values.get("objective/kl", math.nan)
        score, utility = (step.values.get(n, math.nan) for n in ("objective/scores", "gold/utility"))
        for tone, y in (("proxy", score), ("truth", (utility - start) / sd if sd and start is not None else math.nan)):
            if math.isfinite(kl) and math.isfinite(y):
                out[tone][0].append(math.sqrt(max(kl, 0.0)))
                out[tone][1].append(y)
    return out


def _round_words(versions: Sequence[Version], right: float) -> list[tuple[float, str]]:
    """(place on the sqrt(KL) axis, word) for each version; a word that would touch the one before is left out."""
    out: list[tuple[float, str]] = []
    for v in versions:
        if v.kl is None or not v.number:
            continue
        x = math.sqrt(max(v.kl.value, 0.0))
        if not out or abs(x - out[-1][0]) > (0.12 if len(out) == 1 else 0.06) * right:
            out.append((x, f"round {v.number}" if not out else str(v.number)))
    return [(0.0, "untouched"), *out] if out and out[0][0] > 0.25 * right else out


def _level(y: float, tone: str = "rule") -> dict[str, Any]:
    return {
        "type": "line",
        "layer": "below",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": {"color": LIGHT[tone], "width": 1},
    }


PANELS = {
    # id: metric, tone, unit, word, digits
    "proxy": ("objective/scores", "proxy", "Score, in SD of the untouched model’s answers", "score", 2),
    "truth": ("gold/utility", "truth", "True utility, mean per answer", "true<br>utility", 2),
    "kl": ("objective/kl", "after", "KL from the untouched model, nats per answer", "KL", 1),
    "length": ("length/mean", "after", "Length, tokens per answer", "length", 0),
}


def steps_of(data: ReportData, panel: str) -> Figure | None:
    """One quantity over all steps of the optimiser, with the measurement after each round where there is one."""
    name, tone, unit, word, digits = PANELS[panel]
    steps = [s for s in data.steps if math.isfinite(s.values.get(name, math.nan))]
    if not steps:
        return None
    x, y = _broken_between_rounds([(s, s.values[name]) for s in steps])
    trace = line(x, y, tone, hovertemplate="step %{x}: %{y:.3f}<extra></extra>")
    if len(steps) == 1:
        trace["mode"] = "lines+markers"
    ends = _round_ends(data.steps)
    after = _after_rounds(data, panel, ends)
    level = _comparison_level(data, panel)
    values = [*y, *(v for _, e in after for v in (e.value, e.low, e.high)), *([level[0]] if level else [])]
    limits = span(values, zero=panel in ("kl", "proxy"))
    traces = [trace]
    if after:
        hover = "after step %{x}: %{y:.3f}<extra></extra>"
        traces.append(measured([p[0] for p in after], [p[1] for p in after], tone, hovertemplate=hover))
    last = steps[-1]
    total = data.steps[-1].number
    labels = [
        EndLabel(x=last.number, y=last.values[name], text=f"{word}<br>{number(last.values[name], digits)}", tone=tone)
    ]
    shapes = [upright(end + 0.5) for end in list(ends.values())[:-1]]
    if level:
        shapes.append(_level(level[0], "before") | {"line": {"color": LIGHT["before"], "width": 1.5, "dash": "dash"}})
        labels.append(EndLabel(x=total, y=level[0], text=f"{level[1]}<br>{number(level[0], digits)}", tone="before"))
    frame = layout(
        x_title="step", x_range=(0 if not after else -0.5, total + 1), y_range=limits, right=58, shapes=shapes
    )
    if total <= 8:
        frame["xaxis"]["dtick"] = 1
    frame["annotations"] = [*_round_heads(ends), *end_labels(labels, limits, plot_height(frame))]
    key = [Key(label="steps, training prompts", tone=tone)]
    key += [Key(label=_after_word(panel), tone=tone, mark="diamond")] if after else []
    key += [Key(label=level[2], tone="before", mark="dash")] if level else []
    return Figure(
        id=f"steps-{panel}",
        data=traces,
        layout=frame,
        unit=unit,
        alt=f"{unit}: {number(steps[0].values[name])} at the first step, {number(last.values[name])} at the last",
        key=tuple(key),
    )


def _broken_between_rounds(points: Sequence[tuple[Step, float]]) -> tuple[list[float | None], list[float | None]]:
    """Each round's reward has its own scale: its steps are joined to each other only."""
    x: list[float | None] = []
    y: list[float | None] = []
    for i, (step, value) in enumerate(points):
        if i and step.round != points[i - 1][0].round:
            x.append(None)
            y.append(None)
        x.append(step.number)
        y.append(value)
    return x, y


def _round_ends(steps: Sequence[Step]) -> dict[int, int]:
    """Round -> number of its last step."""
    return {s.round: s.number for s in steps}


def _round_heads(ends: dict[int, int]) -> list[dict[str, Any]]:
    out, before = [], 0
    for number_, end in ends.items():
        out.append(above((before + end + 1) / 2, f"round {number_}" if len(ends) <= 4 else str(number_)))
        before = end
    return out


def _after_rounds(data: ReportData, panel: str, ends: dict[int, int]) -> list[Point]:
    def at(version: Version) -> Estimate | None:
        return {"proxy": version.proxy, "truth": version.utility, "kl": version.kl if version.number else None}.get(
            panel
        )

    place = {0: 0} | ends
    return [(float(place[v.number]), e) for v in data.versions if v.number in place and (e := at(v))]


def _after_word(panel: str) -> str:
    if panel == "proxy":
        return "after rounds, newest reward"
    return "after rounds, monitor prompts"


def _comparison_level(data: ReportData, panel: str) -> tuple[float, str, str] | None:
    """(value, label at the right, entry in the key) of a level to compare with."""
    if panel == "kl" and data.kl_target is not None:
        return data.kl_target, "target", "target of the leash"
    if panel == "length" and data.headline and (before := data.headline.length_reference):
        return before.value, "before", "untouched model"
    return None


def reward_accuracy(data: ReportData) -> Figure | None:
    """Held-out accuracy of each round's reward model, beside the raters' agreement with each other."""
    series = [
        ("after", "reward model, on votes it has not seen", [(f.round - 0.08, f.heldout_accuracy) for f in data.fits]),
        ("before", "raters, with each other", [(f.round + 0.08, f.agreement) for f in data.fits]),
    ]
    traces, key, values, labels = [], [], [0.5], []
    for tone, name, pairs in series:
        points = [(x, e) for x, e in pairs if e is not None]
        if not points:
            continue
        hover = "%{y:.1%}<extra>" + name + "</extra>"
        traces.append(measured([p[0] for p in points], [p[1] for p in points], tone, hovertemplate=hover))
        key.append(Key(label=name, tone=tone, mark="diamond"))
        values += [v for _, e in points for v in (e.value, e.low, e.high) if v is not None]
        word = "reward<br>model" if tone == "after" else "raters"
        end = points[-1][1].value
        labels.append(EndLabel(x=1, y=end, text=f"{word}<br>{percent(end)}", tone=tone))
    if not any(f.heldout_accuracy for f in data.fits):
        return None
    labels.append(EndLabel(x=1, y=0.5, text="chance", tone="muted"))
    limits = span(values)
    rounds = [f.round for f in data.fits]
    frame = layout(
        x_title="round",
        x_range=(min(rounds) - 0.5, max(rounds) + 0.5),
        y_range=limits,
        right=64,
        shapes=[_level(0.5, "before") | {"line": {"color": LIGHT["before"], "width": 1, "dash": "dot"}}],
    )
    frame["xaxis"] |= {"tickvals": rounds}
    frame["yaxis"] |= {"tickformat": ".0%"}
    frame["annotations"] = end_labels(labels, limits, plot_height(frame))
    return Figure(
        id="reward-accuracy",
        data=traces,
        layout=frame,
        unit="Share of votes agreed with",
        alt="Held-out accuracy by round: "
        + ", ".join(percent(f.heldout_accuracy.value if f.heldout_accuracy else None) for f in data.fits),
        key=tuple(key),
    )


def people_rate(data: ReportData) -> Figure | None:
    """How often raters preferred the policy to the untouched model, by round."""
    if not data.people:
        return None
    rounds = [p.round for p in data.people]
    points = [p.win_rate for p in data.people]
    limits = span([0.5, *(v for p in points for v in (p.value, p.low, p.high))])
    frame = layout(
        x_title="round",
        x_range=(min(rounds) - 0.5, max(rounds) + 0.5),
        y_range=limits,
        right=64,
        shapes=[_level(0.5, "before") | {"line": {"color": LIGHT["before"], "width": 1, "dash": "dot"}}],
    )
    frame["xaxis"] |= {"tickvals": rounds}
    frame["yaxis"] |= {"tickformat": ".0%"}
    labels = [
        EndLabel(x=1, y=points[-1].value, text=f"win rate<br>{percent(points[-1].value)}", tone="after"),
        EndLabel(x=1, y=0.5, text="even", tone="muted"),
    ]
    frame["annotations"] = end_labels(labels, limits, plot_height(frame))
    return Figure(
        id="people",
        data=[measured(rounds, points, "after", hovertemplate="%{y:.1%}<extra></extra>")],
        layout=frame,
        unit="Share of votes for the tuned model, against the untouched one",
        alt="Votes for the tuned model by round: " + ", ".join(percent(p.value) for p in points),
    )


def lengths(groups: Sequence[Lengths]) -> Figure | None:
    """How long the answers are, as shares of each model's answers."""
    groups = [g for g in groups if g.tokens]
    if not groups:
        return None
    longest = max(max(g.tokens) for g in groups)
    width = max(1, math.ceil(longest / 20))
    edges = list(range(0, longest + width, width))
    traces, key, top = [], [], 0.0
    for g, tone in zip(groups, ("before", "after"), strict=False):
        counts = [0] * len(edges)
        for t in g.tokens:
            counts[t // width] += 1
        shares = [c / len(g.tokens) for c in counts]
        top = max(top, *shares)
        name = "untouched model" if g.policy == "reference" else f"tuned model ({g.policy})"
        mean = sum(g.tokens) / len(g.tokens)
        hover = f"%{{x}} to %{{customdata}} tokens: %{{y:.0%}}<extra>{plain(name)}</extra>"
        traces.append(
            line([*edges, edges[-1] + width], [*shares, 0.0], tone, fill="tozeroy", fillcolor=LIGHT[f"{tone}-band"])
            | {"line": {"color": LIGHT[tone], "width": 2, "shape": "hv"}, "hovertemplate": hover}
            | {"customdata": [e + width - 1 for e in [*edges, edges[-1] + width]]}
        )
        key.append(Key(label=f"{name}, mean {number(mean, 1)}", tone=tone))
    frame = layout(x_title="tokens per answer", x_range=(0, edges[-1] + width), y_range=(0.0, top * 1.08), right=16)
    frame["yaxis"] |= {"tickformat": ".0%"}
    return Figure(
        id="lengths",
        data=traces,
        layout=frame,
        unit="Share of the model’s answers",
        alt="; ".join(k.label for k in key),
        key=tuple(key),
    )
