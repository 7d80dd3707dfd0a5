"""Memory of the process: kept for the next tensor, and what is said when it runs out."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backflip.core.errors import BackflipError

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc", "bad allocation")
"""What allocators say in a RuntimeError: CUDA's, PyTorch's for the CPU, cuBLAS', C++'s."""


KEPT_BLOCK, KEPT_FREE = 100_000_000, 1_000_000_000
"""Bytes: the largest block that is used again rather than given back, and how much may lie free."""


def keep_freed() -> None:
    """Let the C library use freed blocks again instead of asking the system for new ones, page by page.

    A training step takes a tenth less time so (docs/log.md). Only glibc is told; elsewhere nothing happens.
    """
    tell = _of_glibc("mallopt")
    tell(-3, KEPT_BLOCK)  # M_MMAP_THRESHOLD
    tell(-1, KEPT_FREE)  # M_TRIM_THRESHOLD


def give_freed_back() -> None:
    """Let the system have what is kept but not used, so that memory can be measured."""
    _of_glibc("malloc_trim")(0)


def _of_glibc(name: str) -> Callable[..., object]:
    """A function of the C library; one that does nothing where there is none of that name."""
    if not sys.platform.startswith("linux"):
        return lambda *_: None
    return getattr(ctypes.CDLL(None), name, lambda *_: None)


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that there was too little memory, of the machine or of the GPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)


def no_memory(doing: str) -> BackflipError:
    """The message for work that does not fit, however small its parts."""
    return BackflipError(
        f"Memory ran out while {doing}.\n"
        "The model is too large for this machine or GPU, or other programs hold its memory.\n"
        "Close them, take a smaller model or sampling.max_tokens, or compute elsewhere (model.device); "
        "the same command carries on."
    )


@contextmanager
def memory_told(doing: str) -> Iterator[None]:
    """Tell a lack of memory plainly. Raises: BackflipError in place of the allocator's error."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not ran_out(e):
            raise
        raise no_memory(doing) from e
