"""A run as an object: its folder, and what can be asked of it before, during and after. No model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from backflip.core.records import Metric
from backflip.cycle.export import answer_rows, vote_rows
from backflip.cycle.folder import PLAN, RunPath, find_run, has_begun, new_folder, run_store, start_run
from backflip.cycle.overview import Overview, overview, unfinished_run
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.wins import metrics_now
from backflip.store import Store

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Run:
    """A run. Holds nothing open: every question reads the folder anew, also while another process carries the run.

    Wherever a run's folder is asked for, a `Run` will do.

    >>> import backflip
    >>> run = backflip.open_run("runs/mine")
    >>> isinstance(run, backflip.Run)
    True
    >>> [m.round for m in run.metrics(name="monitor/win_rate")]
    [1, 2]
    >>> run.votes()[0]["rater_kind"]
    'persona'
    """

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def plan(self) -> Plan:
        """The plan in the run's folder. Raises: ConfigError when it cannot be read."""
        return read_plan(self.folder / PLAN)

    def overview(self) -> Overview:
        """Where the run stands, and its newest figures. Raises: ConfigError when its plan cannot be read; BusyError."""
        return overview(self.folder)

    def metrics(self, *, round: int | None = None, step: str | None = None, name: str | None = None) -> list[Metric]:
        """Measurements by round, step, tick and name; a filter left out matches all. Empty before the first round."""
        wanted = {"round": round, "step": step, "name": name}

        def question(store: Store) -> list[Metric]:
            found = metrics_now(store)
            return [m for m in found if all(w in (None, getattr(m, key)) for key, w in wanted.items())]

        return self._ask(question)

    def votes(self) -> list[dict[str, Any]]:
        """A row a vote, with the texts of both answers: the columns that `export_data` writes and explains."""
        return self._ask(vote_rows)

    def answers(self) -> list[dict[str, Any]]:
        """A row an answer, of every version of the policy: the columns that `export_data` writes."""
        return self._ask(answer_rows)

    def _ask(self, question: Callable[[Store], list[T]]) -> list[T]:
        plan = self.plan
        if not has_begun(self.folder, plan):
            return []
        with run_store(self.folder, plan) as store:
            return question(store)


def open_run(folder: RunPath | None = None, plan: Plan | None = None) -> Run:
    """The run in `folder`; with `plan`, made there if it is new.

    Without a folder the newest run below runs/ is meant, and with a plan the unfinished run that has this very plan,
    or else a new one.

    >>> import backflip
    >>> run = backflip.open_run("runs/first", backflip.plan_for(rounds=1))
    >>> run.folder.name, run.plan.rounds, run.overview().finished
    ('first', 1, False)

    Raises: ConfigError when there is no run, or it has another plan, or the folder cannot be made.
    """
    if plan is None:
        return Run(find_run(folder))
    root = Path(folder) if folder is not None else unfinished_run(plan) or new_folder("run")
    start_run(root, plan)
    return Run(root)
