"""Has the demo learned? Three seeds of `backflip demo`, each against the untouched model on the final prompts.

    python bench/demo.py [--quick] [--seeds 0,1,2] [--parallel N] [--threads N]

A run that was cut off carries on. Time and memory are those of one more demo, `backflip demo` itself, alone on
the machine, in an empty folder with an empty model cache. --quick runs one seed with fewer prompts and steps,
and leaves the rows about the whole demo's time out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from table import ROOT, Row, code, part, raw_file, relative, write_results

from backflip.cycle.baselines import answers_path, baseline_utility
from backflip.cycle.folder import DATABASE, PLAN, start_run
from backflip.cycle.measure import load_readings, readings_path, side
from backflip.cycle.plan import Model, Plan, plan_for, read_plan
from backflip.measure.compare import Side, distinct_ratio, largest_share
from backflip.rewards.model import load_reward
from backflip.stats.bootstrap import Interval, bootstrap_mean, paired_difference, win_shares
from backflip.store import open_store
from backflip.tasks import TASKS

OUT = ROOT / "bench" / "out"
SIDES = ("policy", "reference")


def plan_of(task: str, seed: int, quick: bool, threads: int) -> Plan:
    """The demo's own plan for a task; smaller when quick."""
    plan = replace(plan_for(task), seed=seed, model=Model(threads=threads))
    if not quick:
        return plan
    return replace(
        plan,
        rounds=1,
        rate=replace(plan.rate, pairs=96, held_out=16),
        ppo=replace(plan.ppo, steps=5),
        measure=replace(plan.measure, monitor_prompts=10, final_prompts=25),
    )


RUN = "import sys; from pathlib import Path; from backflip.cycle.run import run_rounds; run_rounds(Path(sys.argv[1]))"
PLAIN = "from backflip.models import attention, linear; attention.MOST_SCORES = 0; linear.available = lambda _: False; "
"""Turns our own kernels off: PyTorch's eager ones do the work."""


def one_run(name: str, task: str, seed: int, quick: bool, threads: int, *, plain: bool = False) -> dict[str, Any]:
    """Run one seed in a process of its own; its time, its peak memory and the tables of its final answers.

    With `plain`, in float32 and by PyTorch's eager kernels.
    """
    root = OUT / f"{name}-{code()}-{'quick-' if quick else ''}{'plain-' if plain else ''}s{seed}-t{threads}"
    plan = plan_of(task, seed, quick, threads)
    if plain:
        plan = replace(plan, model=replace(plan.model, dtype="float32"))
    start_run(root, plan)
    script = PLAIN + RUN if plain else RUN
    threads_env = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    process = subprocess.Popen([sys.executable, "-c", script, str(root)], env=os.environ | threads_env)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the run of seed {seed} failed; see {root}")
    return {
        "tables": {k: to_json(s) for k, s in zip(SIDES, final_sides(root), strict=True)},
        "baselines": baseline_tables(root),
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "steps_s": round_seconds(root),
    }


