"""Kill a run 30 times at random moments: is every vote still there once, and is the result the unbroken run's?

A tiny random model on the CPU with one thread, so that "the same" can mean every bit. Three runs, one a seed, each
killed (SIGKILL) ten times, at moments spread over the run's length, and started again until it finishes; `--quick`
kills one run five times.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
from kills import Runner, differences, fingerprint, run_with_kills, votes_wrong  # noqa: E402
from table import Row, part, raw_file, relative, write_results  # noqa: E402
from tiny_run import new_run, save_model  # noqa: E402

from backflip.store import open_store  # noqa: E402

COMMAND = "python bench/kill.py"
ROUNDS = 3


def measure_seed(seed: int, kills: int) -> dict[str, Any]:
    """Run once unbroken, then break runs with the same plan until `kills` kills have landed."""
    chance = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder, Runner() as runner:
        model = save_model(Path(folder) / "model")
        whole = new_run(Path(folder) / "whole", model, seed=seed, rounds=ROUNDS)
        began = time.monotonic()
        runner.run(whole)
        duration = time.monotonic() - began
        expected = fingerprint(whole)
        with open_store(whole / "run.db") as store:
            votes = len(store.vote_log())
        runs: list[dict[str, Any]] = []
        landed = 0
        while landed < kills:
            root = new_run(
                Path(folder) / f"broken-{len(runs)}",
                model,
                prompts=whole / "prompts.jsonl",
                seed=seed,
                rounds=ROUNDS,
            )
            moments = (chance.uniform(0.0, 2.0 / kills, kills - landed) * duration).tolist()
            broken = run_with_kills(runner, root, moments)
            landed += broken.kills
            with open_store(root / "run.db") as store:
                kept = len(store.vote_log())
            runs.append(
                {
                    "kills": broken.kills,
                    "during": broken.during,
                    "votes": kept,
                    "votes_wrong": votes_wrong(root),
                    "different": differences(fingerprint(root), expected),
                }
            )
            print(f"seed {seed}: {landed} of {kills} kills; during {', '.join(broken.during) or 'none'}", flush=True)
    return {"unbroken_s": duration, "compared": len(expected), "votes": votes, "runs": runs}


def main() -> None:
    """Measure, write the results, print them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--quick", action="store_true", help="one seed, five kills: about a minute")
    quick = options.parse_args().quick
    seeds, kills = ([0], 5) if quick else ([0, 1, 2], 10)
    settings = {"kills": kills, "rounds": ROUNDS}
    parts = {s: part("kill", f"seed-{s}", quick, settings, partial(measure_seed, s, kills)) for s in seeds}
    runs = [run for p in parts.values() for run in p["runs"]]
    landed = sum(run["kills"] for run in runs)
    broken = [run for run in runs if run["kills"]]
    raw = ", ".join(relative(raw_file("kill", f"seed-{s}", quick)) for s in seeds)
    lost = sum(abs(run["votes"] - p["votes"]) + len(run["votes_wrong"]) for p in parts.values() for run in p["runs"])
    same = sum(not run["different"] for run in broken)
    command = COMMAND + (" --quick" if quick else "")
    wanted = kills * len(seeds)
    rows = [
        Row(
            claim="kills survived",
            value=landed,
            unit=f"of {wanted} kills",
            bar=f">= {wanted}",
            command=command,
            raw=raw,
        ),
        Row(claim="votes lost or doubled", value=lost, unit="votes", bar="== 0", command=command, raw=raw),
        Row(
            claim="broken runs equal to the unbroken one bit for bit",
            value=same,
            unit=f"of {len(broken)} runs",
            bar=f"== {len(broken)}",
            command=command,
            raw=raw,
        ),
        Row(
            claim="different steps a kill fell into",
            value=len({d.split()[-1] for run in runs for d in run["during"]}),
            unit="of sample, rate, fit, optimise, measure, start, end",
            command=command,
            raw=raw,
        ),
    ]
    write_results("kill", rows, quick, seeds)


if __name__ == "__main__":
    main()
