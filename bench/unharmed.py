"""Does the fast path learn as well? The demo in bfloat16 by our kernels, and in float32 by PyTorch's eager ones.

The same seeds and prompts for both; the fast runs are those of `bench/demo.py`. `bench/engine.py --learning` makes the
parts that are missing, some 20 minutes each. Knows nothing of the other rows.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from demo import OUT, from_json, one_demo, one_run
from table import Missing, Row, part, raw_file, relative

from backflip.stats.bootstrap import bootstrap_mean

SEEDS = (0, 1, 2)
TASK = "requests"


def kept(name: str, key: str, settings: dict[str, Any], make: Callable[[], Any], wanted: bool) -> Any:
    """The part as it lies on the disk, or made now when it is `wanted`. Raises: Missing."""

    def made() -> Any:
        if not wanted:
            raise Missing
        print(f"{name}.{key}: a run of the demo", flush=True)
        return make()

    OUT.mkdir(parents=True, exist_ok=True)
    return part(name, key, False, settings, made)


def learning(threads: int, wanted: bool, command: str) -> list[Row]:
    """The fast path's final true utility against that of the plain one. Raises: Missing."""
    shares, alone = [], {"threads": threads, "parallel": 1}
    for seed in SEEDS:
        settings = {"seed": seed, **alone}
        fast = kept("demo", f"seed{seed}", settings, partial(one_run, "demo", TASK, seed, False, threads), wanted)
        run = partial(one_run, "engine", TASK, seed, False, threads, plain=True)
        plain = kept("engine", f"plain-seed{seed}", settings, run, wanted)
        a, b = (from_json(p["tables"]["policy"]).utility.mean(1) for p in (fast, plain))
        shares.append((a - b) / b.mean())  # by prompt, as a share of the plain path's mean
    lost = bootstrap_mean(np.mean(shares, axis=0), 0)
    raw = relative(raw_file("engine", "plain-seed*", False))
    return [Row(
        claim="learning unharmed", value=lost.value, low=lost.low, high=lost.high, unit="share of the true utility",
        bar="low >= -0.05", command=command, raw=raw,
    )]  # fmt: skip


def minutes(wanted: bool, command: str) -> list[Row]:
    """How long `backflip demo` takes. Raises: Missing."""
    clock = kept("demo", "clock", {}, partial(one_demo, TASK), wanted)
    raw = relative(raw_file("demo", "clock", False))
    return [
        Row(claim="demo minutes", value=clock["seconds"] / 60, unit="minutes", bar="<= 15", command=command, raw=raw)
    ]
