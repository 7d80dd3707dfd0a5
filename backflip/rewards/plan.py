"""What a plan says about fitting rewards. Free of torch, so that a plan is read in no time."""

from dataclasses import dataclass
from typing import Literal

from backflip.core.config import require


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a reward is fitted."""

    raters: Literal["pooled", "equal"] = "pooled"
    """"pooled" learns with the reward how far each rater may be trusted, how readily they call a tie and how much they
    lean to the answer shown first, each drawn towards what is usual; "equal" counts every rater's votes alike."""
    prior: tuple[float, ...] = (100.0, 300.0, 1000.0, 3000.0)
    """Strengths of the prior tried in cross-validation; larger means a flatter reward."""
    folds: int = 4
    """Folds of the cross-validation, split by prompt."""
    members: int = 5
    """Rewards fitted besides on resampled prompts, to tell how sure the reward is of an answer; 1 fits none."""
    member_features: float = 1.0
    """Share of the features, drawn by lot, that each of them sees: less makes them differ more."""
    conservative: Literal["mean", "worst", "uncertainty"] = "mean"
    """What a climb is paid: the members' mean, which is the reward itself; the lowest member's reward; or their mean
    less `uncertainty` times their variance. Measured figures are always the reward's own."""
    uncertainty: float = 0.5
    """How strongly the members' variance is counted against an answer where `conservative` is "uncertainty"."""
    length_free: bool = False
    """Pays nothing for length alone: what a token more brings on the round's sampled answers is taken off."""
    apart: float = 0.0
    """Share of the training prompts whose votes are kept from the reward (and from DPO) and fit a second one. It is
    only watched: where the score rises while it falls, `backflip status` and the report warn. 0 fits none."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require(len(self.prior) > 0 and min(self.prior) > 0, "prior", "a list of numbers above 0")
        require(self.folds >= 2, "folds", "a whole number of 2 or more")
        require(self.members >= 1, "members", "a whole number of 1 or more")
        require(0 < self.member_features <= 1, "member_features", "a number above 0, at most 1")
        alone = self.conservative != "mean" and self.members < 2
        fits = f'a whole number of 2 or more: fit.conservative = "{self.conservative}" compares them'
        require(not alone, "members", fits)
        require(self.uncertainty >= 0, "uncertainty", "a number of 0 or more")
        require(0 <= self.apart < 1, "apart", "0 or more and below 1")
