"""`backflip goodhart`: how a score that leaves something out ruins what it leaves out, shown in a second."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backflip.cli.terminal import AsJson, print_json
from backflip.core.config import Unfit
from backflip.core.errors import ConfigError

if TYPE_CHECKING:
    from backflip.measure.cleanroom import Climb, Cure, World

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40
NAMES: "dict[Cure, str]" = {"none": "no cure", "freeze": "frozen rest", "again": "chosen again"}


def goodhart(
    attributes: Annotated[int, typer.Option(help="Attributes that matter.")] = 4,
    mentioned: Annotated[int, typer.Option(help="Attributes that the proxy mentions.")] = 2,
    budget: Annotated[float, typer.Option(help="Budget for each attribute; the start costs 1.")] = 2.0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the curves as an HTML page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show Goodhart's law in a clean room: the true utility rises, flattens and falls below zero; and two cures.

    A proxy that mentions only some of what matters is climbed under a budget (Zhuang & Hadfield-Menell 2020). Cures:
    what it does not mention may not change; or it is chosen again as one goes. No model is needed.
    """
    from backflip.measure.cleanroom import CURES, World, climb

    try:
        world = World(attributes=attributes, mentioned=mentioned, budget=budget)
    except Unfit as e:
        raise ConfigError(f"--{e.key} does not fit.\nIt must be {e.fits}.") from None
    climbs = {cure: climb(world, cure) for cure in CURES}
    if out is not None:
        from backflip.report.goodhart import write_goodhart

        write_goodhart(out, world, climbs)
    if as_json:
        print_json(_document(world, climbs) | {"page": None if out is None else str(out)})
    else:
        typer.echo("\n".join([*_lines(world, climbs), *([] if out is None else [f"page: {out}"])]))


def _document(world: "World", climbs: "dict[Cure, Climb]") -> dict[str, Any]:
    return {
        "attributes": world.attributes,
        "mentioned": world.mentioned,
        "budget": world.budget,
        "climbs": {
            cure: {
                "peak_step": c.peak,
                "peak_utility": float(c.utility[c.peak]),
                "below_start_step": c.below_start,
                "end_utility": float(c.utility[-1]),
                "end_proxy": float(c.proxy[-1]),
                "utility": c.utility.tolist(),
                "proxy": c.proxy.tolist(),
            }
            for cure, c in climbs.items()
        },
    }


def _lines(world: "World", climbs: "dict[Cure, Climb]") -> list[str]:
    heads = ("cure", "peak", "at step", "below 0 at step", "utility at the end", "proxy at the end")
    rows = [heads] + [
        (
            NAMES[cure], f"{c.utility[c.peak]:.2f}", str(c.peak), str(c.below_start or "never"),
            f"{c.utility[-1]:.2f}", f"{c.proxy[-1]:.2f}",
        )
        for cure, c in climbs.items()
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    plain = climbs["none"]
    return [
        f"{world.attributes} attributes matter, the proxy mentions {world.mentioned}; {world.steps} steps.",
        "",
        *("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows),
        "",
        f"proxy    {_curve(plain.proxy.tolist(), float(plain.proxy.min()))}",
        f"utility  {_curve(plain.utility.tolist(), -float(plain.utility.max()))}  (no cure; cut off below)",
        f"Stop at step {plain.peak}: from there on the proxy rises on while the utility falls.",
    ]


def _curve(values: list[float], lowest: float) -> str:
    """The values as a row of blocks, `WIDTH` of them; what is below `lowest` is drawn as the lowest."""
    taken = [values[round(i * (len(values) - 1) / (WIDTH - 1))] for i in range(WIDTH)]
    width = max(values) - lowest or 1.0
    return "".join(BLOCKS[round(max(0.0, (v - lowest) / width) * (len(BLOCKS) - 1))] for v in taken)
