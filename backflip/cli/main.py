"""Every command, and how errors are printed.

Torch and transformers are imported inside the commands that need them, so that `--help` answers at once.
"""

import os
import sys
from typing import Annotated

import typer

from backflip import __version__
from backflip.cli.alarm import alarm
from backflip.cli.budget import budget
from backflip.cli.chat import chat
from backflip.cli.compare import compare
from backflip.cli.demo import demo
from backflip.cli.doctor import doctor
from backflip.cli.export import export
from backflip.cli.forget import forget
from backflip.cli.goodhart import goodhart
from backflip.cli.import_ import import_
from backflip.cli.init import init
from backflip.cli.rate import rate
from backflip.cli.raters import raters
from backflip.cli.report import report
from backflip.cli.run import run
from backflip.cli.start import STOP, stopped
from backflip.cli.status import status
from backflip.cli.terminal import Stopped, err
from backflip.core.errors import BackflipError, Paused
from backflip.core.memory import memory_told

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

app = typer.Typer(
    name="backflip",
    help="Turns people's judgements into a better model, and shows where the score stops meaning what you want.",
    epilog="Without a run folder the newest run is meant. Every command explains its options with --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, init, doctor, run, rate, status, raters, budget, report, compare, chat, forget, goodhart):
    app.command()(command)
app.command("import")(import_)
app.add_typer(export, name="export")
app.add_typer(alarm, name="alarm")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options that stand before a command."""


def main() -> int:
    """Run the command in `sys.argv`; the process's exit code.

    A BackflipError is printed plainly, without a traceback; any other exception is a fault of ours and keeps it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with memory_told("the command worked"):
            app(prog_name="backflip")
    except (Paused, Stopped) as e:
        err(str(e))
        return e.exit_code
    except BackflipError as e:
        if STOP.number is not None:  # the interrupt fell into a library that made another error of it
            err(stopped())
            return INTERRUPTED
        err(f"backflip: {e}")
        return e.exit_code
    except SystemExit as e:
        if e.code == INTERRUPTED:
            err(stopped())
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
