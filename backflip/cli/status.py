"""`backflip status`: where a run is and its figures so far."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from backflip.cli.terminal import AsJson, RunFolder, print_json, run_folder

if TYPE_CHECKING:
    from backflip.cycle.overview import Overview, RoundState
    from backflip.cycle.plan_changes import Changes


def status(dir: RunFolder = None, as_json: AsJson = False) -> None:
    """Show where a run is, what it waits for, and its figures so far. Reads only; the run may be under way."""
    from backflip.cycle.overview import overview

    seen = overview(run_folder(dir))
    if as_json:
        print_json(asdict(seen))
    else:
        typer.echo("\n".join(_lines(seen)))


def _lines(seen: "Overview") -> Iterator[str]:
    """The overview in words."""
    yield f"{seen.run}: {seen.model}, task {seen.task}"
    yield _activity(seen)
    for r in seen.rounds:
        yield from (
            f"plan, from round {c.round} on: {_edits(c.changes)}" for c in seen.plan_changes if c.round == r.number
        )
        yield f"round {r.number} of {seen.rounds_planned}: {_progress(r)}"
    later = [c for c in seen.plan_changes if c.round > max((r.number for r in seen.rounds), default=0)]
    yield from (f"plan, from round {c.round} on: {_edits(c.changes)}" for c in later)
    if seen.edited:
        yield f"plan edited, not taken up until the run is carried on: {_edits(seen.edited)}"
    if seen.warnings:
        yield "warnings (no climb is stopped by them):"
    for w in seen.warnings:
        yield f"  round {w.round}, step {w.tick}: {w.told} ({w.name})"
    if seen.figures:
        yield "figures so far:"
    for name, m in seen.figures.items():
        span = "" if m.low is None or m.high is None else f"  [{m.low:.3g}, {m.high:.3g}]"
        yield f"  {name:<24}{m.value:.3g}{span}  (round {m.round})"


def _activity(seen: "Overview") -> str:
    if seen.finished:
        return f"finished: {seen.rounds_planned} round{'s' * (seen.rounds_planned > 1)}, {seen.votes} votes"
    if seen.process is not None:
        who = f"process {seen.process}" if seen.process else "another process"
        return f"under way: {who} runs it"
    judged = f"{seen.waiting} pairs still want votes; " if seen.waiting else ""
    return f"stopped: {judged}carry on with: backflip run --dir {seen.run}"


def _edits(changes: "Changes") -> str:
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changes.items())


def _progress(r: "RoundState") -> str:
    done = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in r.done.items()) or "nothing done yet"
    left_out = f"; {r.refused} of {r.climbs} optimiser steps left out: not finite" if r.refused else ""
    if r.next is None:
        return f"finished ({done}), {r.votes} votes on {r.pairs} pairs{left_out}"
    at = f" ({r.climbed} of {r.climbs} steps)" if r.next == "optimise" else ""
    return f"done: {done}; next: {r.next}{at}; {r.votes} votes on {r.pairs} pairs{left_out}"
