"""The page's figures. Each function returns None when the run has no data for it."""

import math
from collections.abc import Sequence
from typing import Any

from backflip.report import panel
from backflip.report.data import Estimate, Lengths, ReportData, Step, Version
from backflip.report.drawing import (
    EndLabel,
    Figure,
    Key,
    above,
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
from backflip.stats.overopt import Course, course

Point = tuple[float, Estimate]


def figures(data: ReportData) -> dict[str, Figure]:
    """Every figure there is data for, by its id."""
    drawn = [
        panel.draw(data),
        attributes(data),
        steps_of(data, "together"),
        steps_of(data, "spread"),
        steps_of(data, "watched"),
        steps_of(data, "proxy"),
        steps_of(data, "truth"),
        steps_of(data, "kl"),
        steps_of(data, "length"),
        reward_accuracy(data),
        people_rate(data),
        lengths(data.lengths),
    ]
    return {figure.id: figure for figure in drawn if figure is not None}


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
    "together": ("length/score_correlation", "proxy", "Score and length together, Pearson’s r over answers", "r", 2),
    "spread": ("watch/spread", "proxy", "Ensemble spread of the score, SD between its members", "spread", 2),
    "watched": ("watch/length", "after", "Length as it is watched while climbing", "length", 2),
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
    limits = span(values, zero=panel in ("kl", "proxy", "together", "spread"))
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


DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def attributes(data: ReportData) -> Figure | None:
    """What each attribute has added to the true utility since the first step: weight times change, along the steps."""
    courses: dict[str, Course] = {}
    for name, weight in data.weights.items():
        seen = [(s.number, v) for s in data.steps if math.isfinite(v := s.values.get(f"gold/{name}", math.nan))]
        if len(seen) >= 5 and weight:
            courses[name] = course([n for n, _ in seen], [weight * v for _, v in seen], seed=0)
    if not courses:
        return None
    changes = {n: [v - c.middle[0] for v in c.middle.tolist()] for n, c in courses.items()}
    order = sorted(changes, key=lambda n: -changes[n][-1])
    whole = sum(changes[n][-1] for n in order)
    traces, labels = [], []
    for i, name in enumerate(order):
        dash, tone, end = DASHES[i % len(DASHES)], "truth" if i % 2 == 0 else "after", changes[name][-1]
        hover = f"{plain(name)} %{{y:+.2f}}<extra>step %{{x:.0f}}</extra>"
        traces.append(line(courses[name].d.tolist(), changes[name], tone, style={"dash": dash}, hovertemplate=hover))
        share = f" ({percent(end / whole)})" if whole > 0 else ""
        labels.append(EndLabel(x=1, y=end, text=f"{plain(name)} {number(end, signed=True)}{share}", tone=tone))
    limits = span([v for c in changes.values() for v in c], zero=True)
    frame = layout(
        x_title="optimiser step", x_range=(1, data.steps[-1].number), y_range=limits, right=150, height=280,
        shapes=[_level(0.0), *(upright(end + 0.5) for end in list(_round_ends(data.steps).values())[:-1])],
    )  # fmt: skip
    frame["annotations"] = end_labels(labels, limits, plot_height(frame))
    return Figure(
        id="attributes-path", data=traces, layout=frame,
        unit="What each attribute added to the true utility" + (", and its share of the net rise" if whole > 0 else ""),
        alt="; ".join(label.text for label in labels),
    )  # fmt: skip


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
    beside = {"together": "length_correlation", "spread": "spread"}
    if panel in beside:
        found = [(c.round, getattr(c, beside[panel])) for c in data.monitor if c.round in ends]
        return [(float(ends[r]), e) for r, e in found if e is not None]

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
