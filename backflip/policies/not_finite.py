"""A step of training whose numbers are not finite: what is said of it, and the answers it was made from.

Knows nothing of files: whoever drives the steps saves the answers, throws the state away and goes back to the last.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from backflip.core.errors import BackflipError
from backflip.core.records import Answer, Prompt

Lines = list[dict[str, Any]]
"""One dict an answer, as plain as JSON wants it."""
DIVERGED = "The learning rate is probably too high for this model and what it learns from."
UNTOUCHED = "The untouched model itself overflows there, or its weights are damaged."
REWARD = "The reward is damaged, or it divides by what is 0 for one of the answers."


class NotFinite(BackflipError):
    """Refuses a step; a part of it may have been taken, so that the state is to be thrown away.

    `what` stands before "is not finite"; `cure` ends a sentence that begins with "Start a new run".
    """

    def __init__(self, what: str, lines: Lines, *, cause: str = DIVERGED, cure: str) -> None:
        self.fact, self.cause, self.lines = f"{what} is not finite", cause, lines
        self.cure = f"Start a new run (another --dir) with {cure}."
        super().__init__(f"{self.fact}: the step is refused.\n{cause}\n{self.cure}")


def lines_of(
    prompts: Sequence[Prompt], answers: Sequence[Answer], figures: Mapping[str, Tensor | NDArray[Any]]
) -> Lines:
    """B answers to B prompts, with what is known of each: (B,) one figure, (B, T) one for each of its tokens.

    A number that is not finite becomes a text ("nan", "inf", "-inf"), as JSON has no word for it.
    """
    columns = {name: x.tolist() for name, x in figures.items()}
    out: Lines = []
    for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        count = len(a.tokens)
        known = {name: _plain(c[i][:count] if isinstance(c[i], list) else c[i]) for name, c in columns.items()}
        out.append({
            "prompt_id": p.id, "history": list(p.history), "prompt": p.text, "index": a.index, "policy": a.policy,
            "text": a.text, "ended": a.ended, "tokens": a.tokens.tolist(), "logp_sampler": _plain(a.logp.tolist()),
        } | known)  # fmt: skip
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
