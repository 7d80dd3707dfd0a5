"""The panel: where everything stands on it, and that it says where to stop."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_alarm_panel import SHARES, climb

from backflip.core.records import Metric, Prompt
from backflip.report import ReportData, build_report, gather, panel
from backflip.report.behind import MOST, answers_behind
from backflip.report.data import (
    Baseline,
    Behind,
    BestOf,
    BestPoint,
    Estimate,
    Law,
    PeopleRate,
    Read,
    Step,
    Version,
)  # fmt: skip
from backflip.report.drawing import Figure
from backflip.report.palette import LIGHT
from backflip.report.stop import best_of_said, where_to_stop
from backflip.stats.falling import Look, weigh
from backflip.store import Store


def stopped(data: ReportData, **changes: Any) -> ReportData:
    data = replace(data, **changes)
    return replace(data, stop=where_to_stop(data))


def drawn(data: ReportData) -> Figure:
    figure = panel.draw(data)
    assert figure is not None
    return figure


def named(figure: Figure, name: str) -> dict[str, Any]:
    return next(trace for trace in figure.data if trace.get("name") == name)


def words(figure: Figure) -> dict[str, float]:
    """What stands above the figure, by its words: where."""
    return {a["text"]: a["x"] for a in figure.layout["annotations"] if a["xref"] == "x"}


def rises_and_falls(peak: float | None, *, steps: int = 20) -> tuple[Step, ...]:
    """Steps at 0.2, 0.4 ... root nats whose true utility follows RL's law, highest at `peak`, or rises for ever."""
    out = []
    for k in range(1, steps + 1):
        d, noise = 0.2 * k, 0.01 * (-1) ** k
        gold = d if peak is None else d * (1 + math.log(peak) - math.log(d))
        out.append(
            Step(
                round=1, tick=k, number=k,
                values={"objective/kl": d * d, "objective/scores": d + noise, "gold/utility": gold + noise},
            )
        )  # fmt: skip
    return tuple(out)


def test_score_and_utility_share_an_axis_in_standard_deviations(gathered: Callable[..., ReportData]) -> None:
    # score 0.02 -> 1.71 (SD already); utility 0.9 -> 1.5 with SD 0.4; sqrt(8.1) nats
    figure = drawn(replace(gathered(), baseline=Baseline(sd=0.4, answers=64)))

    score, utility = named(figure, "score"), named(figure, "true utility")
    assert (score["x"][-1], score["y"][-1]) == pytest.approx((math.sqrt(8.1), 1.69))
    assert (utility["x"][-1], utility["y"][-1]) == pytest.approx((math.sqrt(8.1), 1.5))
    assert utility["error_y"]["array"][-1] == pytest.approx(0.05 / 0.4)
    assert (score["x"][0], score["y"][0], utility["y"][0]) == (0.0, 0.0, 0.0)
    assert score["customdata"][-1] == ["r3", pytest.approx(8.1), "after round 3"]


def test_a_utility_of_unknown_spread_is_not_drawn_on_the_scores_axis(gathered: Callable[..., ReportData]) -> None:
    figure = drawn(gathered(judged=False))

    assert "score" in {t.get("name") for t in figure.data}
    assert "true utility" not in {t.get("name") for t in figure.data}


def test_the_policy_that_was_kept_the_alarm_and_the_budget_are_marked(gathered: Callable[..., ReportData]) -> None:
    data = climb(gathered())  # looks at 1, 2 ... 6 root nats: kept the third, rang at the last
    data = stopped(data, kl_target=20.0)
    figure = drawn(data)

    assert words(figure) == {"<b>Stop here</b>": 3.0, "alarm rang": 6.0, "KL budget 20": math.sqrt(20)}
    assert "fixed KL budget, 20 nats" in {k.label for k in figure.key}
    assert "fixed KL budget, 49 nats, beyond the figure" in {k.label for k in drawn(replace(data, kl_target=49.0)).key}
    assert named(figure, "wins")["x"] == [1, 2, 3, 4, 5, 6]
    assert named(figure, "wins")["y"][2] == 0.75
    assert data.stop is not None
    assert data.stop.said.startswith("Stop here: step 6, 9.0 nats.")
    assert "144 judgements" in data.stop.over
    evidence = weigh([Look(float(k), float(won), 24) for k, won in enumerate(SHARES, start=1)])
    assert (data.stop.at.low, data.stop.at.high) == pytest.approx((evidence.low**2, evidence.high**2))  # type: ignore[union-attr]
    [band] = [s for s in figure.layout["shapes"] if s["type"] == "rect"]
    assert band["x0"] ** 2 == pytest.approx(data.stop.at.low)  # type: ignore[union-attr]
    assert band["x1"] ** 2 == pytest.approx(data.stop.at.high)  # type: ignore[union-attr]


