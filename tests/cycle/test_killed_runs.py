"""A run that is killed at any moment and started again ends as the run that nobody touched."""

import time
from pathlib import Path

import numpy as np
import pytest
from kills import Runner, differences, fingerprint, run_with_kills, votes_wrong
from tiny_run import new_run

KILLS = 5


@pytest.mark.slow
def test_a_killed_run_ends_as_the_unbroken_one_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    with Runner() as runner:
        began = time.monotonic()
        whole = new_run(tmp_path / "whole", tiny_model)
        runner.run(whole)
        duration = time.monotonic() - began
        expected = fingerprint(whole)
        assert votes_wrong(whole) == []

        kills, tries = 0, 0
        while kills < KILLS:
            tries += 1
            assert tries <= 10
            root = new_run(tmp_path / f"broken-{tries}", tiny_model, prompts=whole / "prompts.jsonl")
            moments = chance.uniform(0.0, 2.0 / KILLS, KILLS - kills) * duration
            kills += run_with_kills(runner, root, moments.tolist()).kills

            assert votes_wrong(root) == []
            assert differences(fingerprint(root), expected) == []


def test_a_fingerprint_sees_one_changed_bit(tiny_model: Path, tmp_path: Path) -> None:
    from backflip.core.records import Metric
    from backflip.cycle.run import run_rounds
    from backflip.store import open_store

    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    run_rounds(root)
    before = fingerprint(root)
    with open_store(root / "run.db") as store:
        metric = store.metrics(step="measure")[0]
        with store.begin() as tx:
            tx.add_metrics([Metric(**(vars(metric) | {"value": float(np.nextafter(metric.value, 9.0))}))])

    name = f"metric 1 measure {metric.tick} {metric.name}"
    assert differences(fingerprint(root), before) == [name]
