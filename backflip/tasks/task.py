"""What a task is: prompts, a true utility, and the way to bring prompts of one's own."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from backflip.core.errors import ConfigError
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
class Baseline:
    """Another way to get answers out of the untouched model: plain text to go on with, no chat template."""

    name: str
    """Stands in the names of metrics and files."""
    meaning: str
    """What it is, in words."""
    text: Callable[[Prompt], str]
    """What the model goes on with."""
    finish: Callable[[str, bool], tuple[str, bool]]
    """The answer within a continuation, and whether it is finished; takes the text and whether it came to a stop."""


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
    max_tokens: int
    """The longest answer that fits the task, in tokens: what a plan for it had better take."""
    baselines: tuple[Baseline, ...] = ()
    """What the policy is compared with beside the untouched model's own answers; needs a true utility."""


def merge_weights(default: Mapping[str, float], changes: Mapping[str, float] | None) -> Mapping[str, float]:
    """`default` with `changes` over it, by attribute name; a weight of 0 leaves an attribute out.

    Raises: ConfigError for an unknown attribute or a weight that is negative or not finite.
    """
    for name, weight in (changes or {}).items():
        if name not in default:
            raise ConfigError(f"weights: unknown attribute {name}.\nKnown here: {', '.join(default)}.")
        if not 0 <= weight < math.inf:
            raise ConfigError(f"weights: {name} = {weight!r} does not fit.\nIt must be a number of at least 0.")
    return MappingProxyType({**default, **(changes or {})})


def describe(table: list[tuple[str, float, str]], answer: str, proviso: str) -> str:
    """A utility in words: its range, one line an attribute of `table`, and what lowers them all."""
    rows = [f"  {weight:<5g}x {name:<11}{meaning}" for name, weight, meaning in table]
    top = sum(weight for _, weight, _ in table)
    return "\n".join([f"True utility of {answer}: 0 to {top:g}, the sum of", *rows, proviso])
