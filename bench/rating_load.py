"""Let 500 simulated raters vote at once while training keeps every core busy: how long do they wait, is a vote lost?

A real server on loopback in a process of its own; each rater thinks 1 to 3 s, keeps the next pairs at hand as the page
does, and sends a vote again under the same key until it is acknowledged. Beside them, another run trains a small model
on every core, at the server's own priority (`backflip run --people` gives way by ten). First a minute of load; then the
server is killed (SIGKILL) 50 times under the same load and started again. SQLite, and PostgreSQL too when --postgresql
names an empty database. `--quick`: 60 raters, 10 s, 3 kills.
"""

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
from table import Row, part, raw_file, relative, write_results  # noqa: E402
from tiny_run import all_prompts, plan_of, save_model, save_prompts  # noqa: E402
from voters import Server, lost_and_doubled, run_with_pairs, vote_together  # noqa: E402

from backflip.cycle.folder import start_run  # noqa: E402
from backflip.policies.plan import PPO  # noqa: E402

COMMAND = "python bench/rating_load.py"
THINK_S = (1.0, 3.0)
TEXT = "An answer about as long as those that people are asked to compare, which is some fifty words or so. " * 3
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "initializer_range": 0.02,
}
"""A model large enough that its products are shared out among the cores."""


class Training:
    """A run that trains in a process of its own for as long as the block lasts; then, how many cores it kept busy."""

    def __init__(self, folder: Path) -> None:
        model, prompts = save_model(folder / "model", **SMALL), save_prompts(folder / "prompts.jsonl", all_prompts())
        climb = PPO(steps=50, prompts=12, answers=16, learning_rate=1e-4)
        plan = plan_of(model, prompts, rounds=10_000, ppo=climb)
        self.root, self.log = folder / "run", folder / "said.txt"
        start_run(self.root, replace(plan, model=replace(plan.model, threads=0)))
        self.cores = 0.0

    def __enter__(self) -> Self:
        env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)}
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "backflip", "run", "--dir", str(self.root)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        while "optimise" not in (said := self.log.read_text()):
            assert self._process.poll() is None, said
            time.sleep(0.2)
        self._since = time.monotonic(), self._cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        self.cores = (self._cpu_s() - self._since[1]) / (time.monotonic() - self._since[0])
        self._process.kill()
        self._process.wait()

    def _cpu_s(self) -> float:
        """Seconds of processor time that the run has taken so far."""
        taken = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(taken[11]) + int(taken[12])) / os.sysconf("SC_CLK_TCK")


def measure(database: str, raters: int, seconds: float, kills: int) -> dict[str, Any]:
    """Vote under load, then under kills."""
    pairs = round(raters * (seconds + 2 * kills))  # at most: a rater votes every second
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, Training(Path(folder)) as training:
        root = run_with_pairs(Path(folder) / "rated", pairs, text=TEXT, database=database)
        with Server(root) as server:
            calm = asyncio.run(vote_together(server, raters, think_s=THINK_S, seconds=seconds))
            killed = asyncio.run(vote_together(server, raters, think_s=THINK_S, seconds=1.0, kills=kills, seed=1))
        lost, doubled = lost_and_doubled(root, [*calm.acknowledged, *killed.acknowledged])
        for name, times in (("vote", calm.vote_s), ("pairs", calm.pairs_s)):
            for share in (50, 99):
                found[f"p{share}_{name}_ms"] = 1000 * float(np.percentile(times, share))
    return found | {
        "training_cores": training.cores,
        "votes_per_s": len(calm.acknowledged) / seconds,
        "errors": sum(calm.errors.values()) + sum(killed.errors.values()),
        "which_errors": dict((calm.errors + killed.errors).most_common(20)),
        "acknowledged": [len(calm.acknowledged), len(killed.acknowledged)],
        "lost": lost,
        "doubled": doubled,
    }


def rows_of(store: str, found: dict[str, Any], kills: int, more: dict[str, str]) -> list[Row]:
    """What is claimed of one store."""
    figures = [
        ("cores that training kept busy beside it", found["training_cores"], "cores", ""),
        ("votes per second", found["votes_per_s"], "votes / s", ""),
        ("p50 vote ms", found["p50_vote_ms"], "ms", ""),
        ("p99 vote ms", found["p99_vote_ms"], "ms", "<= 1000"),
        ("p99 next pairs ms", found["p99_pairs_ms"], "ms", "<= 1000"),
        ("errors", found["errors"], "outside kills", "== 0"),
        (f"acknowledged votes lost after {kills} kills", found["lost"], "votes", "== 0"),
        ("votes doubled", found["doubled"], "votes", "== 0"),
    ]
    return [
        Row(claim=f"{store}: {claim}", value=value, unit=unit, bar=bar, **more) for claim, value, unit, bar in figures
    ]


def main() -> None:
    """Measure, write the results, print them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--quick", action="store_true", help="60 raters, 10 s, 3 kills: about a minute")
    options.add_argument("--postgresql", default="", help="URL of an empty database, to be measured too")
    given = options.parse_args()
    raters, seconds, kills = (60, 10.0, 3) if given.quick else (500, 60.0, 50)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    settings = {"raters": raters, "seconds": seconds, "kills": kills, "think_s": THINK_S, "beside": "a run"}
    stores = ({"PostgreSQL": given.postgresql} if given.postgresql else {}) | {"SQLite": ""}
    rows: list[Row] = []
    for store, database in stores.items():
        work = partial(measure, database, raters, seconds, kills)
        found = part("rating_load", store, given.quick, settings | {"cores": os.cpu_count()}, work)
        raw = relative(raw_file("rating_load", store, given.quick))
        more = {"command": COMMAND + (" --quick" if given.quick else ""), "raw": raw}
        rows += rows_of(store, found, kills, more)
    write_results("rating_load", rows, given.quick, [0])


if __name__ == "__main__":
    main()
