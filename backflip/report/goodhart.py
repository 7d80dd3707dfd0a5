"""The page of `backflip goodhart`: the clean room's curve and both cures, in the report's style."""

from collections.abc import Mapping
from pathlib import Path

from backflip.core.disk import disk_error
from backflip.measure.cleanroom import Climb, Cure, World
from backflip.report.drawing import EndLabel, Figure, Key, above, end_labels, layout, line, plot_height, upright
from backflip.report.page import render, write_page
from backflip.report.tables import Table
from backflip.report.words import NONE, number

NAMES: dict[Cure, str] = {
    "none": "no cure: the proxy is climbed as it is",
    "freeze": "what the proxy does not mention may not change",
    "again": "the proxy is chosen again every few steps",
}
SHORT: dict[Cure, str] = {"freeze": "frozen<br>rest", "again": "chosen<br>again"}
DASH: dict[Cure, str] = {"none": "solid", "freeze": "dash", "again": "dot"}
SHOWN_BELOW = 1.2
"""How far below 0 the axis reaches, in heights of the best curve: what falls deeper leaves the figure."""


def build_goodhart(world: World, climbs: Mapping[Cure, Climb]) -> str:
    """The whole page, self-contained."""
    figure = curves(climbs)
    plain = climbs["none"]
    below = plain.below_start
    return render(
        "goodhart.html.j2",
        {figure.id: figure},
        figure=figure,
        world=world,
        peak=plain.peak,
        best=number(float(plain.utility[plain.peak])),
        below=below,
        end=number(float(plain.utility[-1]), 1),
        proxy_end=number(float(plain.proxy[-1])),
        table=_table(climbs),
    )


def write_goodhart(path: Path, world: World, climbs: Mapping[Cure, Climb]) -> None:
    """Write the page. Raises: BackflipError when it cannot be written."""
    try:
        write_page(path, build_goodhart(world, climbs))
    except OSError as e:
        raise disk_error(path, e) from e


def curves(climbs: Mapping[Cure, Climb]) -> Figure:
    """The utility under each cure, and the proxy without one, against the steps."""
    plain = climbs["none"]
    steps = len(plain.utility) - 1
    top = max(float(c.utility.max()) for c in climbs.values())
    limits = (-SHOWN_BELOW * top, max(top, float(plain.proxy.max())) * 1.12)
    x = [float(i) for i in range(steps + 1)]
    hover = "step %{x}: %{y:.2f}<extra></extra>"
    traces = [line(x, plain.proxy.tolist(), "proxy", name="proxy", hovertemplate="proxy, " + hover)]
    labels = [EndLabel(x=steps, y=float(plain.proxy[-1]), text="proxy", tone="proxy")]
    for cure, climb in climbs.items():
        tone = "truth" if cure == "none" else "after"
        style = {"dash": DASH[cure], "width": 2.5}
        traces.append(line(x, climb.utility.tolist(), tone, name=cure, style=style, hovertemplate=hover))
        if cure != "none":
            labels.append(EndLabel(x=steps, y=float(climb.utility[-1]), text=SHORT[cure], tone=tone))
    frame = layout(
        x_title="step", x_range=(0, steps), y_range=limits, height=420, right=64,
        shapes=[upright(plain.peak, dash="dash"), *([upright(plain.below_start)] if plain.below_start else [])],
    )  # fmt: skip
    frame["yaxis"] |= {"zeroline": True, "zerolinecolor": "#5d646d"}
    frame["annotations"] = [
        above(plain.peak, f"stop here: step {plain.peak}", tone="ink"),
        *end_labels(labels, limits, plot_height(frame)),
    ]
    key = [Key(label="proxy, no cure", tone="proxy"), Key(label="true utility, no cure", tone="truth")]
    key += [Key(label="frozen rest (dashes)", tone="after", mark="dash")]
    key += [Key(label="chosen again (dots)", tone="after", mark="dot")]
    return Figure(
        id="goodhart",
        data=traces,
        layout=frame,
        unit="Proxy and true utility",
        alt=f"Without a cure the utility peaks at step {plain.peak} and ends at {number(float(plain.utility[-1]), 1)}",
        key=tuple(key),
    )


def _table(climbs: Mapping[Cure, Climb]) -> Table:
    rows = tuple(
        (
            NAMES[cure],
            number(float(c.utility[c.peak])),
            str(c.peak),
            NONE if c.below_start is None else str(c.below_start),
            number(float(c.utility[-1])),
            number(float(c.proxy[-1])),
        )
        for cure, c in climbs.items()
    )
    heads = ("cure", "highest utility", "at step", "below 0 at step", "utility at the end", "proxy at the end")
    return Table(heads=heads, rows=rows)
