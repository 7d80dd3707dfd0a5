"""How many answers are worked on at a time: as many as was asked for, fewer once memory runs out."""

import gc
from collections.abc import Callable
from typing import TypeVar, final

import torch

from backflip.core.memory import no_memory, ran_out

T = TypeVar("T")


def unheard(line: str) -> None:
    """Tell nobody."""


@final
class Portion:
    """A micro-batch's size, shared by everything that works through answers in such portions.

    `key` is the plan's key that sets it; `tell` is told each time a smaller size is taken.
    """

    def __init__(self, size: int, key: str = "ppo.micro", tell: Callable[[str], None] = unheard) -> None:
        self.size, self._key, self._tell = size, key, tell

    def foreseen(self, size: int) -> None:
        """Work with `size` from now on: memory would run out with more."""
        asked, self.size = self.size, size
        self._tell(f"the free memory is too little for {asked} answers at a time: {self._from_now_on()}")

    def _from_now_on(self) -> str:
        return f"{self.size} from now on, with the same results ({self._key} = {self.size} in the plan begins so)"

    def within_memory(self, attempt: Callable[[int], T], most: int | None = None) -> T:
        """`attempt(size)` with `size` at most `most`; tried anew with half of it each time memory runs out.

        What an attempt that broke off has left, it must clear when it begins: gradients above all. The size that
        fits is kept for later. Raises: BackflipError when one answer at a time is too much.
        """
        asked = size = self.size if most is None else max(1, min(self.size, most))
        while True:
            try:
                out = attempt(size)
                break
            except (MemoryError, RuntimeError) as e:
                if not ran_out(e):
                    raise
                if size == 1:
                    raise no_memory("one answer was worked on at a time") from e
            size //= 2  # out here the error is gone, and with it what the attempt held
            _release()
        if size < asked:
            self.size = size
            self._tell(f"memory ran out with {asked} answers at a time: {self._from_now_on()}")
        return out


def _release() -> None:
    """Give back what the attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
