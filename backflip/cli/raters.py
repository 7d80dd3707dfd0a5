"""`backflip raters`: who voted, how far each can be trusted, and what the reward would be without them."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from backflip.cli.terminal import AsJson, RunFolder, by_name, print_json, run_folder

if TYPE_CHECKING:
    from backflip.cycle.raters import RaterFigures, Raters
    from backflip.stats.agreement import Share
    from backflip.stats.bootstrap import Interval

Gold = Annotated[str, typer.Option("--gold", help="A rater, by id or name, whose votes are taken as known answers.")]
HEADS = ("rater", "votes", "reliability", "ties", "first shown", "same twice", "gold", "without: accuracy", "reward r")


def raters(dir: RunFolder = None, gold: Gold = "", as_json: AsJson = False) -> None:
    """Show how far each rater can be trusted, and what the reward would be without them. Reads only.

    Reliability: how often a decided vote is for the better answer (0.5: a coin). first shown: share of decided votes
    for the answer shown first. without: held-out accuracy and correlation of the reward learned without the rater.
    """
    from backflip.cycle.raters import judge_raters

    found = judge_raters(run_folder(dir), gold or None)
    if as_json:
        print_json(by_name(asdict(found)))
    else:
        typer.echo("\n".join(_lines(found)))


def _lines(found: "Raters") -> Iterator[str]:
    """The figures in words and a table."""
    yield f"{found.run}: {found.votes} votes by {len(found.raters)} raters"
    if found.alpha:
        yield f"agreement, Krippendorff's alpha: {_span(found.alpha)} (1 full, 0 chance)"
    if found.accuracy:
        yield f"the reward learned from all foretells {_span(found.accuracy)} of held-out votes"
    rows = [HEADS, *(_row(r) for r in found.raters)]
    kept = [i for i in range(len(HEADS)) if any(row[i] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in kept]
    for row in rows:
        yield "  ".join(row[i].ljust(w) for i, w in zip(kept, widths, strict=True)).rstrip()


def _row(r: "RaterFigures") -> tuple[str, ...]:
    change = r.without.accuracy_change if r.without else None
    return (
        r.name,
        str(r.votes),
        _span(r.reliability) if r.reliability else "",
        _share(r.ties),
        _share(r.first),
        _share(r.consistent),
        _share(r.gold),
        f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]" if change else "",
        f"{r.without.correlation:.3f}" if r.without else "",
    )


def _span(i: "Interval") -> str:
    return f"{i.value:.2f} [{i.low:.2f}, {i.high:.2f}]"


def _share(s: "Share | None") -> str:
    return f"{s.share.value:.0%} of {s.judged}" if s else ""
