"""A side's process: one JSON line in, one out. Standard library only, so that any virtual environment can run it.

The first line holds the settings, the answer to it how long it took to get ready. Every further line asks for one
turn. What libraries print goes to the standard error stream; answers alone go to the standard output.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

Turn = Callable[[], dict[str, Any]]
"""One turn's work; returns {"tokens": ...} and whatever else is worth keeping."""


class Phases:
    """Seconds spent in each phase of a turn; what is in no phase is "train"."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.depth = 0

    def timed(self, name: str, f: Callable[..., Any], when: Callable[[], bool] = lambda: True) -> Callable[..., Any]:
        """`f`, its seconds counted as `name` where `when()` holds and no other phase is under way."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.depth or not when():
                return f(*args, **kwargs)
            self.depth += 1
            began = time.perf_counter()
            try:
                return f(*args, **kwargs)
            finally:
                self.depth -= 1
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        return counted

    def split(self, total: float) -> dict[str, float]:
        """Seconds by phase of a turn of `total` seconds; the count begins anew."""
        seconds, self.seconds = self.seconds, {}
        return seconds | {"train": total - sum(seconds.values())}


def peak_gb() -> float:
    """The most memory that this process ever held, in GB.

    `ru_maxrss` will not do on Linux: a process starts with the peak of the one that started it.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            [peak] = [line.split()[1] for line in status if line.startswith("VmHWM:")]
        return int(peak) * 1024 / 1e9
    except OSError:  # no Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def serve(prepare: Callable[[dict[str, Any], Phases], Turn]) -> None:
    """Prepare what the first line asks for, then take a turn for each further line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found | {"peak_gb": peak_gb()}) + "\n")
        answers.flush()

    phases, began = Phases(), time.perf_counter()
    turn = prepare(json.loads(sys.stdin.readline()), phases)
    answer({"seconds": time.perf_counter() - began})
    for _ in sys.stdin:
        phases.split(0.0)
        began, worked = time.perf_counter(), time.process_time()
        found = turn()
        found["cpu_s"] = time.process_time() - worked  # far below the seconds times the threads: the machine was busy
        seconds = time.perf_counter() - began - found.pop("aside", 0.0)
        answer({"seconds": seconds, "split": phases.split(seconds)} | found)
