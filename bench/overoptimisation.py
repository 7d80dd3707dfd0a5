"""The over-optimisation instrument, measured: does gold rise and fall, is that seen in time, and what does it cost?

    python bench/overoptimisation.py DATA [--quick] [--parallel N] [--smollm2]

DATA is a folder that holds `stories260k`, a story model of 264 thousand weights in Hugging Face format. What is
measured on SmolLM2-135M takes longer and only runs with --smollm2. Every part is kept: start again to go on. How the
alarm looks (steps between looks, judgements) and the rival's KL were settled on seeds 0 to 4, and the rule for its last
look after seeds 5 to 14 had been seen: those below are others.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import best_of
import hacks
import numpy as np
import torch
from climbs import Plan as Climb
from climbs import World, climb
from numpy.typing import NDArray
from overoptimisation_rows import climb_rows, law_rows, model_free_rows, smollm2_rows
from requests_world import Requests
from stories import Stories
from table import Missing, part, write_results

from backflip.core.protocols import Scorer
from backflip.rewards.conservative import Caution, Paid
from backflip.stats.best_of_n import best_of_n_curve
from backflip.stats.falling import first_alarm, power, simulated

Array = NDArray[np.float64]
COMMAND = "python bench/overoptimisation.py DATA"
NAME = "overoptimisation"
D = np.arange(0.4, 6.01, 0.4)
"""Distances of the looks on simulated paths, in square roots of nats."""
JUDGED, RATE = 24, 0.05
NULLS: dict[str, Array] = {
    "zero slope": np.full(len(D), 0.5),
    "small positive slope": 0.5 + 0.004 * np.arange(len(D)),
    "rise then a plateau": np.minimum(0.62, 0.5 + 0.03 * np.arange(len(D))),
}
VOTES = 1000
STORIES = Climb(steps=60, most_kl=60.0, every=2)
SMOLLM2 = Climb(steps=40, most_kl=60.0, every=3, drawn=96, fresh=344)
WARY_ARMS = {"worst": "worst case", "weighted": "uncertainty-weighted"}
"""Climbs paid by a conservative reward, and its row's name."""
LEASH = 0.3
"""Reward lost per nat in the climbs with a KL penalty."""


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


@cache
def stories(data: str, answers: int) -> Stories:
    """The story model's world, once a process."""
    return Stories(Path(data) / "stories260k", answers)


@cache
def offered(data: str, rated: int, answers: int) -> best_of.Offered:
    """Answers to choose the best of, once a process."""
    return best_of.Offered(stories(data, rated), answers)


@cache
def requests() -> Requests:
    """SmolLM2's world, once a process."""
    return Requests()


def story_climb(st: Stories, arm: str, seed: int, plan: Climb) -> dict[str, Any]:
    """One climb on the story model: `arm` says which reward, or which fault was planted in it."""
    votes = st.votes(2 * VOTES, seed)
    fitted = st.fit(votes[:VOTES], seed)
    members = best_of.ensemble_of(st, fitted, seed)
    learned = st.scorer(fitted, members)
    scorer: Scorer = learned
    if arm in WARY_ARMS:
        scorer = Paid(learned, Caution(best_of.WARY[WARY_ARMS[arm]], 0.0, 0.0))
    elif arm in hacks.SEEN | hacks.UNSEEN:
        scorer = hacks.Planted(learned, (hacks.SEEN | hacks.UNSEEN)[arm], st.rated.texts)
    check = st.scorer(st.fit(votes[VOTES:], seed))
    return climb(st.world(LEASH if arm == "leash" else 0.0), scorer, plan, seed, check)


def smollm2_climb(arm: str, seed: int, plan: Climb) -> dict[str, Any]:
    """One climb on SmolLM2: a reward learned from few votes, or one that pays for agreement too."""
    world: World = requests().world()
    learned = requests().learned(300, seed)
    texts = [a.text for a in requests().answers]
    scorer = hacks.Planted(learned, hacks.agreement, texts) if arm == "agreement" else learned
    return climb(world, scorer, plan, seed)


