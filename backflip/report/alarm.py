"""The alarm's panel: score and wins along the climb, against sqrt(KL), with where to stop."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from backflip.cycle.folder import alarm_path
from backflip.measure.alarm import BACK_TO, DISTANCE, JUDGED, WINS
from backflip.report.data import AlarmTold, Estimate, ReportData, Step, Unlike
from backflip.report.drawing import Figure, Key, Trace, above, layout, line, measured, span, upright
from backflip.report.palette import LIGHT
from backflip.report.tables import Table
from backflip.report.words import interval, number, percent

LOWER, UPPER = (0.0, 0.46), (0.56, 1.0)
"""Shares of the figure's height for wins and score."""
Z = 1.96


def told_alarms(root: Path, rounds: Sequence[int]) -> tuple[AlarmTold, ...]:
    """What the alarms that rang left in a run's folder; a damaged file is left out."""
    out = []
    for number_ in rounds:
        try:
            found = json.loads(alarm_path(root, number_).read_text(encoding="utf-8"))
            out.append(
                AlarmTold(round=number_, told=found["told"], samples=tuple(Unlike(**s) for s in found["samples"]))
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return tuple(out)


def wilson(wins: float, judged: float) -> Estimate:
    """A share of wins and its 95% interval. Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953)."""
    share, room = wins / judged, Z * Z / judged
    middle = (share + room / 2) / (1 + room)
    half = math.sqrt(share * (1 - share) * room + room * room / 4) / (1 + room)
    return Estimate(value=share, low=middle - half, high=middle + half)


def looks(data: ReportData) -> list[Step]:
    """The steps of the newest round with an alarm at which it looked."""
    seen = [s for s in data.steps if s.values.get(JUDGED, 0) > 0 and WINS in s.values and DISTANCE in s.values]
    return [s for s in seen if s.round == seen[-1].round]


def distance(step: Step) -> float:
    """Square root of the KL at a look, in nats."""
    return math.sqrt(max(step.values[DISTANCE], 0.0))


def stop_at(seen: Sequence[Step]) -> Step | None:
    """The look that the climb went back to; None when the alarm did not ring, or went back to the start."""
    back = next((s.values[BACK_TO] for s in seen if BACK_TO in s.values), None)
    return next((s for s in seen if s.tick == back), None)


def path(data: ReportData) -> Figure | None:
    """Above, the score of each step; below, the share of wins at each look. One axis of distance for both."""
    seen = looks(data)
    if len(seen) < 2:
        return None
    steps = [
        s for s in data.steps if s.round == seen[0].round and math.isfinite(s.values.get("objective/kl", math.nan))
    ]
    score = sorted((math.sqrt(max(s.values["objective/kl"], 0)), s.values["objective/scores"]) for s in steps)
    won = [wilson(s.values[WINS], s.values[JUDGED]) for s in seen]
    x = [distance(s) for s in seen]
    right = max([*x, *(p[0] for p in score)]) * 1.03 or 1.0
    rang = next((s for s in seen if BACK_TO in s.values), None)
    best = stop_at(seen)
    traces: list[Trace] = [
        line(
            [p[0] for p in score], [p[1] for p in score], "proxy", yaxis="y2",
            hovertemplate="score %{y:.2f}<extra></extra>",
        ),
        measured(
            x, won, "truth", name="wins", customdata=[s.tick for s in seen],
            hovertemplate="step %{customdata}: wins %{y:.0%}<br>√KL %{x:.2f}<extra></extra>",
        ),
    ]  # fmt: skip
    half = upright(0.0, dash="solid") | {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": 0.5, "y1": 0.5}
    half |= {"line": {"color": LIGHT["muted"], "width": 1.5}}
    marks, words = [half], []
    if rang is not None:
        place = 0.0 if best is None else distance(best)
        word = "stop here: the start" if best is None else f"stop here: step {best.tick}"
        ink = {"line": {"color": LIGHT["ink"], "width": 2}}
        marks += [upright(place) | ink, upright(distance(rang), dash="dash")]
        words.append(above(place, word, tone="ink", anchor="left" if place < 0.2 * right else "center"))
        if distance(rang) - place > 0.25 * right:
            words.append(above(distance(rang), "alarm", anchor="right"))
    frame = layout(
        x_title="√KL (√nats per answer)", x_range=(-0.02 * right, right), height=460, right=24, shapes=marks,
        y_range=span([0.5, *(v for e in won for v in (e.low, e.high))]),
    )  # fmt: skip
    frame["yaxis2"] = frame["yaxis"] | {"range": list(span([p[1] for p in score])), "domain": list(UPPER), "nticks": 4}
    frame["yaxis"] |= {"domain": list(LOWER), "tickformat": ".0%", "nticks": 5}
    frame["annotations"] = words
    return Figure(
        id="alarm",
        data=traces,
        layout=frame,
        unit="Above: score, in SD of the untouched model’s answers. Below: share of wins against the untouched model",
        alt="Share of wins at each look: "
        + ", ".join(f"step {s.tick} {percent(w.value)}" for s, w in zip(seen, won, strict=True)),
        key=(
            Key(label="score (reward model)", tone="proxy"),
            Key(label="wins, by gold, with interval", tone="truth", mark="diamond"),
        ),
    )  # fmt: skip


def table(data: ReportData) -> Table | None:
    """The numbers behind the figure: one row a look."""
    seen = looks(data)
    if not seen:
        return None
    best = stop_at(seen)

    def note(s: Step) -> str:
        return "alarm" if BACK_TO in s.values else "stop here" if s is best else ""

    rows = []
    for s in seen:
        won = wilson(s.values[WINS], s.values[JUDGED])
        share = f"{percent(won.value)} ({interval(won, share=True)})"
        score = number(s.values.get("objective/scores"))
        rows.append(
            (f"{s.round}.{s.tick}", number(s.values[DISTANCE], 1), score, share, number(s.values[JUDGED], 0), note(s))
        )
    return Table(heads=("step", "KL, nats", "score", "wins", "judged", ""), rows=tuple(rows))
