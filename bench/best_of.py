"""Best of n on the story model's answers: what more votes, blind raters, bigger rewards and ensembles do to it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stories import PROMPTS, Stories

from backflip.rewards.conservative import combined
from backflip.rewards.ensemble import Ensemble, fit_ensemble
from backflip.rewards.fit import TOKEN_FIGURES, Fitted, emphasis, fit_votes
from backflip.rewards.plan import Fit
from backflip.stats.best_of_n import best_of_n_curve

Array = NDArray[np.float64]
VOTES = (200, 1000, 5000)
SENTENCES = 2
"""The one attribute that blind raters see."""
MEMBERS, FEATURES_SEEN = 5, 0.5
"""Members of an ensemble, and the share of the features that each sees: on the same ones they share their errors."""
DOUBT = 0.5
"""What uncertainty-weighted optimisation takes off per unit of variance: as Coste et al. for best of n."""


def counts(answers: int) -> list[int]:
    """1, 2, 4, ... up to the answers there are."""
    return [2**k for k in range(int(np.log2(answers)) + 1)]


class Offered:
    """Fresh answers to choose the best of: their features and gold."""

    def __init__(self, stories: Stories, answers: int) -> None:
        self.stories, self.answers = stories, answers
        bank = stories.bank(answers, seed=2)
        self.features = bank.features
        self.gold = stories.gold(bank.attributes).reshape(len(PROMPTS), answers)

    def curve(self, score: Array) -> Array:
        """(P, len(counts)) gold of the best of n by `score` (N,), less that of one."""
        proxy = score.reshape(self.gold.shape)
        found = best_of_n_curve(proxy, self.gold, counts(self.answers))
        return found - self.gold.mean(1, keepdims=True)

    def mean_curve(self, scores: Callable[[int], Array], seeds: Sequence[int]) -> list[list[float]]:
        """(P, len(counts)) the curve, mean over the seeds of the votes."""
        return np.asarray(np.mean([self.curve(scores(s)) for s in seeds], axis=0)).tolist()


def of_votes(offered: Offered, votes: int, seeds: Sequence[int]) -> list[list[float]]:
    """The curve of rewards learned from so many votes."""
    st = offered.stories
    return offered.mean_curve(lambda s: st.fit(st.votes(votes, s), s).reward.score(offered.features), seeds)


def of_blind(offered: Offered, seeds: Sequence[int]) -> list[list[float]]:
    """The curve of rewards learned from raters who look at the number of sentences alone."""
    st = offered.stories
    seen = st.standard(st.rated.attributes)[:, SENTENCES]
    votes = max(VOTES) if offered.answers >= 512 else min(VOTES)
    return offered.mean_curve(lambda s: st.fit(st.votes(votes, s, seen), s).reward.score(offered.features), seeds)


def of_small(offered: Offered, votes: int, seeds: Sequence[int]) -> list[list[float]]:
    """The curve of the smaller reward: the few figures of the tokens, without the model's states."""
    st = offered.stories
    f, owner = st.rated.features[:, -TOKEN_FIGURES:], st.owners()

    def scores(seed: int) -> Array:
        plan = Fit(raters="equal", members=1, prior=(1.0, 10.0, 100.0))
        fitted = fit_votes(f, st.votes(votes, seed), owner, f, plan, seed=seed, emphasis=emphasis(f.shape[1]))
        return fitted.reward.score(offered.features[:, -TOKEN_FIGURES:])

    return offered.mean_curve(scores, seeds)


def ensemble_of(stories: Stories, fitted: Fitted, seed: int) -> Ensemble:
    """Members on resampled prompts and half of the features each."""
    plan = Fit(raters="equal", members=MEMBERS, member_features=FEATURES_SEEN)
    return fit_ensemble(fitted, stories.rated.features, plan, seed=seed)


WARY: Mapping[str, Fit] = {
    "worst case": Fit(conservative="worst"), "uncertainty-weighted": Fit(conservative="uncertainty", uncertainty=DOUBT)
}  # fmt: skip
"""The package's conservative rewards, by the names of their rows."""


def of_ensemble(offered: Offered, votes: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Gold of the best of all answers: (S, P) by one reward, by the worst case of five, by their mean less doubt."""
    st = offered.stories
    out: dict[str, list[list[float]]] = {"single": [], "worst case": [], "uncertainty-weighted": []}
    for seed in seeds:
        fitted = st.fit(st.votes(votes, seed), seed)
        each = ensemble_of(st, fitted, seed).score(offered.features)
        for name, score in (
            ("single", fitted.reward.score(offered.features)),
            *((wary, combined(each, plan)) for wary, plan in WARY.items()),
        ):
            out[name].append(offered.curve(score)[:, -1].tolist())
    return out
