"""`backflip init`: a commented plan to start from."""

from pathlib import Path
from typing import Annotated

import typer

from backflip.cli.terminal import TaskName
from backflip.core.errors import ConfigError


def init(
    plan: Annotated[Path, typer.Argument(help="The file to write; one that exists is never overwritten.")] = Path(
        "plan.toml"
    ),
    task: TaskName = "requests",
) -> None:
    """Write a plan with every setting at its default, each explained in a comment."""
    if plan.exists():
        raise ConfigError(f"{plan} exists and is left as it is.\nGive another name: backflip init other.toml")
    from backflip.core.new_file import write_new
    from backflip.cycle.plan import plan_for
    from backflip.cycle.plan_docs import commented_plan

    text = commented_plan(str(plan), plan_for(task))

    write_new(plan, text)
    typer.echo(f"{plan} is written: change what you like, then start it with: backflip run {plan}")
