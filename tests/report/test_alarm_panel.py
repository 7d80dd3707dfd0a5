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


def test_the_policy_that_was_kept_is_marked(gathered: Callable[..., ReportData]) -> None:
    figure = alarm.path(climb(gathered()))

    assert figure is not None
    words = {a["text"]: a["x"] for a in figure.layout["annotations"]}
    assert words == {"stop here: step 6": 3.0, "alarm": 6.0}
    wins = next(t for t in figure.data if t.get("name") == "wins")
    assert wins["x"] == [1, 2, 3, 4, 5, 6]
    assert wins["y"][2] == 0.75


def test_nothing_is_marked_while_the_alarm_is_quiet(gathered: Callable[..., ReportData]) -> None:
    figure = alarm.path(climb(gathered(), rang=False))

    assert figure is not None
    assert figure.layout["annotations"] == []
    assert "Not that can be told" in build_report(climb(gathered(), rang=False))


def test_a_run_without_an_alarm_has_no_panel(gathered: Callable[..., ReportData]) -> None:
    assert alarm.path(gathered()) is None
    assert 'id="alarm"' not in build_report(gathered())


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
