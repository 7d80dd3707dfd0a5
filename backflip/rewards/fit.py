"""Fit rewards to votes: a linear reward on fixed features, and the raters who cast them, together and in seconds.

The features are standardised on the untouched model's answers, the weights carry a normal prior whose
strength is chosen by cross-validation over prompts, and the finished reward has mean 0 and standard
deviation 1 on the untouched model's answers, after every refit, so that a KL coefficient and a critic
mean the same from round to round. What is learned of raters is in `stats.raters`.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.errors import DataError
from backflip.core.records import Feedback, Thumbed
from backflip.core.rng import generator
from backflip.rewards.calibration import Calibration, calibrate
from backflip.rewards.plan import Fit
from backflip.stats.evidence import Evidence, PairVotes, Thumbs
from backflip.stats.judgements import CODES
from backflip.stats.raters import ALIKE, TIES, Pooling, RaterFit, fit_raters
from backflip.stats.reliability import fit_crowd

__all__ = ["Fit", "Fitted", "Reward", "emphasis", "fit_reward", "fit_votes", "require_difference", "require_preference"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
TINY = 1e-6
"""Features that vary less than this among the untouched model's answers keep their own scale."""
TOKEN_FIGURES = 5
"""How many features, the last ones, are figures of the tokens themselves: `classifier.TOKEN_FEATURES`."""
TOKEN_WEIGHT = 5.0
"""How much a token figure counts beside one hidden unit. Measured: docs/log.md."""
LEAST_CHANCE = 1e-3
"""No held-out vote is taken to be less likely, so that one tie that nobody foresaw does not decide a prior."""
QUICK: Final = Pooling(lapse=None)
"""What a prior is chosen with: without lapses, which cost most of a fit's time."""
MANY: Final = 10_000
"""Votes beyond which a fit is made quick."""
ROUGH: Final = 1e-7
"""When a search ends that only compares, or has many votes: a step gains less than this share of the posterior."""


class Reward(NamedTuple):
    """A fitted linear reward: (features - mean) / scale @ weight + bias.

    Shapes: mean, scale, weight (F,). `slope` turns a reward gap into logits, so that P(a beats b) can be read off the
    normalised reward; `tie` is the threshold of a tie in logits. Both are fitted to votes on prompts that were left
    out, whoever cast them: see `calibration`.
    """

    mean: Array
    scale: Array
    weight: Array
    bias: float
    tie: float
    slope: float
    prior: float

    def score(self, features: Array) -> Array:
        """(B,) rewards of features (B, F)."""
        return np.asarray((features - self.mean) / self.scale @ self.weight + self.bias)


class Fitted(NamedTuple):
    """A reward and what it was learned from."""

    reward: Reward
    crowd: RaterFit
    """Its weights are those of `rows`, in logits of a usual rater."""
    raters: tuple[str, ...]
    """Whose number is which."""
    evidence: Evidence
    rows: Array
    """(N, D) the answers that were judged, which the evidence counts by row, in coordinates of their span."""
    basis: Array
    """(F, D) those coordinates' axes: standardised features @ basis are rows."""
    prompt: tuple[str, ...]
    """(N,) whose answers they are."""


def fit_reward(
    features: Array,
    feedback: Sequence[Feedback],
    prompt: Sequence[str],
    reference: Array,
    config: Fit,
    *,
    seed: int,
    emphasis: Array | None = None,
    thumbs: Sequence[Thumbed] = (),
) -> Reward:
    """The reward of `fit_votes`."""
    return fit_votes(
        features, feedback, prompt, reference, config, seed=seed, emphasis=emphasis, thumbs=thumbs
    ).reward  # fmt: skip


