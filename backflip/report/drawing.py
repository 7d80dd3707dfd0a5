"""How every figure is drawn: axes, lines, whiskers, labels at the ends. Plain Plotly dictionaries; knows no run."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from backflip.report.data import Estimate
from backflip.report.palette import LIGHT

Trace = dict[str, Any]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
LINE_HEIGHT = 17.0
"""Pixels two labels must lie apart."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of the key above a figure."""

    label: str
    tone: str
    mark: str = "line"
    """line, dash, dotted, dot, diamond, square or circle."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A Plotly figure in the light colours, and the words around it."""

    id: str
    data: list[Trace]
    layout: dict[str, Any]
    unit: str
    """What the vertical axis counts."""
    alt: str
    """The figure in a sentence, for those who cannot see it."""
    key: tuple[Key, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class EndLabel:
    """A word at the right end of a line, in the line's colour."""

    x: float
    y: float
    text: str
    tone: str


def plain(text: str) -> str:
    """Text for a Plotly label, which reads a little HTML: none of it is let through."""
    return html.escape(text, quote=False)


def line(x: Sequence[float | None], y: Sequence[float | None], tone: str, **more: Any) -> Trace:
    """A line; None breaks it."""
    style = {"color": LIGHT[tone], "width": more.pop("width", 2)} | more.pop("style", {})
    return {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "line": style, "showlegend": False} | more


def dots(x: Sequence[float], y: Sequence[float], tone: str, **more: Any) -> Trace:
    """Small faint dots: single optimiser steps."""
    marker = {"color": LIGHT[tone], "size": 4.5, "opacity": 0.45}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "marker": marker,
        "showlegend": False,
    } | more


def measured(x: Sequence[float], points: Sequence[Estimate], tone: str, **more: Any) -> Trace:
    """Diamonds with whiskers over their intervals."""
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": [p.value for p in points],
        "marker": {
            "color": LIGHT[tone],
            "size": 9,
            "symbol": "diamond",
            "line": {"color": LIGHT["surface"], "width": 1},
        },
        "showlegend": False,
    }
    if any(p.low is not None for p in points):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [0 if p.high is None else p.high - p.value for p in points],
            "arrayminus": [0 if p.low is None else p.value - p.low for p in points],
            "color": LIGHT[tone],
            "thickness": 1.5,
            "width": 4,
        }
    return trace | more


def upright(x: float, *, dash: str = "dot") -> dict[str, Any]:
    """A thin vertical rule over the whole height."""
    return {
        "type": "line",
        "layer": "below",
        "xref": "x",
        "yref": "paper",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"color": LIGHT["rule"], "width": 1, "dash": dash},
    }


def above(x: float, text: str, *, tone: str = "muted", anchor: str = "center") -> dict[str, Any]:
    """A word above the plot at `x`."""
    return {
        "text": text,
        "x": x,
        "y": 1,
        "xref": "x",
        "yref": "paper",
        "yanchor": "bottom",
        "xanchor": anchor,
        "showarrow": False,
        "font": {"size": 11, "color": LIGHT[tone]},
    }


def span(values: Iterable[float | None], *, zero: bool = False) -> tuple[float, float]:
    """Axis limits around the finite values, with a little air."""
    finite = [v for v in values if v is not None and math.isfinite(v)] + ([0.0] if zero else [])
    if not finite:
        return (0.0, 1.0)
    low, high = min(finite), max(finite)
    air = 0.07 * (high - low) or max(0.05 * abs(high), 0.05)
    return (low if zero and low == 0 else low - air, high if zero and high == 0 else high + air)


def end_labels(labels: Sequence[EndLabel], limits: tuple[float, float], height: float) -> list[dict[str, Any]]:
    """The labels right of the plot, moved apart where they would touch (`height`: of the plot, in pixels)."""
    out = []
    scale = height / (limits[1] - limits[0])
    top = -math.inf
    for label in sorted(labels, key=lambda one: one.y):
        at = label.y * scale
        half = (label.text.count("<br>") + 1) * LINE_HEIGHT / 2
        placed = max(at, top + half)
        top = placed + half
        out.append(
            {
                "text": label.text,
                "x": 1,
                "xref": "paper",
                "xanchor": "left",
                "xshift": 8,
                "y": label.y,
                "yshift": placed - at,
                "yanchor": "middle",
                "align": "left",
                "showarrow": False,
                "font": {"size": 12, "color": LIGHT[label.tone]},
            }
        )
    return out


def layout(
    *,
    x_title: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    height: int = 260,
    right: int = 70,
    **more: Any,
) -> dict[str, Any]:
    """The frame all figures share. Margins: 26 px above for the words there, 44 px below for the axis."""
    axis = {
        "gridcolor": LIGHT["grid"],
        "zeroline": False,
        "linecolor": LIGHT["rule"],
        "tickfont": {"color": LIGHT["muted"], "size": 11},
        "fixedrange": True,
        "automargin": False,
    }
    title = {"text": x_title, "standoff": 8, "font": {"size": 12, "color": LIGHT["muted"]}}
    return {
        "height": height,
        "margin": {"l": 46, "r": right, "t": 26, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": LIGHT["ink"]},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": LIGHT["surface"],
            "bordercolor": LIGHT["rule"],
            "font": {"color": LIGHT["ink"], "size": 12},
        },
        "dragmode": False,
        "showlegend": False,
        "xaxis": axis
        | {"title": title, "range": list(x_range), "showgrid": False, "showline": True, "ticks": "outside"},
        "yaxis": axis | {"range": list(y_range), "nticks": 6},
    } | more


def plot_height(frame: dict[str, Any]) -> float:
    """Pixels between the top and the bottom of the plot itself."""
    return float(frame["height"] - frame["margin"]["t"] - frame["margin"]["b"])
