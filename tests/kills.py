"""Kill a run at any moment, start it again, and compare what it left with an unbroken run's.

Every attempt is a process of its own, forked from one that has imported everything, so that the kill falls
into the run and not into the import of torch.
"""

import hashlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from safetensors.numpy import load_file

from backflip.cycle.artefacts import load_answers
from backflip.store import open_store

SERVER = """
import os, sys, traceback
from pathlib import Path
import transformers.models.llama.modeling_llama
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
import backflip.cycle.run as cycle
from backflip.cycle.tools import Silent

class Telling(Silent):
    told = False

    def begin(self, what, total):
        if not self.told:
            os.write(1, b"work\\n")
        self.told = True

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            cycle.run_rounds(Path(line.rstrip("\\n")), Telling())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runner:
    """Starts a run as often as asked; see `run`."""

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        self._expect("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def run(self, root: Path, kill_after_s: float | None = None) -> bool:
        """Carry on the run in `root`; kill it so many seconds after it has loaded and begun to work.

        Returns whether it was killed. Raises: RuntimeError when it ended by itself with an error.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{root}\n")
        child = int(self._expect(""))
        line = self._expect("")
        if line == "work":
            if kill_after_s is not None and not select.select([self._process.stdout], [], [], kill_after_s)[0]:
                os.kill(child, signal.SIGKILL)
            line = self._expect("ended")
        code = int(line.split()[1])
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the run failed with code {code}:\n{self._told()}")
        return code != 0

    def _expect(self, start: str) -> str:
        """The next line. Raises: RuntimeError when it begins otherwise or there is none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line or not line.startswith(start):
            raise RuntimeError(f"the process that starts runs said {line!r}, not {start!r}:\n{self._told()}")
        return line

    def _told(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-4000:]


class Broken(NamedTuple):
    """A run that was killed: at how many moments, and during what."""

    kills: int
    during: list[str]


def run_with_kills(runner: Runner, root: Path, kill_after_s: list[float]) -> Broken:
    """Carry the run in `root` to its end, killing it after each of these times for as long as it lasts."""
    during: list[str] = []
    for seconds in kill_after_s:
        if not runner.run(root, seconds):
            return Broken(len(during), during)
        during.append(where(root))
    runner.run(root)
    return Broken(len(during), during)


def where(root: Path) -> str:
    """The step that a killed run was in."""
    if not (root / "run.db").exists():
        return "start"
    with open_store(root / "run.db") as store:
        for number in store.rounds()[::-1]:
            done = store.steps_done(number)
            for step in ("sample", "rate", "fit", "optimise", "measure"):
                if step not in done:
                    return f"r{number} {step}"
            return f"r{number} end"
    return "start"


def fingerprint(root: Path) -> dict[str, Any]:
    """Everything a finished run is made of, exactly; times and the order in which votes came are left out."""
    found: dict[str, Any] = {}
    for file in sorted((root / "rounds").rglob("*")):
        name = str(file.relative_to(root))
        if file.suffix == ".safetensors":
            found |= {f"{name}:{k}": _hash(v) for k, v in load_file(file).items()}
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                found |= {f"{name}:{k}": _hash(arrays[k]) for k in arrays.files}
        elif file.is_file():
            found[name] = file.read_text()
        else:
            found[name] = "folder"
    with open_store(root / "run.db") as store:
        samples = store.samples()
        for s, a in zip(samples, load_answers(root, samples), strict=True):
            found[f"sample {s.id}"] = (*astuple(s), a.tokens.tolist(), a.logp.tobytes())
        found |= {f"pair {p.id}": astuple(p) for p in store.pairs()}
        found |= {f"vote {v.key}": astuple(replace(v, at=0.0, seq=None)) for v in store.vote_log()}
        found |= {f"metric {m.round} {m.step} {m.tick} {m.name}": astuple(m) for m in store.metrics()}
        found |= {f"model {m.id}": astuple(m) for m in store.models()}
        found |= {f"watermark {n}": store.watermark(n) for n in store.rounds()}
        found |= {f"done {n}": sorted(store.steps_done(n)) for n in store.rounds()}
    return found


def votes_wrong(root: Path) -> list[str]:
    """Keys and pairs whose votes are not there exactly once: one vote from each rater a pair wants."""
    with open_store(root / "run.db") as store:
        log = store.vote_log()
        by_pair: dict[str, list[str]] = {}
        for vote in log:
            by_pair.setdefault(vote.pair_id, []).append(vote.rater_id)
        wrong = [f"key {k}" for k in {v.key for v in log} if sum(v.key == k for v in log) > 1]
        for pair in store.pairs():
            raters = by_pair.get(pair.id, [])
            if len(raters) != pair.raters_wanted or len(set(raters)) != len(raters):
                wrong.append(f"pair {pair.id}")
        return wrong


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what the two fingerprints do not have in common."""
    return sorted(k for k in one.keys() | other.keys() if k not in one or k not in other or one[k] != other[k])


def _hash(array: Any) -> str:
    return f"{array.dtype}{array.shape}{hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
