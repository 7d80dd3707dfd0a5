"""What a plan says about the alarm. Free of torch and scipy, so that a plan is read in no time."""

import re
from dataclasses import dataclass, fields

from backflip.core.config import require

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Stops a climb when gold falls, and goes back to the best policy on its way. Off unless `gold` is named.

    Every few steps fresh answers to monitor prompts are judged against the untouched model's. The judgements are never
    used for fitting.
    """

    gold: str = ""
    """What judges: "utility" (the task's true utility), "people" (the run's raters, simulated or not), or a function
    "module:name" that takes prompt and answer as texts and returns a number, more being better. Empty: no alarm. No
    climb waits for people: a look belongs to its step, however late it is judged; see `patience`."""
    every: int = 2
    """Optimiser steps between two looks."""
    votes: int = 24
    """Judgements at each look, at most one a monitor prompt."""
    patience: int = 3
    """Looks after which one is weighed with the judgements that people have given by then; later ones are not counted.
    At a round's end, while its pages are served, those still missing are waited for, at most rate.deadline_minutes."""
    labels: int = 400
    """Judgements of a round at most; after that the alarm looks no more. What is left of them at a round's last look
    goes to that policy too, as long as it is expected to lose; people are not asked more."""
    rate: float = 0.05
    """Chance of a false alarm in a round whose gold never falls."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        idle = all(getattr(self, f.name) == f.default for f in fields(self) if f.name != "gold")
        known = self.gold in ("", "utility", "people") or FUNCTION.fullmatch(self.gold) is not None
        fits = '"utility", "people" or a function like "module:name": an alarm without gold cannot ring'
        require(known and (bool(self.gold) or idle), "gold", fits)
        require(self.every >= 1, "every", "a whole number of 1 or more")
        require(self.votes >= 1, "votes", "a whole number of 1 or more")
        require(self.patience >= 1, "patience", "a whole number of 1 or more")
        require(self.labels >= self.votes, "labels", "at least alarm.votes")
        require(0 < self.rate < 1, "rate", "a number above 0, below 1")
