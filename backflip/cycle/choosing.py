"""Which pairs to ask about, from round 2 on: what a vote on each would teach, by the votes of the rounds before.

Only the stream that serves the fit is chosen; held-out pairs stay random. What a strategy scores, and how sure each
pair is to be asked, is in `stats.selection`.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from backflip.core.records import Pair, Sample
from backflip.cycle.fit import compute_features, learned_of_round, seen_by
from backflip.cycle.tools import Tools
from backflip.raters.pairs import Candidate, Chooser, chosen_pairs
from backflip.rewards.ensemble import Ensemble
from backflip.rewards.fit import Reward
from backflip.stats import selection
from backflip.stats.selection import Chosen

Array = NDArray[np.float64]
BY_LOT = 0.25
"""Share of pairs that a greedy strategy leaves to the lot, so that none is beyond reach."""
BEST_SHARE, FEWEST_BEST = 0.25, 3
"""Which of a prompt's answers count as its predicted best: this share, but never fewer."""
DRAWS = 200
"""Rewards that may be true, drawn for Thompson sampling."""


class Known(NamedTuple):
    """What the votes so far say. Shapes: told (P, F), standardised features of one answer less the other's."""

    reward: Reward
    ensemble: Ensemble | None
    told: Array


class Scene(NamedTuple):
    """The candidates in coordinates of their own span (D numbers), with what is known of the reward there."""

    apart: Array
    """(C, D) gaps."""
    weight: Array
    """(D,) of the reward, in logits."""
    covariance: Array
    """(D, D) of the weights around it."""
    members: Array
    """(K, D) weights of the ensemble, in logits; no row without one."""


def known_before(number: int, tools: Tools) -> Known | None:
    """What round `number` knows before anybody has voted in it; None where the plan leaves its pairs to the lot."""
    if tools.plan.rate.choose == "random" or number == 1:
        return None
    reward, ensemble, _ = learned_of_round(number - 1, tools)
    seen = seen_by(number - 1, tools).decided()
    told = seen.apart((seen.features - reward.mean) / reward.scale)
    return Known(reward, ensemble, told)


def open_chosen(
    samples: Sequence[Sample], known: Known, tools: Tools, round: int, count: int, before: int
) -> list[Pair]:
    """The pairs of one batch of answers that the plan's strategy picks, `before` having been opened before."""
    z = (compute_features(tools, samples) - known.reward.mean) / known.reward.scale
    place = {s.id: i for i, s in enumerate(samples)}

    def choose(candidates: Sequence[Candidate], wanted: int, luck: np.random.Generator) -> Chosen:
        return pick(tools.plan.rate.choose, candidates, z, place, known, wanted, luck)

    chooser: Chooser = choose
    return chosen_pairs(
        samples, chooser, round=round, stream="fit", count=count, seed=tools.plan.seed, double_share=tools.double_share,
        before=before,
    )  # fmt: skip


def pick(
    strategy: str,
    candidates: Sequence[Candidate],
    z: Array,
    place: dict[str, int],
    known: Known,
    count: int,
    luck: np.random.Generator,
) -> Chosen:
    """`count` candidates by a plan's `rate.choose`. Shapes: z (B, F), standardised features; `place` its rows by id."""
    if not candidates or not count:
        return Chosen(np.zeros(0, dtype=np.int64), np.zeros(0))
    sides = np.array([(place[c.first.id], place[c.second.id]) for c in candidates])
    scene = scene_of(z[sides[:, 0]] - z[sides[:, 1]], known)
    everyone = np.arange(len(candidates))
    if strategy in ("variance", "best"):
        among = everyone if strategy == "variance" else _among_the_best(candidates, sides, z @ known.reward.weight)
        greedy = min(len(among), round((1 - BY_LOT) * count))
        chosen = selection.greedy_variance(scene.apart[among], scene.weight, scene.covariance, greedy)
        return selection.with_exploration(among[chosen], len(candidates), count, luck)
    if strategy == "uncertain":
        score = selection.uncertainty(scene.apart, scene.weight)
    elif strategy == "disagreement":
        score = selection.disagreement(scene.apart, scene.members)
    elif strategy == "information":
        score = selection.information(scene.apart, scene.weight, scene.covariance)
    else:
        score = _thompson(candidates, scene, luck)
    return selection.draw(selection.inclusion(score, count), luck)


def scene_of(apart: Array, known: Known) -> Scene:
    """The candidates' gaps (C, F) in their span, with the posterior there: normal around the reward, by its curvature.

    The curvature is prior + sum of p (1 - p) x x^T over the votes' gaps x; its inverse is taken in as few numbers as
    there are votes or features.
    """
    c, f = apart.shape
    basis = np.linalg.qr(apart.T)[0] if c < f else np.eye(f)
    reward, told = known.reward, known.told
    p = expit(told @ reward.weight * reward.slope)
    rows = told * np.sqrt(p * (1 - p))[:, None]
    inside = rows @ basis
    if len(rows) < f:
        gram = rows @ rows.T + reward.prior * np.eye(len(rows))
        covariance = (np.eye(basis.shape[1]) - inside.T @ np.linalg.solve(gram, inside)) / reward.prior
    else:
        covariance = basis.T @ np.linalg.solve(rows.T @ rows + reward.prior * np.eye(f), basis)
    members = np.zeros((0, f)) if known.ensemble is None else known.ensemble.weight
    return Scene(apart @ basis, reward.slope * (reward.weight @ basis), covariance, reward.slope * (members @ basis))


def _among_the_best(candidates: Sequence[Candidate], sides: NDArray[np.int64], score: Array) -> NDArray[np.int64]:
    """Places of the candidates of which both answers are among the predicted best of their prompt."""
    answers: dict[str, set[int]] = defaultdict(set)
    for candidate, (a, b) in zip(candidates, sides, strict=True):
        answers[candidate.first.prompt_id] |= {int(a), int(b)}
    best: set[int] = set()
    for own in answers.values():
        kept = max(FEWEST_BEST, round(BEST_SHARE * len(own)))
        best |= set(sorted(own, key=lambda i: -score[i])[:kept])
    return np.array([i for i, (a, b) in enumerate(sides) if a in best and b in best], dtype=np.int64)


def _thompson(candidates: Sequence[Candidate], scene: Scene, luck: np.random.Generator) -> Array:
    """(C,) chance that two rewards drawn from what may be true name the pair as a prompt's best two answers."""
    size, axes = np.linalg.eigh(scene.covariance)
    normal = luck.standard_normal((DRAWS, len(size))) * np.sqrt(np.maximum(size, 0.0))
    gaps = scene.apart @ (scene.weight + normal @ axes.T).T  # (C, S)
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for c in candidates:
        for s in (c.first, c.second):
            places[c.first.prompt_id].setdefault(s.id, len(places[c.first.prompt_id]))
    score = np.zeros(len(candidates))
    for prompt, own in places.items():
        mine = [i for i, c in enumerate(candidates) if c.first.prompt_id == prompt]
        rewards = np.zeros((len(own), DRAWS))  # of each answer against the first, whose pairs are all among them
        for i in mine:
            if own[candidates[i].first.id] == 0:
                rewards[own[candidates[i].second.id]] = -gaps[i]
        chance = selection.double_thompson(rewards.T)
        for i in mine:
            a, b = sorted((own[candidates[i].first.id], own[candidates[i].second.id]))
            score[i] = chance[a, b]
    return score
