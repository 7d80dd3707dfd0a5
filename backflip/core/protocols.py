"""The seams: what one floor may ask of another without knowing who answers."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from backflip.core.records import Answer, Judged, Prompt


class Sampler(Protocol):
    """Answers prompts with a policy; records the log-probability of every token it draws."""

    def load(self, policy: str) -> str:
        """Take the policy's newest weights; return their version."""
        ...

    def sample(
        self, prompts: Sequence[Prompt], n: int, *, seed: int, max_tokens: int, finite: bool = True
    ) -> Iterator[list[Answer]]:
        """Yield batches of answers, `n` for each prompt, as they are finished.

        An answer whose log-probabilities are no numbers is refused unless `finite` is False: then the caller looks.
        """
        ...


class Scorer(Protocol):
    """Scores answers: a reward model, a function, a bigger model. The optimiser sees nothing else of it."""

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> NDArray[np.float64]:
        """(B,) rewards of the answers to their prompts (same order)."""
        ...


class Utility(Protocol):
    """The true utility of a simulation: what the simulated raters look at."""

    names: tuple[str, ...]

    def judge(self, prompt: Prompt, text: str, ended: bool) -> Judged:
        """Value and named attributes of one answer."""
        ...


class SimulatedRater(Protocol):
    """A rater that answers at once. Its vote depends on (seed, pair, rater) only."""

    id: str

    def choose(self, pair_id: str, a: Judged, b: Judged, *, shown: Literal["ab", "ba"]) -> Literal["a", "b", "tie"]:
        """The vote on one pair."""
        ...
