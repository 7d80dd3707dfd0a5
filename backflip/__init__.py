"""Backflip turns people's judgements into a better model, and shows where the score stops meaning what you want.

The names below are what a notebook needs; docs/python.md shows them at work. Each is imported when it is first used,
so that `import backflip` and the command line need no torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BackflipError",
    "Paused",
    "PlainWatcher",
    "Plan",
    "Run",
    "compare_runs",
    "export_data",
    "export_policy",
    "import_votes",
    "load_policy",
    "load_reward",
    "open_run",
    "plan_for",
    "read_plan",
    "report_run",
    "run_rounds",
]

_HOME = {
    "BackflipError": "core.errors",
    "Paused": "core.errors",
    "PlainWatcher": "cli.progress",
    "Plan": "cycle.plan",
    "Run": "cycle.opened",
    "compare_runs": "cycle.comparison",
    "export_data": "cycle.export",
    "export_policy": "cycle.publish",
    "import_votes": "cycle.intake",
    "load_policy": "cycle.talk",
    "load_reward": "cycle.texts",
    "open_run": "cycle.opened",
    "plan_for": "cycle.plan",
    "read_plan": "cycle.plan",
    "report_run": "report.of_run",
    "run_rounds": "cycle.run",
}
"""Where each name lives."""

# oneDNN keeps what it compiled for each shape it has met, 1024 shapes deep, and a run meets new shapes at every step:
# some 50 MB a step were never given back (docs/log.md). It reads these when torch is loaded.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")

if TYPE_CHECKING:
    from backflip.cli.progress import PlainWatcher
    from backflip.core.errors import BackflipError, Paused
    from backflip.cycle.comparison import compare_runs
    from backflip.cycle.export import export_data
    from backflip.cycle.intake import import_votes
    from backflip.cycle.opened import Run, open_run
    from backflip.cycle.plan import Plan, plan_for, read_plan
    from backflip.cycle.publish import export_policy
    from backflip.cycle.run import run_rounds
    from backflip.cycle.talk import load_policy
    from backflip.cycle.texts import load_reward
    from backflip.report.of_run import report_run
else:  # hidden from type checkers, for whom every name would exist otherwise

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"backflip.{_HOME[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
