"""`backflip budget`: what more votes would buy."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from backflip.cli.terminal import AsJson, RunFolder, by_name, print_json, run_folder

if TYPE_CHECKING:
    from backflip.cycle.budget import Budget

Votes = Annotated[int, typer.Option("--votes", help="How many more votes.")]


def budget(dir: RunFolder = None, votes: Votes = 50, as_json: AsJson = False) -> None:
    """Tell what more votes would buy: how much better the reward would foretell votes. Reads only."""
    from backflip.cycle.budget import budget_of

    found = budget_of(run_folder(dir), votes)
    if as_json:
        print_json(by_name(asdict(found)))
    else:
        typer.echo("\n".join(_lines(found)))


def _lines(found: "Budget") -> Iterator[str]:
    """The answer in words, then the curve it comes from."""
    yield f"{found.run}: {found.votes} votes so far; their reward foretells about {found.now:.0%} of unseen votes"
    low, high = 100 * found.gain.low, 100 * found.gain.high
    yield (
        f"{found.more} more votes would buy {100 * found.gain.value:.1f} points in a hundred "
        f"(90% interval {low:.1f} to {high:.1f})"
    )
    yield "measured on parts of the votes: " + ", ".join(f"{n:.0f} votes {right:.0%}" for n, right in found.curve)