def fit_votes(
    features: Array,
    feedback: Sequence[Feedback],
    prompt: Sequence[str],
    reference: Array,
    config: Fit,
    *,
    seed: int,
    emphasis: Array | None = None,
    thumbs: Sequence[Thumbed] = (),
) -> Fitted:
    """Fit a reward, and the raters where the plan says so, to votes on answers with these features.

    Shapes: features (B, F), the answers' features that `feedback` and `thumbs` index; prompt (B,), the prompt of each
    answer; reference (R, F), features of the untouched model's answers, which fix mean 0 and std 1;
    emphasis (F,), how strongly each standardised feature counts (None: all alike). Votes that cancel out, or answers
    all alike, give a reward of 0 for every answer: see `require_difference`.
    Raises: DataError when there is no vote to learn from, or every one of them is a tie.
    Source: Bradley & Terry 1952; ties after Rao & Kupper 1967; raters `stats.raters`; normalisation Ziegler et al.
    2019 (arXiv:1909.08593).
    """
    pooling = _pooling(config, feedback, thumbs)
    if pooling == ALIKE:  # who cannot tell says nothing of the answers
        feedback = [f for f in feedback if f.choice != "skip"]
    feedback = [f for f in feedback if f.weight > 0]
    if not thumbs:
        require_preference([f.choice for f in feedback])
    mean, std = reference.mean(0), reference.std(0)
    scale = np.where(std > TINY, std, 1.0)  # what never varies there cannot be standardised
    if emphasis is not None:
        scale = scale / emphasis
    raters, used, evidence = _evidence(feedback, thumbs)
    z = (features[used] - mean) / scale
    basis = _span(z, evidence)
    rows, owner = z @ basis, tuple(prompt[i] for i in used)
    prior, outside = _choose_prior(rows, evidence, owner, config, pooling, seed)
    learn = fit_raters if pooling == ALIKE else fit_crowd
    crowd = learn(rows, evidence, pooling, prior=prior, ftol=1e-9 if len(feedback) <= MANY else ROUGH)
    weight = basis @ crowd.weight
    raw = (reference - mean) / scale @ weight
    std_raw = float(raw.std()) or 1.0
    sharpness, tie = _calibrate(crowd, evidence, outside)
    reward = Reward(mean, scale, weight / std_raw, -float(raw.mean()) / std_raw, tie, std_raw * sharpness, prior)
    return Fitted(reward, crowd, raters, evidence, rows, basis, owner)


def learned_again(fitted: Fitted, rows: Array, evidence: Evidence, start: RaterFit | None = None) -> RaterFit:
    """The fit on other evidence or rows (N, D'), roughly: how far raters may differ is taken as found in `fitted`."""
    spread = fitted.crowd.spread
    pooling = QUICK if spread.any() else ALIKE
    return fit_raters(rows, evidence, pooling, prior=fitted.reward.prior, start=start, spread=spread, ftol=ROUGH)


def emphasis(features: int) -> Array:
    """(F,) how strongly each feature counts in a fit: the few token figures more than the many hidden units."""
    out = np.ones(features)
    out[-TOKEN_FIGURES:] = TOKEN_WEIGHT
    return out


def require_preference(choices: Sequence[str]) -> None:
    """Refuse votes that no reward can be fitted on. Raises: DataError when there is no vote, or only ties."""
    decided = [c for c in choices if c in ("a", "b", "tie", "bad")]
    if not decided:
        raise DataError(
            "There are no votes to fit a reward on.\n"
            "Nobody has judged a pair yet, or every vote was a skip or was taken back.\n"
            "Rate some pairs, then start again with the same command."
        )
    if not any(c in ("a", "b") for c in decided):
        raise DataError(
            f"All {len(decided)} votes are ties: there is no preference to learn from.\n"
            "The answers may be too alike, or the raters' tie width too large.\n"
            "Sample at a higher temperature, or rate more pairs."
        )


def require_difference(reward: Reward, reference: Array) -> None:
    """Refuse a reward that has nothing to climb. Raises: DataError when all answers (R, F) are worth the same to it."""
    if not reward.score(reference).std() > TINY:
        raise DataError(
            "The fitted reward is the same for every answer: there is nothing to climb.\n"
            "The votes may cancel out (as often for the one answer as for the other), or the answers are all alike.\n"
            "Rate more pairs, or sample at a higher temperature, then start again with the same command."
        )


def _pooling(config: Fit, feedback: Sequence[Feedback], thumbs: Sequence[Thumbed]) -> Pooling:
    """How far raters may differ. One alone cannot be told from the reward: only his ties and his lean are his.

    Beyond `MANY` votes lapses are left out: they add 0.001 to 0.005 nats a vote (docs/log.md) and most of the time.
    """
    if config.raters == "equal":
        return ALIKE
    alone = len({f.rater_id for f in feedback} | {t.rater_id for t in thumbs}) < 2
    if alone:
        return Pooling(sensitivity=0.0, lapse=None)
    return Pooling() if len(feedback) <= MANY else QUICK


