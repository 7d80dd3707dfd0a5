import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from backflip.report import ReportData
from backflip.report.data import Estimate, Verdict, Version
from backflip.report.words import believe, circumstances, duration, headline, interval, key_figures, number, percent


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.234, "1.23"),
        (-0.5, "−0.50"),
        (-0.001, "0.00"),
        (None, "–"),
        (math.nan, "not a number"),
        (math.inf, "infinite"),
    ],
)
def test_a_number_is_printed_as_a_person_writes_it(value: float | None, words: str) -> None:
    assert number(value) == words


def test_a_sign_stands_before_gains_only() -> None:
    assert [number(v, 1, signed=True) for v in (0.5, -0.5, 0.0)] == ["+0.5", "−0.5", "0.0"]


def test_shares_are_percentages() -> None:
    assert percent(0.7183) == "72%"
    assert interval(Estimate(value=0.7, low=0.655, high=0.741), share=True) == "66% to 74%"
    assert interval(Estimate(value=0.7)) == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(2.41, "2.4 s"), (42, "42 s"), (60, "1 min"), (199.6, "3 min 20 s"), (3900, "1 h 5 min")]
)
def test_a_duration_is_said_in_the_unit_it_calls_for(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_headline_is_the_win_rate_on_the_final_prompts(gathered: Callable[..., ReportData]) -> None:
    data = gathered()

    assert headline(data) == "The tuned model wins 72% (68% to 76%) of comparisons with the untouched model."
    assert circumstances(data) == (
        "Measured after 3 rounds on 25 prompts kept for this measurement alone; "
        "by then the model had moved 8.3 nats per answer (KL) from where it began."
    )


def test_an_interval_around_one_half_is_called_no_difference(gathered: Callable[..., ReportData]) -> None:
    data = gathered(rounds=1)
    assert data.final is not None
    unclear = replace(data, final=replace(data.final, win_rate=Estimate(value=0.53, low=0.49, high=0.57)))

    assert "no clear difference" in circumstances(unclear)
    assert "no clear difference" not in circumstances(data)


def test_with_people_the_headline_is_their_preference(gathered: Callable[..., ReportData]) -> None:
    data = gathered(simulated=False, judged=False)

    assert headline(data) == "Raters preferred the tuned model to the untouched one in 64% (56% to 72%) of comparisons."
    assert believe(data) == ""
    assert not any(figure.simulated for figure in key_figures(data))


def test_a_run_without_measures_says_how_far_it_has_got(gathered: Callable[..., ReportData]) -> None:
    assert headline(gathered(rounds=1, last_step="sample")) == "This run has only begun: 96 answers so far."


def test_the_reader_is_told_where_to_stop_believing(gathered: Callable[..., ReportData]) -> None:
    best, last = Version(number=2, kl=Estimate(value=5.64)), Version(number=3, kl=Estimate(value=9.0))
    data = replace(gathered(rounds=1, last_step="sample"), verdict=Verdict(kind="parted", best=best, last=last))

    assert believe(data).startswith("Stop believing the score beyond round 2 (5.6 nats)")


def test_figures_that_rest_on_simulated_raters_are_marked(gathered: Callable[..., ReportData]) -> None:
    marked = {f.label: f.simulated for f in key_figures(gathered())}

    assert marked["Win rate"]
    assert marked["True utility"]
    assert marked["Attributes risen"]
    assert marked["Votes"]
    assert not marked["KL"]
    assert not marked["Time"]
