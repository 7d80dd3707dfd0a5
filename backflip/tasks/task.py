"""What a task is: prompts, a true utility, and the way to bring prompts of one's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backflip.core.records import Judged, Prompt


class TaskUtility(Protocol):
    """A `core.protocols.Utility` that is a weighted sum of its attributes and can say so."""

    names: tuple[str, ...]
    weights: Mapping[str, float]

    def judge(self, prompt: Prompt, text: str, ended: bool) -> Judged:
        """Value and named attributes of one answer."""
        ...

    def table(self) -> list[tuple[str, float, str]]:
        """(attribute, weight, meaning) for every attribute."""
        ...

    def describe(self) -> str:
        """The utility in words."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something to get better at."""

    name: str
    """What a plan calls it."""
    prompts: Callable[[], list[Prompt]]
    """Loads the built-in prompts, all three splits."""
    utility: Callable[[Mapping[str, float] | None], TaskUtility]
    """Makes the true utility that simulated raters look at; takes weights by attribute, None for the default."""
    prompt_file: Callable[[Path], list[Prompt]]
    """Loads a user's own prompts; raises DataError naming file and line."""