def parts_of(data: str, quick: bool) -> dict[str, Callable[[], Any]]:
    """Everything that is measured on the story model, by key; functions that can be sent to another process."""
    rated, many = (160, 512) if not quick else (64, 64)
    seeds, votes = range(15, 25) if not quick else range(15, 17), best_of.VOTES if not quick else (200, 1000)
    plan = STORIES if not quick else STORIES._replace(steps=30, drawn=64, fresh=128)
    st, off = partial(stories, data, rated), partial(offered, data, rated, many)
    out: dict[str, Callable[[], Any]] = {}
    for n in votes:
        out[f"best-of-votes-{n}"] = partial(_call, best_of.of_votes, off, n, range(3))
    out["best-of-blind"] = partial(_call, best_of.of_blind, off, range(3))
    out["best-of-small"] = partial(_call, best_of.of_small, off, VOTES, range(3))
    out["best-of-ensemble"] = partial(_call, best_of.of_ensemble, off, VOTES, range(5))
    for seed in seeds:
        out[f"climb-free-{seed}"] = partial(_call, story_climb, st, "free", seed, plan)
    for fault in [*hacks.SEEN, *hacks.UNSEEN] if not quick else list(hacks.UNSEEN):
        out[f"hack-{fault.replace(' ', '-')}"] = partial(_call, story_climb, st, fault, 15, plan)
    for seed in seeds:
        out[f"climb-leash-{seed}"] = partial(_call, story_climb, st, "leash", seed, plan)
    for arm in WARY_ARMS:
        for seed in list(seeds)[:3]:
            out[f"climb-{arm}-{seed}"] = partial(_call, story_climb, st, arm, seed, plan)
    return out


def smollm2_parts(quick: bool) -> dict[str, Callable[[], Any]]:
    """What is measured on SmolLM2, by key."""
    plan = SMOLLM2 if not quick else SMOLLM2._replace(steps=6, drawn=24, fresh=48)
    return {
        f"smollm2-{arm}-{seed}": partial(smollm2_climb, arm, seed, plan)
        for seed in (range(15, 18) if not quick else (15,))
        for arm in ("reward", "agreement")
    }


def _call(do: Callable[..., Any], first: Callable[[], Any], *rest: Any) -> Any:
    """`do` with what `first` makes: it is made where it is needed."""
    return do(first(), *rest)


def kept(key: str, quick: bool, settings: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """A part and the seconds it took, from the disk or made now; one thread."""
    torch.set_num_threads(1)

    def timed() -> dict[str, Any]:
        began = time.monotonic()
        return {"found": make(), "seconds": time.monotonic() - began}

    return part(NAME, key, quick, settings, timed)


def measure(parts: Mapping[str, Callable[[], Any]], quick: bool, workers: int, plan: Climb) -> dict[str, Any]:
    """Every part, `workers` at a time; told as they come."""
    settings = {"votes": VOTES, "leash": LEASH, **plan._asdict()}
    done: dict[str, Any] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        going = {pool.submit(kept, key, quick, settings, make): key for key, make in parts.items()}
        for job in as_completed(going):
            done[going[job]] = job.result()
            print(f"{len(done)} of {len(parts)}  {going[job]}  {done[going[job]]['seconds']:.0f} s", flush=True)
    return done


def recorded(parts: Mapping[str, Callable[[], Any]], quick: bool, plan: Climb) -> dict[str, Any]:
    """The parts that are on the disk; none where one is missing."""

    def refuse() -> Any:
        raise Missing

    settings = {"votes": VOTES, "leash": LEASH, **plan._asdict()}
    try:
        return {key: kept(key, quick, settings, refuse) for key in parts}
    except Missing:
        return {}


def main() -> None:
    """Measure what is not on the disk yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder that holds stories260k")
    parser.add_argument("--quick", action="store_true", help="fewer seeds, answers and paths")
    parser.add_argument("--parallel", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--smollm2", action="store_true", help="also what is measured on SmolLM2-135M")
    args = parser.parse_args()
    if not (Path(args.data) / "stories260k").is_dir():
        parser.error(f"{args.data} holds no folder stories260k: name the folder with the data")
    quick: bool = args.quick
    paths = 100 if quick else 2000
    free: dict[str, Callable[[], Any]] = {"estimator": estimator_error}
    free |= {f"false-alarms-{n.replace(' ', '-')}": partial(false_alarms, c, paths) for n, c in NULLS.items()}
    free["power"] = partial(_power, min(paths, 500))
    ours = parts_of(args.data, quick)
    done = measure(free | ours, quick, args.parallel, STORIES)
    on_smollm2 = smollm2_parts(quick)
    other = measure(on_smollm2, quick, 1, SMOLLM2) if args.smollm2 else recorded(on_smollm2, quick, SMOLLM2)
    minutes = sum(done[k]["seconds"] for k in free | ours) / 60 / args.parallel
    found = {k: v["found"] for k, v in (done | other).items()}
    rows = [
        *model_free_rows(found, COMMAND, quick, paths),
        *law_rows(found, COMMAND, quick),
        *climb_rows(found, COMMAND, quick, minutes, args.parallel),
        *smollm2_rows(found, COMMAND + " --smollm2", quick, sum(v["seconds"] for v in other.values()) / 60),
    ]
    seeds = sorted({int(k.rsplit("-", 1)[1]) for k in found if k.startswith("climb-")})
    write_results(NAME, rows, quick, seeds, {"climbs": STORIES._asdict(), "smollm2": SMOLLM2._asdict()})


def _power(paths: int) -> dict[str, float]:
    return power(JUDGED, paths=paths)._asdict()


if __name__ == "__main__":
    main()
