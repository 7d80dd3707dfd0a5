import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from backflip.report import ReportData, build_report, plots
from backflip.report.data import Lengths, Step
from backflip.report.drawing import LINE_HEIGHT, EndLabel, end_labels, plain
from backflip.report.palette import LIGHT, SWAP, TONES


def test_every_figure_is_one_plotly_accepts(gathered: Callable[..., ReportData]) -> None:
    go = pytest.importorskip("plotly.graph_objects")

    for figure in plots.figures(gathered()).values():
        go.Figure(data=figure.data, layout=figure.layout)  # raises on a name or value Plotly does not know


def test_the_lines_of_two_rounds_are_not_joined(gathered: Callable[..., ReportData]) -> None:
    data = gathered(rounds=2)
    figure = plots.steps_of(data, "kl")

    assert figure is not None
    assert figure.data[0]["x"][11:14] == [12, None, 13]
    assert [y for y in figure.data[0]["y"] if y is not None] == [s.values["objective/kl"] for s in data.steps]


def test_the_target_of_the_leash_is_drawn_and_named(gathered: Callable[..., ReportData]) -> None:
    data = gathered(rounds=1)
    figure = plots.steps_of(data, "kl")

    assert figure is not None
    assert [s["y0"] for s in figure.layout["shapes"] if s["line"].get("dash") == "dash"] == [6.0]
    assert "target<br>6.0" in [a["text"] for a in figure.layout["annotations"]]


def test_a_step_that_is_not_a_number_leaves_the_figure_whole(gathered: Callable[..., ReportData]) -> None:
    data = gathered(rounds=1)
    broken = replace(data.steps[3], values=data.steps[3].values | {"objective/kl": math.nan})
    figure = plots.steps_of(replace(data, steps=(*data.steps[:3], broken, *data.steps[4:])), "kl")

    assert figure is not None
    assert figure.data[0]["x"] == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]


def test_lengths_are_shares_that_sum_to_one() -> None:
    figure = plots.lengths(
        [Lengths(policy="reference", tokens=(5, 5, 40, 12)), Lengths(policy="policy-r1", tokens=(7,))]
    )

    assert figure is not None
    before, after = figure.data
    assert sum(before["y"]) == pytest.approx(1.0)
    assert dict(zip(before["x"], before["y"], strict=True))[4] == pytest.approx(0.5)  # bins of 2: 4 and 5
    assert dict(zip(before["x"], before["y"], strict=True))[40] == pytest.approx(0.25)
    assert max(after["y"]) == 1.0


def test_figures_without_data_are_not_drawn(gathered: Callable[..., ReportData]) -> None:
    assert list(plots.figures(gathered(rounds=1, last_step="sample"))) == ["lengths"]


def test_labels_that_would_touch_are_moved_apart() -> None:
    # 200 px for 0..2: 1.00 and 1.02 lie 2 px apart, and the lower label has two lines
    low, high = end_labels(
        [EndLabel(x=1, y=1.02, text="b", tone="truth"), EndLabel(x=1, y=1.0, text="a<br>1", tone="proxy")],
        (0.0, 2.0),
        200,
    )

    assert low["text"] == "a<br>1"
    assert 102 + high["yshift"] - 100 - low["yshift"] == pytest.approx(1.5 * LINE_HEIGHT)


def test_label_text_cannot_be_markup() -> None:
    assert plain('<a href="x">') == '&lt;a href="x"&gt;'


def test_each_light_colour_has_one_dark_counterpart() -> None:
    assert len(SWAP) == len(TONES)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "proxy", "truth", "after", "before"])
@pytest.mark.parametrize("ground", ["page", "surface"])
def test_text_colours_can_be_read_on_both_grounds(name: str, ground: str, theme: str) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(getattr(TONES[n], theme)) for n in (name, ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_figures_use_only_colours_that_change_with_the_theme(gathered: Callable[..., ReportData]) -> None:
    def colours(value: Any, key: str = "") -> set[str]:
        if isinstance(value, dict):
            return set().union(*(colours(v, k) for k, v in value.items()))
        if isinstance(value, list):
            return set().union(*(colours(v, key) for v in value))
        return {value} if isinstance(value, str) and "color" in key else set()

    for figure in plots.figures(gathered()).values():
        assert colours(figure.data) | colours(figure.layout) <= {*LIGHT.values(), "rgba(0,0,0,0)"}


def climbed(data: ReportData, metric: str, *, weight: float = 2.0) -> ReportData:
    """Ten steps in which a metric rises by 0.1 a step."""
    steps = tuple(Step(round=1, tick=k, number=k, values={metric: 0.1 * k}) for k in range(1, 11))
    return replace(data, steps=steps, weights={"warmth": weight, "form": 1.0})


def test_an_attribute_adds_its_weight_times_its_change(gathered: Callable[..., ReportData]) -> None:
    # 0.1 to 1.0 with weight 2: 1.8, all of the rise
    figure = plots.attributes(climbed(gathered(), "gold/warmth"))

    assert figure is not None
    [trace] = figure.data
    assert (trace["y"][0], trace["y"][-1]) == pytest.approx((0.0, 1.8), abs=1e-4)
    assert [a["text"] for a in figure.layout["annotations"]] == ["warmth +1.80 (100%)"]


def test_attributes_that_nobody_knows_are_not_drawn(gathered: Callable[..., ReportData]) -> None:
    assert plots.attributes(climbed(gathered(), "objective/kl")) is None


@pytest.mark.parametrize(
    ("metric", "panel"),
    [
        ("length/score_correlation", "steps-together"),
        ("watch/spread", "steps-spread"),
        ("watch/length", "steps-watched"),
    ],
)
def test_what_is_watched_is_drawn_under_the_panel(gathered: Callable[..., ReportData], metric: str, panel: str) -> None:
    data = climbed(gathered(), metric)

    assert panel in plots.figures(data)
    assert f'id="figure-{panel}"' in build_report(data).partition('id="steps"')[0]
