"""Does the doctor foretell what a run takes? `backflip doctor` and then `backflip run`, on the same plans.

    python bench/doctor.py [--quick] [--repeats N]

Each plan is examined before its run, with the same threads; the factor is the larger of estimate and truth over the
smaller. The plans differ in what their time goes to: the demo's own first round, one that mostly samples, one that
mostly climbs by another optimiser. --quick takes small versions of the last two.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from table import ROOT, Row, part, raw_file, relative, write_results

from backflip.cycle.plan import Measure, Plan, Rate, plan_toml
from backflip.policies.plan import Optimise

FEW = Measure(monitor_prompts=10, monitor_answers=2, final_prompts=10, final_answers=2)
PLANS: dict[str, Plan] = {
    "one round of the demo": replace(Plan(), rounds=1),
    "mostly sampling": Plan(
        rounds=1, measure=Measure(monitor_prompts=30, final_prompts=60), ppo=replace(Plan().ppo, steps=1)
    ),
    "mostly RLOO": Plan(
        rounds=1, rate=Rate(pairs=48, held_out=8), measure=FEW, optimise=Optimise(by="rloo"),
        ppo=replace(Plan().ppo, steps=10),
    ),
}  # fmt: skip


def small(plan: Plan) -> Plan:
    """A plan whose run takes about a minute."""
    pairs = min(plan.rate.pairs, 48)
    return replace(
        plan, rate=replace(plan.rate, pairs=pairs, held_out=8), ppo=replace(plan.ppo, steps=min(plan.ppo.steps, 3)),
        measure=replace(plan.measure, monitor_prompts=10, final_prompts=20),
    )  # fmt: skip


def called(words: list[str], folder: str) -> tuple[dict[str, Any], float, float]:
    """What a command prints as JSON, the seconds it took and its peak memory in GB."""
    began = time.perf_counter()
    with open(f"{folder}/said", "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "backflip", *words, "--json"], cwd=folder, stdout=said,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"backflip {' '.join(words)} failed")
    return json.loads(Path(f"{folder}/said").read_text()), seconds, usage.ru_maxrss * 1024 / 1e9


def one_pair(plan: Plan) -> dict[str, float]:
    """A plan's estimate, and then its run."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "plan.toml").write_text(plan_toml(plan), encoding="utf-8")
        seen, doctor_s, _ = called(["doctor", "plan.toml"], folder)
        _, run_s, run_gb = called(["run", "plan.toml", "--dir", "run"], folder)
    return {
        "foreseen_s": sum(seen["seconds"].values()), "taken_s": run_s, "doctor_s": doctor_s,
        "foreseen_gb": seen["memory_gb"], "taken_gb": run_gb,
    }  # fmt: skip


def factor(a: float, b: float) -> float:
    """How far two figures are apart: 1 when they agree."""
    return max(a / b, b / a)


def rows_of(name: str, found: list[dict[str, float]], command: str, raw: str) -> list[Row]:
    """The rows of one plan: the worst of its repeats counts."""

    def row(claim: str, values: list[float], unit: str, bar: str = "") -> Row:
        low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
        return Row(
            claim=f"{claim}, {name}",
            value=max(values),
            low=low,
            high=high,
            unit=unit,
            bar=bar,
            command=command,
            raw=raw,
        )

    def factors(what: str) -> list[float]:
        return [factor(f[f"foreseen_{what}"], f[f"taken_{what}"]) for f in found]

    return [
        row("time foreseen within a factor", factors("s"), "factor", "<= 1.5"),
        row("memory foreseen within a factor", factors("gb"), "factor", "<= 1.5"),
        row("minutes taken", [f["taken_s"] / 60 for f in found], "minutes"),
        row("GB taken", [f["taken_gb"] for f in found], "GB"),
        row("seconds of the doctor", [f["doctor_s"] for f in found], "seconds"),
    ]


def main() -> None:
    """Examine and run each plan, then print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    plans = {n: small(p) for n, p in PLANS.items() if n != "one round of the demo"} if args.quick else PLANS
    command = "python bench/doctor.py" + (" --quick" if args.quick else "")
    rows: list[Row] = []
    for name, plan in plans.items():
        key = name.replace(" ", "-")
        found = [
            part("doctor", f"{key}-{i}", args.quick, {"plan": plan_toml(plan)}, partial(one_pair, plan))
            for i in range(args.repeats)
        ]
        raw = relative(raw_file("doctor", f"{key}-0", args.quick)).replace("-0.json", "-*.json")
        rows += rows_of(name, found, command, raw)
    facts = {"repeats": args.repeats, "threads": os.environ.get("OMP_NUM_THREADS", "all")}
    write_results("doctor", rows, args.quick, [plan.seed for plan in plans.values()][:1], facts)


if __name__ == "__main__":
    main()
