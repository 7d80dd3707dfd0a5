"""Freed memory is used again: the second tensor of a size needs no new pages."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from backflip.core.memory import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (40_000_000 + len(sys.argv))  # some 10,000 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed()
print(faults(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what was freed")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    def run(how: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return [int(n) for n in done.stdout.split()]

    first, second = run("kept")
    assert first > 1000
    assert second < 100
    assert run("given back")[1] > 1000