def _evidence(
    feedback: Sequence[Feedback], thumbs: Sequence[Thumbed]
) -> tuple[tuple[str, ...], NDArray[np.int64], Evidence]:
    """(raters, numbers of the answers that were judged, what was said of them by their place among these)."""
    raters = tuple(sorted({f.rater_id for f in feedback} | {t.rater_id for t in thumbs}))
    number = {r: i for i, r in enumerate(raters)}
    used = np.unique([i for f in feedback for i in (f.a, f.b)] + [t.item for t in thumbs])
    place = {int(item): i for i, item in enumerate(used)}

    def ints(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    pairs = PairVotes(
        a=ints([place[f.a] for f in feedback]),
        b=ints([place[f.b] for f in feedback]),
        choice=ints([CODES[f.choice] for f in feedback]),
        rater=ints([number[f.rater_id] for f in feedback]),
        shown=ints([f.shown for f in feedback]),
        strength=ints([f.strength for f in feedback]),
        weight=np.array([f.weight for f in feedback], dtype=np.float64),
    )
    up = np.array([t.up for t in thumbs], dtype=bool)
    given = Thumbs(ints([place[t.item] for t in thumbs]), up, ints([number[t.rater_id] for t in thumbs]))
    return raters, used, Evidence(len(raters), pairs, given if thumbs else None)


def _span(z: Array, evidence: Evidence) -> Array:
    """(F, D) axes of what the votes are about: the optimum lies there, and the search is as small as the evidence."""
    pairs = evidence.pairs
    assert pairs is not None
    n, f = len(z) if evidence.thumbs is not None else len(pairs.a), z.shape[1]
    if n >= f:
        return np.eye(f)  # no row of features for each of many votes
    told = z if evidence.thumbs is not None else z[pairs.a] - z[pairs.b]
    return np.asarray(np.linalg.qr(told.T)[0])


def _choose_prior(
    rows: Array, evidence: Evidence, prompt: Sequence[str], config: Fit, pooling: Pooling, seed: int
) -> tuple[float, Array]:
    """The precision whose fits best foretell the votes on prompts that they left out, and the gaps (P,) they foretold.

    A gap is not finite where no fold left its vote out.
    """
    pairs, thumbs = evidence.pairs, evidence.thumbs
    assert pairs is not None
    quick = QUICK if pooling == Pooling() else pooling
    folds = _folds(prompt, config.folds, seed)
    losses = dict.fromkeys(config.prior, 0.0)
    gaps = {prior: np.full(len(pairs.a), np.nan) for prior in losses}
    for k in np.unique(folds):
        out = folds[pairs.a] == k
        kept = without(evidence, out, None if thumbs is None else folds[thumbs.item] == k)
        if not out.any() or not teaches(kept):
            continue
        fit: RaterFit | None = None
        for prior in losses:
            fit = fit_raters(rows, kept, quick, prior=prior, start=fit, ftol=ROUGH)
            score = fit.score(rows)
            gaps[prior][out] = (score[pairs.a] - score[pairs.b])[out]
            losses[prior] -= held_out_logp(fit, rows, pairs, out)
    best = min(losses, key=lambda p: losses[p])
    return best, gaps[best]


def _calibrate(crowd: RaterFit, evidence: Evidence, outside: Array) -> Calibration:
    """The temperature and tie width that fit the votes on left-out prompts, by their gaps `outside` (P,)."""
    pairs = evidence.pairs
    assert pairs is not None
    assert pairs.weight is not None
    known = np.isfinite(outside) & (pairs.choice != CODES["skip"])
    tie = float(np.exp(crowd.usual[TIES])) if crowd.has[TIES] else 0.0
    return calibrate(outside[known], pairs.choice[known], pairs.weight[known], tie)


def without(evidence: Evidence, pairs_out: Mask, thumbs_out: Mask | None = None) -> Evidence:
    """The evidence with some votes at weight 0. Shapes: one mask entry a vote on a pair, one a thumb."""
    pairs, thumbs = evidence.pairs, evidence.thumbs
    assert pairs is not None
    assert pairs.weight is not None
    kept = pairs._replace(weight=np.where(pairs_out, 0.0, pairs.weight))
    if thumbs is None or thumbs_out is None:
        return evidence._replace(pairs=kept)
    return evidence._replace(pairs=kept, thumbs=thumbs._replace(weight=np.where(thumbs_out, 0.0, 1.0)))


def teaches(evidence: Evidence) -> bool:
    """Whether anything that counts says which answer is better."""
    pairs, thumbs = evidence.pairs, evidence.thumbs
    assert pairs is not None
    assert pairs.weight is not None
    thumbed = thumbs is not None and (thumbs.weight is None or bool(np.any(thumbs.weight > 0)))
    return thumbed or bool(np.any((pairs.choice < CODES["tie"]) & (pairs.weight > 0)))


def held_out_logp(fit: RaterFit, rows: Array, pairs: PairVotes, out: Mask) -> float:
    """Weighted log-likelihood, in nats, that a fit gives the votes in `out` (P,)."""
    assert pairs.weight is not None
    score = fit.score(rows)
    gap = score[pairs.a[out]] - score[pairs.b[out]]
    shown = None if pairs.shown is None else pairs.shown[out]
    chance = fit.probabilities(gap, pairs.rater[out], shown)[np.arange(len(gap)), pairs.choice[out]]
    return float(pairs.weight[out] @ np.log(np.maximum(chance, LEAST_CHANCE)))


def _folds(prompts: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """(N,) fold of each answer; the answers to one prompt share a fold."""
    names = sorted(set(prompts))
    order = generator(seed, "folds").permutation(len(names))
    fold = {name: int(order[i]) % min(count, max(2, len(names))) for i, name in enumerate(names)}
    return np.array([fold[p] for p in prompts])
