"""The over-optimisation instrument: so far what needs no model, the estimator's error and the alarm's false alarms.

    python bench/overoptimisation.py [--quick]

The rows measured on a model (seeds that rise and fall, best of n, planted hacks, the alarm's regret) are not here yet.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from table import Row, part, raw_file, relative, write_results

from backflip.stats.best_of_n import best_of_n_curve
from backflip.stats.falling import first_alarm, power, simulated

Array = NDArray[np.float64]
COMMAND = "python bench/overoptimisation.py"
NAME = "overoptimisation"
D = np.arange(0.4, 6.01, 0.4)
"""Distances of the looks on simulated paths, in square roots of nats."""
JUDGED, RATE = 24, 0.05
NULLS: dict[str, Array] = {
    "zero slope": np.full(len(D), 0.5),
    "small positive slope": 0.5 + 0.004 * np.arange(len(D)),
    "rise, then a plateau": np.minimum(0.62, 0.5 + 0.03 * np.arange(len(D))),
}


def estimator_error() -> float:
    """Largest difference between the estimator and the mean over every choice of n of 12 answers."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(5):
        proxy, gold = rng.normal(size=12), rng.normal(size=12)
        ns = range(1, 13)
        found = best_of_n_curve(proxy[None], gold[None], list(ns))[0]
        brute = [np.mean([gold[max(c, key=proxy.__getitem__)] for c in combinations(range(12), n)]) for n in ns]
        worst = max(worst, float(np.abs(found - brute).max()))
    return worst


def false_alarms(chance: Array, paths: int) -> float:
    """Share of simulated paths that never fall on which the alarm rings at any look."""
    rang = (first_alarm(simulated(D, chance, JUDGED, seed), RATE) is not None for seed in range(paths))
    return float(np.mean(list(rang)))


def main() -> None:
    """Measure what is not on the disk yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer paths")
    quick: bool = parser.parse_args().quick
    paths, began, rows = 100 if quick else 2000, time.monotonic(), []

    def measured(key: str, make: Callable[[], Any]) -> Any:
        return part(NAME, key, quick, {"paths": paths, "judged": JUDGED, "rate": RATE}, make)

    def row(claim: str, value: float, key: str, unit: str, bar: str = "") -> None:
        raw = relative(raw_file(NAME, key, quick))
        rows.append(Row(claim=claim, value=value, unit=unit, bar=bar, command=COMMAND, raw=raw))

    error = measured("estimator", estimator_error)
    row("unbiased estimator error vs brute force", error, "estimator", "gold", "<= 1e-9")
    for name, chance in NULLS.items():
        key = "false-alarms-" + name.replace(",", "").replace(" ", "-")
        share = measured(key, partial(false_alarms, chance, paths))
        row(f"false alarm rate, {name}", share, key, f"of {paths} paths", f"<= {RATE}")
    bought = measured("power", lambda: power(JUDGED, paths=min(paths, 500))._asdict())
    row("simulated climbs caught", bought["caught"], "power", "share; peak 60% at 3.2 nats, end at 36")
    row("simulated labels used", bought["votes"], "power", "judgements, median")
    minutes = (time.monotonic() - began) / 60
    rows.append(Row(claim="bench minutes", value=minutes, unit="minutes", bar="<= 45", command=COMMAND))
    write_results(NAME, rows, quick, [0])


if __name__ == "__main__":
    main()
