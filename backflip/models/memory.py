"""How much memory there is, how much is used, and how much a forward keeps for its backward."""

import os
import re
import resource
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from backflip.core.memory import give_freed_back

CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Memory that this process may still take on `device`, in bytes; a container's limit counts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    give_freed_back()
    info = Path("/proc/meminfo")
    if not info.exists():  # macOS says only how much there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - used_bytes(device)
    rows = dict(line.split(":", 1) for line in info.read_text().splitlines())
    free = int(rows["MemAvailable"].split()[0]) * 1024
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()) + _files_read())
    return max(0, free)


def _files_read() -> int:
    """Bytes of the container's memory that only hold files read a while ago: they are given up when memory is short."""
    stat = CGROUP / "memory.stat"
    rows = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
    return int(rows.get("inactive_file", 0))


def used_bytes(device: torch.device) -> int:
    """Memory that this process holds on `device` now, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    give_freed_back()
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held on `device` so far, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    status = Path("/proc/self/status")
    if status.exists():  # on Linux `ru_maxrss` begins with the peak of the process that started this one
        [high] = re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        return int(high) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def saved_bytes(forward: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Bytes that `forward` keeps for a backward, each storage counted once; those of `known` (weights) do not count."""
    seen = {t.untyped_storage().data_ptr() for t in known}
    total = 0

    def count(t: Tensor) -> Tensor:
        nonlocal total
        storage = t.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        kept = forward()  # held until the count is done, so that no storage is used again
    del kept
    return total
