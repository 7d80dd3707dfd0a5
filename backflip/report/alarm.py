"""The alarm's looks: how often the policy won at each, where the climb went back to, and what an alarm said."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from backflip.cycle.folder import alarm_path
from backflip.measure.alarm import BACK_TO, DISTANCE, JUDGED, WINS
from backflip.report.data import AlarmTold, Estimate, ReportData, Step, Unlike
from backflip.report.tables import Table
from backflip.report.words import interval, number, percent
from backflip.stats import bootstrap


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
    """A share of wins and its 95% interval: see `stats.bootstrap.wilson`."""
    found = bootstrap.wilson(wins, round(judged))
    return Estimate(value=found.value, low=found.low, high=found.high)


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


def table(data: ReportData) -> Table | None:
    """The numbers behind the panel: one row a look."""
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
