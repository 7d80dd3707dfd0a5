"""A run whose votes and figures are kept in PostgreSQL, and one database for one run."""

from pathlib import Path

import pytest
from tiny_run import new_run

from backflip.core.config import Unfit
from backflip.core.errors import ConfigError
from backflip.cycle.folder import run_store
from backflip.cycle.overview import overview, running
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.run import run_rounds
from backflip.cycle.talk import saved_version
from backflip.report import report_run


def figures(root: Path) -> dict[tuple[int, str, int, str], float]:
    """Every metric of a run."""
    with run_store(root, read_plan(root / "plan.toml")) as store:
        return {(m.round, m.step, m.tick, m.name): m.value for m in store.metrics()}


def test_a_run_in_postgresql_gives_the_figures_of_a_run_in_its_folder(
    tiny_model: Path,
    tmp_path: Path,
    postgresql_url: str,
) -> None:
    there = new_run(tmp_path / "there", tiny_model, rounds=1, database=postgresql_url)
    here = new_run(tmp_path / "here", tiny_model, rounds=1)
    assert not overview(there).rounds
    for root in (there, here):
        run_rounds(root)

    assert not (there / "run.db").exists()
    assert figures(there) == figures(here)
    assert len(figures(here)) > 50
    assert overview(there).finished
    assert overview(there).votes == overview(here).votes
    assert saved_version(there, read_plan(there / "plan.toml"), "policy").id == "policy-r1"
    assert report_run(there).counts == report_run(here).counts
    assert running(there) is None


def test_a_database_serves_one_run(tiny_model: Path, tmp_path: Path, postgresql_url: str) -> None:
    first = new_run(tmp_path / "first", tiny_model, rounds=1, database=postgresql_url)
    second = new_run(tmp_path / "second", tiny_model, rounds=1, database=postgresql_url)
    for _ in range(2):
        run_store(first, read_plan(first / "plan.toml")).close()

    with pytest.raises(ConfigError, match=r"holds another run already(.|\n)*Name an empty one"):
        run_rounds(second)


@pytest.mark.parametrize("url", ["postgresql://ann:secret@host/db", "mysql://host/db", "run.db"])
def test_a_database_is_a_postgresql_url_without_a_password(url: str) -> None:
    with pytest.raises(Unfit, match="database"):
        Plan(database=url)
