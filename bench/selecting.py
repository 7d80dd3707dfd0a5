"""How many labels a choice of pairs saves: a simulated person, prompts with many answers, and the best of 64 to find.

A reward is refitted after every batch of votes and names the best of 64 answers to unseen prompts; what that answer is
truly worth is the utility. A strategy's labels are counted when it reaches what random pairs reach in the end.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.records import Feedback, Sample
from backflip.cycle.choosing import Known, pick
from backflip.raters.pairs import Candidate
from backflip.rewards.ensemble import fit_ensemble
from backflip.rewards.fit import Fitted, fit_votes
from backflip.rewards.plan import Fit

Array = NDArray[np.float64]
FEATURES, ANSWERS, PROMPTS, OFFERED = 32, 8, 12, 64
"""A batch offers the pairs of `ANSWERS` answers to each of `PROMPTS` prompts; the best is sought among `OFFERED`."""
BATCH, MOST = 25, 500
FLIPPED = 0.15
MISSED = 1.5
"""What counts for a strategy that does not come so far at all."""
TRIED = ("variance", "best")
"""Strategies that are meant for a better policy; the better one is confirmed on fresh seeds."""
PLAN = Fit(prior=(10.0,), raters="equal", members=5)


class Path(NamedTuple):
    """(V,) labels, and the share of the best answer's worth above the mean that was found, and accuracy on pairs."""

    labels: list[int]
    utility: list[float]
    accuracy: list[float]


def climb(strategy: str, seed: int) -> Path:
    """One simulated person labels `MOST` pairs; the same worlds for every strategy."""
    luck = np.random.default_rng([seed, 1])
    scale = np.sqrt(np.arange(1, FEATURES + 1))
    truth = luck.normal(size=FEATURES) / scale
    truth /= np.linalg.norm(truth / scale)
    tests = luck.normal(size=(200, OFFERED, FEATURES)) / scale
    worth = tests @ truth
    reference = luck.normal(size=(400, FEATURES)) / scale
    features: list[Array] = []
    feedback: list[Feedback] = []
    prompt: list[str] = []
    out = Path([], [], [])
    fitted: Fitted | None = None
    while len(feedback) < MOST:
        world = np.random.default_rng([seed, 2, len(feedback)])
        z = world.normal(size=(PROMPTS * ANSWERS, FEATURES)) / scale
        drawn = _ask(strategy if fitted else "random", z, fitted, reference, feedback, features, world)
        for first, second in drawn:
            better = (z[first] @ truth > z[second] @ truth) != (world.random() < FLIPPED)
            place = len(features)
            features += [z[first], z[second]]
            prompt += [f"{len(out.labels)}/{first // ANSWERS}"] * 2
            feedback.append(Feedback(a=place, b=place + 1, choice="a" if better else "b", rater_id="r"))
        fitted = fit_votes(np.array(features), feedback, prompt, reference, PLAN, seed=0)
        score = np.stack([fitted.reward.score(t) for t in tests])
        found = np.take_along_axis(worth, score.argmax(1)[:, None], 1)[:, 0]
        top, mean = worth.max(1), worth.mean(1)
        out.labels.append(len(feedback))
        out.utility.append(float((found - mean).sum() / (top - mean).sum()))
        right = np.sign(score[:, 0] - score[:, 1]) == np.sign(worth[:, 0] - worth[:, 1])
        out.accuracy.append(float(right.mean()))
    return out


def _ask(
    strategy: str,
    z: Array,
    fitted: Fitted | None,
    reference: Array,
    feedback: list[Feedback],
    features: list[Array],
    luck: np.random.Generator,
) -> list[tuple[int, int]]:
    """The pairs of one batch, by their answers' rows in z."""
    samples = [
        Sample(
            id=str(i), round=1, purpose="rate", prompt_id=str(i // ANSWERS), policy="v", index=i % ANSWERS, text=str(i),
            ended=True, length=1, artefact="", row=0,
        )
        for i in range(len(z))
    ]  # fmt: skip
    rows = [(i, j) for i in range(len(z)) for j in range(i + 1, (i // ANSWERS + 1) * ANSWERS)]
    if strategy == "random" or fitted is None:
        return [rows[i] for i in luck.permutation(len(rows))[:BATCH]]
    reward = fitted.reward
    told = np.array([(features[f.a] - features[f.b]) / reward.scale for f in feedback])
    known = Known(reward, fit_ensemble(fitted, reference, PLAN, seed=0), told)
    candidates = [Candidate(samples[i], samples[j], "") for i, j in rows]
    place = {s.id: i for i, s in enumerate(samples)}
    chosen = pick(strategy, candidates, (z - reward.mean) / reward.scale, place, known, BATCH, luck)
    return [rows[int(i)] for i in chosen.place]


def ratio(random: list[Path], other: list[Path]) -> float:
    """Labels that `other` needs for what random pairs reach with `MOST`, as a share of `MOST`; over the runs' means."""
    goal = float(np.mean([p.utility[-1] for p in random]))
    labels = np.array(random[0].labels, dtype=float)
    curve = np.maximum.accumulate(np.mean([p.utility for p in other], axis=0))
    if curve[-1] < goal:
        return MISSED
    return float(np.interp(goal, curve, labels) / labels[-1])


def ratios(random: list[Path], other: list[Path], draws: int = 500) -> tuple[float, float, float]:
    """(ratio, its 95% interval's ends), seeds resampled together."""
    luck, count = np.random.default_rng(0), len(random)
    drawn = []
    for _ in range(draws):
        at = luck.integers(count, size=count)
        drawn.append(ratio([random[i] for i in at], [other[i] for i in at]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return ratio(random, other), float(low), float(high)


def measure_selection(seeds: int) -> dict[str, object]:
    """The strategy that is best on `seeds` seeds, and what it saves on as many fresh ones."""
    chosen_on, fresh = range(seeds), range(seeds, 2 * seeds)
    random = [climb("random", seed) for seed in chosen_on]
    tried = {s: ratio(random, [climb(s, seed) for seed in chosen_on]) for s in TRIED}
    best = min(tried, key=lambda s: tried[s])
    plain, ours = ([climb(s, seed) for seed in fresh] for s in ("random", best))
    return {
        "strategy": best,
        "chosen on": tried,
        "ratio": ratios(plain, ours),
        "utility": [float(np.mean([p.utility[-1] for p in paths])) for paths in (plain, ours)],
        "accuracy change": [a.accuracy[-1] - b.accuracy[-1] for a, b in zip(ours, plain, strict=True)],
    }
