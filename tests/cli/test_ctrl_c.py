"""Ctrl-C at any moment: a clean stop, one line that says how to go on, and the run carries on to the same end."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Finished
from kills import differences, fingerprint
from tiny_run import new_run, save_model

from backflip.cli.start import CARRIES_ON, STOPPED

FORKS = """
import json, os, sys, traceback
import transformers.models.llama.modeling_llama
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
import backflip.cli.main, backflip.cycle.run, backflip.cycle.export, backflip.report
from backflip.cli.start import main

print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(asked["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            sys.argv = ["backflip", *asked["argv"]]
            code = main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
FRESH = """
import os, signal, sys
from backflip.cli.start import main

def take(number, handler, really=signal.signal):
    really(number, handler)
    if number == signal.SIGTERM:
        os.write(1, b"up")

signal.signal = take
sys.exit(main())
"""
"""A process that imports everything anew and says when it has taken the signals; what comes before is Python's own."""
ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Forks:
    """Starts commands in processes forked from one that has imported everything, and interrupts them."""

    def __init__(self, folder: Path) -> None:
        self._err = folder / "err.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=os.environ | ENV, cwd=folder,
        )  # fmt: skip
        assert self._line() == "ready"

    def call(self, *args: object, after_s: float | None = None, number: int = signal.SIGINT) -> tuple[int, str]:
        """(exit code, standard error) of a command; `number` is sent `after_s` seconds after its start."""
        self._err.write_text("")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"argv": [str(a) for a in args], "err": str(self._err)}) + "\n")
        child = int(self._line())
        if after_s is not None and not select.select([self._process.stdout], [], [], after_s)[0]:
            os.kill(child, number)
        return int(self._line()), self._err.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("words") / "model")


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


class Whole:
    """A run that nobody interrupted."""

    def __init__(self, root: Path, seconds: float) -> None:
        self.root, self.seconds, self.found = root, seconds, fingerprint(root)


