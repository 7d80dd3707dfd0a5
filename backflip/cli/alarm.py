"""`backflip alarm plan`: how many judgements it costs to notice that gold falls."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from backflip.cli.terminal import AsJson, print_json
from backflip.core.errors import ConfigError

if TYPE_CHECKING:
    from backflip.stats.falling import Power

VOTES = (4, 8, 16, 24, 32, 48)

alarm = typer.Typer(help="Plan the alarm that stops a climb when gold falls.", no_args_is_help=True)


@alarm.callback()
def _nouns() -> None:
    """Plan the alarm that stops a climb when gold falls."""


@alarm.command()
def plan(
    best: Annotated[float, typer.Option(help="Share of wins at the peak that you expect.")] = 0.6,
    peak: Annotated[float, typer.Option(help="Nats at which you expect it.")] = 3.0,
    until: Annotated[float, typer.Option(help="Nats at which the climb ends.")] = 36.0,
    power: Annotated[float, typer.Option(help="Share of falling climbs that the alarm should catch.")] = 0.9,
    rate: Annotated[float, typer.Option(help="Chance of a false alarm.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Say how many judgements at each look catch how many falling climbs, how soon, and which number is enough.

    Climbs are simulated: wins rise to --best at --peak nats, then fall as they do for best of n.
    """
    from backflip.stats.falling import power as power_of

    if min(peak, until) <= 0:
        raise ConfigError("--peak or --until does not fit.\nIt must be a number of nats above 0.")
    try:
        found = [
            power_of(n, best=best, peak=math.sqrt(peak), until=math.sqrt(until), rate=rate, paths=100) for n in VOTES
        ]
    except ValueError as e:
        raise ConfigError(
            f"There is no such climb: {e}.\nLet it peak before it ends, above half of the wins."
        ) from None
    enough = next((p for p in found if p.caught >= power), None)
    if as_json:
        rows = [{k: v if math.isfinite(v) else None for k, v in p._asdict().items()} for p in found]
        print_json({"power": power, "rate": rate, "enough": enough and enough.judged, "rows": rows})
    else:
        typer.echo("\n".join(_lines(found, enough, power)))


def _lines(found: "list[Power]", enough: "Power | None", power: float) -> list[str]:
    rows = [("votes a look", "caught", "votes until it rings", "nats^1/2 past the peak")]
    rows += [
        (str(p.judged), f"{p.caught:.0%}", f"{p.votes:.0f}", "-" if math.isnan(p.overrun) else f"{p.overrun:.1f}")
        for p in found
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    if enough is None:
        return [*lines, "", f"None of these catches {power:.0%} of the climbs: the fall is too small, or too late."]
    return [
        *lines, "",
        f"alarm.votes = {enough.judged} catches {enough.caught:.0%}, with {enough.votes:.0f} judgements (median).",
    ]  # fmt: skip