def test_a_quiet_alarm_sees_no_peak(gathered: Callable[..., ReportData]) -> None:
    data = stopped(climb(gathered(rounds=1), rang=False))

    assert data.stop is not None
    assert data.stop.said == "No peak in sight: 144 judgements up to 36.0 nats do not show gold falling."
    assert "<b>Stop here</b>" not in words(drawn(data))
    assert "No peak in sight" in build_report(data)


def test_the_true_utility_of_the_steps_tells_where_it_turns(gathered: Callable[..., ReportData]) -> None:
    base = replace(gathered(rounds=1), verdict=None)
    turned, rising = (stopped(base, steps=rises_and_falls(p)).stop for p in (1.6, None))

    assert turned is not None
    assert turned.at is not None
    assert turned.at.value == pytest.approx(1.6**2, rel=0.03)
    assert turned.at.low < turned.at.value < turned.at.high  # type: ignore[operator]
    assert "20 steps of round 1" in turned.over
    assert rising is not None
    assert rising.at is None
    assert rising.said.startswith("No peak in sight")


def test_a_round_that_only_hovers_is_no_path(gathered: Callable[..., ReportData]) -> None:
    # round 3's steps lie between 2.6 and 2.8 root nats: no course, and the rounds tell where to stop
    data = gathered()

    assert not any("course" in str(t.get("name")) for t in drawn(data).data)
    assert data.stop is not None
    assert data.stop.said == "No peak in sight: the true utility is highest at round 3, the last."


def test_a_climb_has_a_course_with_a_band(gathered: Callable[..., ReportData]) -> None:
    data = replace(gathered(rounds=1), steps=rises_and_falls(None), baseline=Baseline(sd=1, answers=9, train_mean=0.0))
    figure = drawn(data)

    course = named(figure, "truth course")
    assert (course["x"][0], course["x"][-1]) == pytest.approx((0.2, 4.0))
    assert course["y"][-1] == pytest.approx(4.0, abs=0.05)
    upper = figure.data[figure.data.index(course) - 1]
    assert (upper["fill"], upper["fillcolor"]) == ("tonexty", LIGHT["truth-band"])
    assert all(high >= middle for high, middle in zip(upper["y"], course["y"], strict=True))


def test_an_earlier_rounds_score_has_another_scale_and_is_left_out(gathered: Callable[..., ReportData]) -> None:
    keys = [[c[0] for c in t["customdata"]] for t in drawn(gathered()).data if "customdata" in t and "name" not in t]

    assert [{key.partition("-")[0] for key in one} for one in keys] == [{"r1"}, {"r2"}, {"r3"}, {"r3"}]


BEST = BestOf(
    points=tuple(
        BestPoint(
            n=n, kl=kl, proxy=Estimate(value=kl, low=0.0, high=2 * kl), gold=Estimate(value=kl / 2, low=0.0, high=kl)
        )
        for n, kl in ((2, 0.193), (4, 0.636), (16, 1.835))
    ),
    laws=(
        Law(form="best_of_n", error=Estimate(value=0.03), flat_error=Estimate(value=0.1)),
        Law(form="rl", error=Estimate(value=0.05), flat_error=Estimate(value=0.1)),
    ),
    peak=Estimate(value=0.6, low=0.3, high=1.0),
)  # fmt: skip


def test_best_of_n_is_dashed_beside_the_path(gathered: Callable[..., ReportData]) -> None:
    figure = drawn(replace(gathered(), best_of=BEST))

    gold = named(figure, "best of n, truth")
    assert gold["line"]["dash"] == "dash"
    assert gold["x"] == pytest.approx([0.0, *(math.sqrt(kl) for kl in (0.193, 0.636, 1.835))])
    assert gold["y"] == pytest.approx([0.0, 0.0965, 0.318, 0.9175])
    assert gold["yaxis"] == named(figure, "score")["yaxis"]


