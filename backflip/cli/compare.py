"""`backflip compare`: two runs side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backflip.cli.terminal import AsJson, print_json, run_folder

if TYPE_CHECKING:
    from backflip.core.records import Metric
    from backflip.cycle.comparison import Comparison

A = Annotated[Path, typer.Argument(metavar="A", help="A run's folder.")]
B = Annotated[Path, typer.Argument(metavar="B", help="Another run's folder.")]
WIDTH = 26
BLOCKS = "▁▂▃▄▅▆▇█"


def compare(a: A, b: B, as_json: AsJson = False) -> None:
    """Show where two plans differ, how each run went, and how often A's policy beats B's."""
    from backflip.cycle.comparison import compare_runs

    seen = compare_runs(run_folder(a), run_folder(b))
    if as_json:
        print_json(asdict(seen))
    else:
        typer.echo("\n".join(_lines(seen)))


def _lines(seen: "Comparison") -> Iterator[str]:
    for letter, side in (("A", seen.a), ("B", seen.b)):
        rounds = f"{side.rounds} round{'s' * (side.rounds != 1)} measured"
        yield f"{letter}: {side.run}: {side.model}, {rounds}, {side.votes} votes"
    yield ""
    yield "plan:" if seen.plan else "plan: the same"
    yield from (f"  {key:<{WIDTH}}A {a}   B {b}" for key, (a, b) in seen.plan.items())
    for name in seen.a.by_round:
        one, two = seen.a.by_round[name], seen.b.by_round[name]
        if one or two:
            yield f"{name}:"
        for number in sorted({*one, *two}):
            yield f"  round {number:<{WIDTH - 6}}A {_value(one.get(number)):<24} B {_value(two.get(number))}"
    for name, values in seen.a.by_step.items():
        other = seen.b.by_step[name]
        if values or other:
            yield f"{name}, step by step:"
            yield f"  A {_curve(values, other)}"
            yield f"  B {_curve(other, values)}"
    yield ""
    if seen.duel is None:
        yield f"no win rate of A against B: {seen.why_no_duel}"
        return
    rate = seen.duel.win_rate
    yield (
        f"A's {seen.duel.policies[0]} wins {rate.value:.1%} against B's {seen.duel.policies[1]} "
        f"(95%: {rate.low:.1%} to {rate.high:.1%}) by the true utility on {seen.duel.prompts} {seen.duel.split} prompts"
    )


def _value(m: "Metric | None") -> str:
    if m is None:
        return "-"
    return f"{m.value:.3g}" + (f" [{m.low:.3g}, {m.high:.3g}]" if m.low is not None and m.high is not None else "")


def _curve(values: Sequence[float], other: Sequence[float]) -> str:
    """A curve as a row of blocks, both runs on one scale, with its first and last value."""
    if not values:
        return "-"
    low, high = min([*values, *other]), max([*values, *other])
    blocks = [BLOCKS[round((v - low) / (high - low or 1.0) * (len(BLOCKS) - 1))] for v in values]
    return f"{values[0]:.3g} {''.join(blocks)} {values[-1]:.3g}"
