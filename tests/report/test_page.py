import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from backflip.report import ReportData, as_dict, build_report, page, write_report
from backflip.report.data import Shown
from backflip.report.page import script_json

HOSTILE = "</script><script>alert(1)</script> {{ 7 * 7 }} {% raw %} <img src=x onerror=alert(2)> \u2028 ]]> <!-- & \"'"


class Reader(HTMLParser):
    """What a browser would find: elements, their attributes, the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag in ("td", "th", "dt", "dd"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif self._inside != "style":
            self.text += data

    def json(self, name: str) -> Any:
        return json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == name))


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotly's script weighs 5 MB; the tests that do not ask for it read a short page."""
    monkeypatch.setattr(page, "_plotly", lambda: "/* plotly */")


def with_text(data: ReportData, text: str) -> ReportData:
    shown = Shown(text=text, ended=True, length=9, utility=0.5, attributes={text: 0.25})
    pair = replace(data.side_by_side[0], prompt=text, form=text, topic=text, reference=shown, policy=shown)
    raters = tuple(replace(r, name=text) for r in data.raters)
    return replace(data, side_by_side=(pair,), raters=raters, plan=text, task=text, machine=text, base_model=text)


def test_model_output_can_neither_run_nor_end_anything(gathered: Callable[..., ReportData]) -> None:
    data = gathered()
    plain, hostile = (Reader(build_report(with_text(data, text))) for text in ("harmless", HOSTILE))

    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert len(hostile.scripts) == 5
    assert hostile.text.count(HOSTILE) >= 5  # shown as it was written, braces and all
    assert not any(name.startswith("on") for _, attrs in hostile.elements for name in attrs)
    assert hostile.json("report-data")["side_by_side"][0]["policy"]["text"] == HOSTILE


def test_attribute_names_and_policies_cannot_be_markup_in_a_figure(gathered: Callable[..., ReportData]) -> None:
    data = gathered()
    named = replace(data, lengths=(data.lengths[0], replace(data.lengths[1], policy="<b>x</b>")))

    traces = Reader(build_report(named)).json("figure-data")["lengths"]["data"]
    assert "<b>" not in traces[1]["hovertemplate"]


def test_script_data_holds_no_character_that_ends_a_script() -> None:
    text = str(script_json({"text": HOSTILE}))

    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"text": HOSTILE}


def test_the_json_form_is_the_page(gathered: Callable[..., ReportData]) -> None:
    data = gathered()

    assert Reader(build_report(data)).json("report-data") == json.loads(json.dumps(as_dict(data)))


def test_the_figures_are_the_numbers_given(gathered: Callable[..., ReportData]) -> None:
    data = gathered()
    found = Reader(build_report(data)).json("figure-data")

    for panel, name in (("proxy", "objective/scores"), ("truth", "gold/utility"), ("length", "length/mean")):
        drawn = [y for y in found[f"steps-{panel}"]["data"][0]["y"] if y is not None]
        assert drawn == [s.values[name] for s in data.steps]
    assert found["steps-truth"]["data"][1]["y"] == [v.utility.value for v in data.versions if v.utility]
    accuracy = [f.heldout_accuracy.value for f in data.fits if f.heldout_accuracy]
    assert found["reward-accuracy"]["data"][0]["y"] == accuracy


def test_the_tables_are_the_numbers_given(gathered: Callable[..., ReportData]) -> None:
    text = " ".join(Reader(build_report(gathered())).text.split())

    assert "after round 2 6.6 1.44 (1.34 to 1.54) 1.22 (1.12 to 1.32) 1.42 (1.37 to 1.47) 69% (64% to 73%)" in text
    assert "warmth risen +0.310.26 to 0.36 0.40 0.71 1.00 39%" in text
    assert "optimise 6 min 20 s" in text


def test_the_health_table_shows_the_worst_ratio_of_the_round(gathered: Callable[..., ReportData]) -> None:
    data = gathered(rounds=1)
    ratios = [1.0001, 0.98, *[1.0] * 10]
    steps = (replace(s, values={"val/ratio_first": v}) for s, v in zip(data.steps, ratios, strict=True))
    text = " ".join(Reader(build_report(replace(data, steps=tuple(steps)))).text.split())

    assert "round 1 12 0.9800 " in text


def test_nothing_is_loaded_from_elsewhere(gathered: Callable[..., ReportData]) -> None:
    text = build_report(gathered())
    reader = Reader(text)

    assert "://" not in text
    assert not [a for _, attrs in reader.elements for a in attrs if a in ("src", "href", "srcset", "action")]
    policy = next(attrs["content"] for _, attrs in reader.elements if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_plotly_is_embedded_once(gathered: Callable[..., ReportData], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from plotly.offline import get_plotlyjs

    reader = Reader(build_report(gathered()))

    assert [text for _, text in reader.scripts].count(get_plotlyjs()) == 1


def test_ids_are_unique_and_each_figure_has_its_place(gathered: Callable[..., ReportData]) -> None:
    reader = Reader(build_report(replace(gathered(), people=gathered(simulated=False).people)))
    ids = [attrs["id"] for _, attrs in reader.elements if "id" in attrs]

    assert len(ids) == len(set(ids))
    assert {f"figure-{name}" for name in reader.json("figure-data")} <= set(ids)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("step", ["sample", "rate", "fit", "optimise", "measure"])
def test_a_page_can_be_made_after_any_step(gathered: Callable[..., ReportData], rounds: int, step: str) -> None:
    text = build_report(gathered(rounds=rounds, last_step=step))

    assert not re.search(r"\bNone\b|\bnan\b", Reader(text).text)


def sections(data: ReportData) -> set[str | None]:
    return {attrs["id"] for tag, attrs in Reader(build_report(data)).elements if tag == "section" and "id" in attrs}


def test_panels_without_data_are_left_out(gathered: Callable[..., ReportData]) -> None:
    assert sections(gathered(rounds=1, last_step="sample")) == {"lengths", "timing", "origin"}


def test_a_whole_run_shows_every_panel(gathered: Callable[..., ReportData]) -> None:
    shown = {"score", "steps", "attributes", "reward", "raters", "answers", "lengths", "health", "timing", "origin"}

    assert sections(gathered()) == shown


def test_with_people_no_true_utility_is_shown_and_nothing_is_called_simulated(
    gathered: Callable[..., ReportData],
) -> None:
    data = gathered(simulated=False, judged=False)
    reader = Reader(build_report(data))

    assert "people" in sections(data)
    assert "attributes" not in sections(data)
    assert "true utility" not in reader.text.lower()
    assert "simulated" not in reader.text.lower()


def test_a_number_that_is_not_finite_does_not_stop_the_page(gathered: Callable[..., ReportData]) -> None:
    data = gathered(rounds=1)
    last = replace(data.steps[-1], values=dict.fromkeys(data.steps[-1].values, float("nan")))
    broken = replace(data, steps=(*data.steps[:-1], last))

    assert as_dict(broken)["steps"][-1]["values"]["grad/norm"] is None
    assert "not a number" in Reader(build_report(broken)).text


def test_a_failed_write_leaves_the_page_that_was_there(
    tmp_path: Path, gathered: Callable[..., ReportData], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    data = gathered(rounds=1, last_step="sample")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(target, data)

    assert target.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == before


def test_the_page_that_is_written_is_the_page_that_was_built(
    tmp_path: Path, gathered: Callable[..., ReportData]
) -> None:
    data = gathered(rounds=1)

    write_report(tmp_path / "report.html", data)

    assert (tmp_path / "report.html").read_text(encoding="utf-8") == build_report(data)
    assert not list(tmp_path.glob("*.part"))
