"""What more votes would buy a run, from its own learning curve: no model is loaded and nothing is changed."""

from dataclasses import dataclass

from backflip.core.errors import ConfigError
from backflip.cycle.folder import RunPath
from backflip.cycle.raters import learned_so_far
from backflip.rewards.budget import HeldOut, what_votes_buy
from backflip.stats.bootstrap import Interval


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What so many more votes would buy."""

    run: str
    votes: int
    """Votes that the newest reward would be fitted on."""
    more: int
    now: float
    """Share of unseen votes that a reward learned from all votes foretells, by the learning curve."""
    gain: Interval
    """By how much that share would rise; the interval holds 90%."""
    curve: tuple[tuple[float, float], ...]
    """(votes, share foretold) as measured on parts of the votes."""


def budget_of(run: RunPath, more: int = 50) -> Budget:
    """What `more` votes would buy the run's reward.

    Raises: ConfigError when `more` is below 1, or for a folder without a run; DataError with too few votes.
    """
    if more < 1:
        raise ConfigError(f"{more} votes buy nothing.\nThe number of votes to add must be 1 or more.\nGive --votes 50.")
    root, plan, fitted, _, held_out = learned_so_far(run)
    unit = [held_out.prompt[f.a] for f in held_out.feedback]
    unseen = HeldOut(held_out.apart(held_out.features / fitted.reward.scale), held_out.outcome, unit)
    bought = what_votes_buy(fitted, unseen, more, plan.seed)
    pairs = fitted.evidence.pairs
    return Budget(
        run=str(root), votes=0 if pairs is None else len(pairs.a), more=more, now=bought.now, gain=bought.gain,
        curve=bought.curve,
    )  # fmt: skip