@pytest.fixture(scope="module")
def whole(forks: Forks, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = new_run(tmp_path_factory.mktemp("whole") / "run", model, rounds=1)
    began = time.monotonic()
    code, err = forks.call("run", "--dir", root)
    assert code == 0, err
    return Whole(root, time.monotonic() - began)


def stopped_cleanly(code: int, err: str, expected: int = 130, said: str = CARRIES_ON) -> bool:
    """Whether the command was stopped, and not at its end already; fails when it was not stopped cleanly."""
    assert "Traceback" not in err, err
    assert "KeyboardInterrupt" not in err, err
    if code == 0:
        return False
    assert code == expected, err
    assert err.splitlines()[-1] == said, err
    assert sum(line.startswith(STOPPED) for line in err.splitlines()) == 1
    return True


STOPS = 10


@pytest.mark.slow
def test_a_run_stopped_again_and_again_ends_as_the_unbroken_one(
    forks: Forks, whole: Whole, model: Path, tmp_path: Path
) -> None:
    chance, stops = np.random.default_rng(0), 0
    root = new_run(tmp_path / "run", model, rounds=1, prompts=whole.root / "prompts.jsonl")
    for after_s in chance.uniform(0.0, 0.5, STOPS) * whole.seconds:
        stopped = stopped_cleanly(*forks.call("run", "--dir", root, after_s=after_s))
        assert not stopped or list(root.rglob("*.part")) == []
        stops += stopped
    code, err = forks.call("run", "--dir", root)

    assert stops >= STOPS // 2
    assert code == 0, err
    assert (root / "report.html").exists()
    assert differences(fingerprint(root), whole.found) == []


@pytest.mark.slow
def test_every_moment_of_a_start_from_nothing_can_be_stopped(whole: Whole, model: Path, tmp_path: Path) -> None:
    # the first seconds are the imports of typer, torch and transformers, then the loading of the model
    root = new_run(tmp_path / "run", model, rounds=1, prompts=whole.root / "prompts.jsonl")
    stops, moments = 0, (0.0, 0.05, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0)
    for after_s in moments:
        code, err = fresh("run", "--dir", root, after_s=after_s)
        stops += stopped_cleanly(code, err)
    assert stops >= len(moments) - 2
    assert fresh("run", "--dir", root)[0] == 0
    assert differences(fingerprint(root), whole.found) == []


def fresh(*args: object, after_s: float | None = None) -> tuple[int, str]:
    """(exit code, standard error) of a command in a new process, interrupted `after_s` after our first line ran."""
    with subprocess.Popen(
        [sys.executable, "-c", FRESH, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | ENV,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        if after_s is not None:
            time.sleep(after_s)
            process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        return process.returncode, err.decode()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["report", "export"])
def test_what_only_writes_is_stopped_without_leaving_half_a_file(
    forks: Forks, whole: Whole, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out"
    args: list[Any] = ["report", whole.root] if command == "report" else ["export", "policy", whole.root, "--out", out]
    before = names(whole.root)
    for after_s in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
        stopped_cleanly(*forks.call(*args, after_s=after_s), said=STOPPED)
        assert names(whole.root) == before
        assert not [p for p in tmp_path.iterdir() if p != out]
        if out.exists():
            break
    if not out.exists():
        assert forks.call(*args)[0] == 0


def names(folder: Path) -> set[str]:
    """Every file below a folder, but for what SQLite keeps beside a database that is open."""
    return {str(p) for p in folder.rglob("*") if not p.name.startswith("run.db-")}


@pytest.mark.slow
def test_sigterm_stops_a_run_as_ctrl_c_does(forks: Forks, whole: Whole, model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", model, rounds=1, prompts=whole.root / "prompts.jsonl")
    code, err = forks.call("run", "--dir", root, after_s=whole.seconds / 3, number=signal.SIGTERM)

    assert stopped_cleanly(code, err, 128 + signal.SIGTERM)
    assert forks.call("run", "--dir", root)[0] == 0
    assert differences(fingerprint(root), whole.found) == []


STUBBORN = """
import os, signal, sys, time
import backflip.cli.start as start

def stubborn():
    for _ in range(2):  # the second time, nothing is asked any more
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            pass
    print("still here", flush=True)

def swallowing():
    class Odd:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
    Odd()
    print("still here", flush=True)

def another_error():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("half of torch")

def plainly():
    os.kill(os.getpid(), signal.SIGINT)

def late():
    import atexit
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
    return 0

def fault():
    raise ZeroDivisionError("ours")

class Fake:
    main = staticmethod(globals()[sys.argv.pop(1)])

sys.modules["backflip.cli.main"] = Fake
sys.exit(start.main())
"""


@pytest.mark.parametrize(
    ("what", "code"),
    [("stubborn", 130), ("swallowing", 130), ("another_error", 130), ("plainly", 130), ("late", 0)],
)
def test_an_interrupt_is_never_lost_nor_shown_as_a_fault(what: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", STUBBORN, what, "run"], capture_output=True, text=True, check=False)

    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr == (f"{CARRIES_ON}\n" if code else "")


@pytest.mark.parametrize("what", ["stubborn", "another_error", "plainly"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--seed", "1"], CARRIES_ON),
        (["chat", "run"], STOPPED),
        (["doctor"], STOPPED),
        (["export", "data"], STOPPED),
        ([], STOPPED),
    ],
)
def test_only_a_command_that_leaves_something_to_carry_on_says_so(what: str, words: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", STUBBORN, what, *words], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (130, f"{said}\n")


def test_a_chat_that_is_stopped_at_its_prompt_says_no_more(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    said = finished.call("chat", finished.root)

    assert (said.code, said.out, said.err.splitlines()[-1]) == (130, "", STOPPED)


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", STUBBORN, "fault"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "ZeroDivisionError: ours" in done.stderr