def test_best_of_n_says_where_it_peaks_and_how_well_its_law_foretold() -> None:
    # KL of best of 3 is 0.432, of 4 0.636, of 6 0.958, of 7 1.089
    said = best_of_said(BEST)

    assert said.startswith("Best of n: gold is highest near n = 4 (3 to 7, 95% over prompts).")
    assert "The law for best of n foretold n > 4 best: off by 0.03, and 0.10 " in said
    assert "that may be chance" in said  # no interval says that it foretold better
    sure = replace(BEST, laws=(replace(BEST.laws[0], gain=Estimate(value=0.02, low=0.01, high=0.03)),))
    assert "chance" not in best_of_said(sure)
    assert best_of_said(replace(BEST, peak=None)).startswith("Best of n: no peak in sight up to n = 16.")
    assert best_of_said(None) == ""


def test_best_of_n_is_read_from_the_newest_round_in_golds_spread(store: Store) -> None:
    def row(number: int, tick: int, name: str, value: float) -> Metric:
        return Metric(
            round=number, step="measure", tick=tick, name=f"best_of/{name}", value=value, low=value - 1, high=value + 1
        )

    with store.begin() as tx:
        for number in (1, 2):
            tx.start_round(number, "reference", 1.0)
            tx.add_metrics([row(number, 0, "proxy_gain", 1.0), row(number, 0, "gold_sd", 2.0)])
            tx.add_metrics([row(number, n, "proxy", n * number) for n in (2, 3)])
            tx.add_metrics([row(number, n, "gold", n) for n in (2, 3)])
        scored = [Metric(round=2, step="measure", tick=k, name="rescored/proxy", value=0.5 * k) for k in (0, 1)]
        tx.add_metrics([*scored, Metric(round=1, step="measure", tick=0, name="monitor/kl", value=2.0)])
    found = gather(store).best_of

    assert found is not None
    assert [(p.n, p.proxy.value, p.gold.value) for p in found.points] == [(2, 4.0, 1.0), (3, 6.0, 1.5)]  # type: ignore[union-attr]
    assert found.points[0].gold == Estimate(value=1.0, low=0.5, high=1.5)
    assert [v.number for v in gather(store).versions] == [0, 1]  # n is no version


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (0.40, "Stop here: round 1. Raters chose that policy in 70% of comparisons, now 40%."),
        (0.68, "No peak in sight: raters have not clearly liked a later round less (68% at the last)."),
    ],
)
def test_people_tell_where_to_stop_where_nobody_knows_the_utility(last: float, said: str) -> None:
    rates = tuple(
        PeopleRate(round=r, win_rate=Estimate(value=v, low=v - 0.05, high=v + 0.05)) for r, v in ((1, 0.7), (2, last))
    )
    versions = tuple(Version(number=r, kl=Estimate(value=float(r))) for r in (0, 1, 2))
    data = ReportData(
        task="", base_model="", judged_by="", simulated=False, rounds_done=2, people=rates, versions=versions,
        counts=gather_nothing(),
    )  # fmt: skip
    found = where_to_stop(data)

    assert found is not None
    assert found.said == said


def gather_nothing() -> Any:
    from backflip.report.data import Counts

    return Counts(samples=0, pairs=0, votes=0)


def test_answers_behind_a_point_lie_in_the_page_escaped(gathered: Callable[..., ReportData]) -> None:
    read = Read(prompt="p & q", text="<b>good good</b>", note="3 tokens")
    page = build_report(replace(gathered(), behind=(Behind(key="r1-s2", title="Round 1, step 2", answers=(read,)),)))

    assert 'id="behind-r1-s2"' in page
    assert "&lt;b&gt;good good&lt;/b&gt;" in page
    assert "<b>good good</b>" not in page


def test_a_long_climb_shows_the_answers_of_some_steps_the_last_among_them(tmp_path: Path) -> None:
    folder = tmp_path / "rounds" / "r1" / "shown"
    folder.mkdir(parents=True)
    for tick in range(1, 102):
        row = {"prompt_id": "p", "text": f"said {tick}", "ended": True, "length": 2, "score": 0.5}
        (folder / f"{tick:05d}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "00101.jsonl").with_name("00098.jsonl").write_text("{torn")
    found = answers_behind(
        tmp_path, [(1, t) for t in range(1, 102)], [], {"p": Prompt(id="p", split="train", text="ask")}
    )

    assert len(found) <= MOST
    assert found[-1] == Behind(
        key="r1-s101", title="Round 1, step 101",
        answers=(Read(prompt="ask", text="said 101", note="2 tokens, score +0.50"),),
    )  # fmt: skip
    assert "r1-s98" not in {b.key for b in found}
