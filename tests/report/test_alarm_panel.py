"""The alarm's panel says where to stop, and shows the answers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backflip.report import ReportData, alarm, build_report
from backflip.report.data import AlarmTold, Step, Unlike

SHARES = (14, 17, 18, 12, 6, 3)


def climb(data: ReportData, *, rang: bool = True) -> ReportData:
    """Looks at 1, 4, 9 ... nats, 24 judgements each; the alarm rings at the last and goes back to the third."""
    steps = tuple(
        Step(
            round=1, tick=2 * k, number=2 * k,
            values={
                "objective/kl": float(k * k), "objective/scores": 0.6 * k, "alarm/kl": float(k * k),
                "alarm/wins": float(won), "alarm/judged": 24.0,
            } | ({"alarm/back_to": 6.0} if rang and k == 6 else {}),
        )
        for k, won in enumerate(SHARES, start=1)
    )  # fmt: skip
    return replace(data, steps=steps)


def test_a_run_without_an_alarm_has_no_section_for_it(gathered: Callable[..., ReportData]) -> None:
    assert alarm.table(gathered()) is None
    assert 'id="alarm"' not in build_report(gathered())


def test_the_look_that_was_gone_back_to_and_the_one_that_rang_are_named(gathered: Callable[..., ReportData]) -> None:
    table = alarm.table(climb(gathered()))

    assert table is not None
    assert [(row[0], row[-1]) for row in table.rows if row[-1]] == [("1.6", "stop here"), ("1.12", "alarm")]


def test_wilsons_interval() -> None:
    # 0 of 10: 0 to z^2 / (n + z^2) = 3.8416 / 13.8416
    found = alarm.wilson(0, 10)

    assert (found.low, found.high) == pytest.approx((0.0, 0.27754), abs=1e-5)


def test_the_page_shows_the_answers_escaped(gathered: Callable[..., ReportData]) -> None:
    sample = Unlike(prompt="p", answer="<b>good good</b>", reference="fine", score=2.5)
    page = build_report(
        replace(climb(gathered()), alarms=(AlarmTold(round=1, told="It rang & stopped.", samples=(sample,)),))
    )

    assert "&lt;b&gt;good good&lt;/b&gt;" in page
    assert "It rang &amp; stopped." in page
    assert "score 2.50 higher" in page


def test_a_damaged_alarm_is_left_out(tmp_path: Path) -> None:
    for number, text in ((1, "{"), (2, json.dumps({"told": "so", "samples": []}))):
        (tmp_path / "rounds" / f"r{number}").mkdir(parents=True)
        (tmp_path / "rounds" / f"r{number}" / "alarm.json").write_text(text)

    assert [a.round for a in alarm.told_alarms(tmp_path, [1, 2, 3])] == [2]
