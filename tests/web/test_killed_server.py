"""A server killed under load loses no vote that it acknowledged; also with PostgreSQL."""

import asyncio
from pathlib import Path

import pytest
from voters import Server, lost_and_doubled, run_with_pairs, vote_together

KILLS = 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_acknowledged_vote_is_lost_or_doubled(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    database = str(request.getfixturevalue("postgresql_url")) if kind == "postgresql" else ""
    root = run_with_pairs(tmp_path / "run", 1500, database=database)
    with Server(root) as server:
        tally = asyncio.run(vote_together(server, 8, think_s=(0.0, 0.04), seconds=1.0, kills=KILLS))

    assert not tally.errors
    assert len(tally.acknowledged) > 100
    assert lost_and_doubled(root, tally.acknowledged) == (0, 0)