def one_demo(task: str) -> dict[str, Any]:
    """Run `backflip demo` as a newcomer does; its time, its peak memory and when the first vote was there."""
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        env = os.environ | {"BACKFLIP_CACHE": f"{folder}/cache", "PYTHONPATH": str(ROOT)}
        began = time.time()
        process = subprocess.Popen([sys.executable, "-m", "backflip", "demo", "--task", task], env=env, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit("backflip demo failed")
        [root] = (Path(folder) / "runs").iterdir()
        return {
            "seconds": time.time() - began,
            "first_vote_s": first_vote_at(root) - began,
            "peak_gb": usage.ru_maxrss * 1024 / 1e9,
            "steps_s": round_seconds(root),
        }


def final_sides(root: Path) -> tuple[Side, Side]:
    """(policy, reference) answers to the final prompts of a finished run."""
    plan = read_plan(root / PLAN)
    utility = TASKS[plan.task.name].utility(plan.task.weights or None)
    with open_store(root / DATABASE) as store:
        prompts = {p.id: p for p in store.prompts()}
        reward = load_reward(root / "rounds" / f"r{plan.rounds}" / "reward")
        found = []
        for version in (f"policy-r{plan.rounds}", "reference"):
            samples = store.samples(purpose="final", policy=version)
            found.append(side(load_readings(readings_path(root, samples)), samples, reward, utility, prompts))
    return found[0], found[1]


def baseline_tables(root: Path) -> dict[str, Any]:
    """(P, H) true utilities of each baseline of the task on the final prompts, in the order of the sides' rows."""
    plan = read_plan(root / PLAN)
    task = TASKS[plan.task.name]
    utility = task.utility(plan.task.weights or None)
    with open_store(root / DATABASE) as store:
        prompts = {p.id: p for p in store.prompts()}
        asked = dict.fromkeys(s.prompt_id for s in store.samples(purpose="final", policy="reference"))
    rows = [prompts[i] for i in asked]
    return {b.name: baseline_utility(answers_path(root, "final", b), utility, rows).tolist() for b in task.baselines}


def first_vote_at(root: Path) -> float:
    """When the first vote was cast, in seconds since the epoch."""
    with open_store(root / DATABASE) as store:
        return min(v.at for v in store.vote_log())


def round_seconds(root: Path) -> dict[str, dict[str, float]]:
    """Seconds of each step by round."""
    with open_store(root / DATABASE) as store:
        return {str(r): store.seconds(r) for r in store.rounds()}


def to_json(s: Side) -> dict[str, Any]:
    """A side as plain lists."""
    out = {n: np.asarray(getattr(s, n)).tolist() for n in ("utility", "proxy", "length", "logp_ref", "kl")}
    return out | {"attributes": {n: a.tolist() for n, a in s.attributes.items()}, "texts": [list(t) for t in s.texts]}


def from_json(d: dict[str, Any]) -> Side:
    """The side `to_json` wrote."""
    a = {n: np.array(d[n]) for n in ("utility", "proxy", "length", "logp_ref", "kl")}
    return Side(
        a["utility"],
        {n: np.array(v) for n, v in d["attributes"].items()},
        a["proxy"],
        a["length"],
        a["logp_ref"],
        a["kl"],
        d["texts"],
    )


def rows_of(
    name: str, task: str, parts: list[dict[str, Any]], clock: dict[str, Any] | None, seeds: list[int], command: str
) -> list[Row]:
    """The claims, worded as the project states them, over the seeds' tables."""
    pairs = [tuple(from_json(p["tables"][k]) for k in SIDES) for p in parts]
    quick = clock is None
    raw = relative(raw_file(name, f"seed{seeds[0]}", quick)).replace(f"seed{seeds[0]}", "seed*")
    rows: list[Row] = []

    def add(claim: str, i: Interval | float, unit: str, bar: str) -> None:
        v, low, high = (i.value, i.low, i.high) if isinstance(i, Interval) else (float(i), None, None)
        rows.append(Row(claim=claim, value=v, low=low, high=high, unit=unit, bar=bar, command=command, raw=raw))

    def pooled(per_prompt: Callable[[Side, Side], Any]) -> Interval:
        return bootstrap_mean(np.mean([per_prompt(p, r) for p, r in pairs], axis=0), 0)

    add(
        f"win rate pooled over {len(seeds)} seeds",
        pooled(lambda p, r: win_shares(p.utility, r.utility)),
        "share",
        ">= 0.65",
    )
    for seed, (p, r) in zip(seeds, pairs, strict=True):
        add(
            f"win rate, seed {seed}: interval above 0.5",
            bootstrap_mean(win_shares(p.utility, r.utility), 0),
            "share",
            "low > 0.5",
        )
    add("kl nats", pooled(lambda p, r: p.kl.mean(1)), "nats per answer", "<= 10")
    worst = max((bootstrap_mean(p.kl.mean(1), 0) for p, _ in pairs), key=lambda i: i.value)
    add("kl nats, the seed furthest away", worst, "nats per answer", "<= 10")
    gains = {n: attribute_gain(pairs, n) for n in pairs[0][0].attributes}
    for attribute, gain in gains.items():
        add(f"gain of {attribute}", gain, "0 to 1", "")
    add("attributes risen with interval", sum(g.low > 0 for g in gains.values()), "attributes", ">= 3")
    weights = TASKS[task].utility(None).weights
    add(
        "largest share of one attribute in the gain",
        largest_share({n: g.value for n, g in gains.items()}, weights),
        "share",
        "<= 0.5",
    )
    ratios = [distinct_ratio(p.texts, r.texts, 2, seed=0) for p, r in pairs]
    add("distinct-2 ratio to reference", mean_interval(ratios), "ratio", ">= 0.8")
    add("reference nats per token added", pooled(nats_per_prompt), "nats per token", "<= 0.7")
    add("mean length of an answer", pooled(lambda p, r: p.length.mean(1)), "tokens", "")
    for baseline in TASKS[task].baselines:
        theirs = [np.array(p["baselines"][baseline.name]) for p in parts]
        shares = [
            [win_shares(s.utility, t) for s, t in zip(side, theirs, strict=True)] for side in zip(*pairs, strict=True)
        ]
        for who, share in zip(SIDES, shares, strict=True):
            add(
                f"win rate of the {who} against {baseline.name}", bootstrap_mean(np.mean(share, axis=0), 0), "share", ""
            )
    add("peak memory", max(p["peak_gb"] for p in [*parts, *([clock] if clock else [])]), "GB", "<= 6")
    if clock:
        raw = relative(raw_file(name, "clock", quick))
        add("minutes of one demo", clock["seconds"] / 60, "minutes", "<= 30")
        add("seconds to the first vote", clock["first_vote_s"], "seconds", "<= 60")
    return rows


def attribute_gain(pairs: list[tuple[Side, ...]], name: str) -> Interval:
    """Rise of one attribute, averaged over seeds and answers, prompts resampled."""
    after, before = (np.mean([s[k].attributes[name].mean(1) for s in pairs], axis=0) for k in (0, 1))
    return paired_difference(after, before, 0)


def nats_per_prompt(p: Side, r: Side) -> Any:
    """(P,) what a token of the policy's answers costs the reference more than one of its own, in nats."""
    return -p.logp_ref.sum(1) / p.length.sum(1) + r.logp_ref.sum(1) / r.length.sum(1)


def mean_interval(intervals: list[Interval]) -> Interval:
    """Mean of the values; bounds as far from it as the widest single interval is from its own."""
    value = float(np.mean([i.value for i in intervals]))
    reach = max(i.high - i.low for i in intervals) / 2
    return Interval(value, value - reach, value + reach)


def main(name: str = "demo", task: str = "requests") -> None:
    """Run the parts that are missing, then print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", default="")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    seeds = [int(s) for s in args.seeds.split(",") if s] or ([0] if args.quick else [0, 1, 2])
    OUT.mkdir(parents=True, exist_ok=True)

    def make(seed: int) -> dict[str, Any]:
        settings = {"seed": seed, "threads": args.threads, "parallel": args.parallel}
        run = partial(one_run, name, task, seed, args.quick, args.threads)
        result = part(name, f"seed{seed}", args.quick, settings, run)
        print(json.dumps({"seed": seed, "peak_gb": round(result["peak_gb"], 2)}), flush=True)
        return result

    with ThreadPoolExecutor(args.parallel) as pool:
        parts = list(pool.map(make, seeds))
    clock = None if args.quick else part(name, "clock", False, {}, partial(one_demo, task))
    command = f"python bench/{name}.py" + (" --quick" if args.quick else "")
    command += f" --parallel {args.parallel} --threads {args.threads}" if args.parallel > 1 else ""
    rows = rows_of(name, task, parts, clock, seeds, command)
    write_results(name, rows, args.quick, seeds, {"parallel": args.parallel, "threads": args.threads})


if __name__ == "__main__":
    main()
