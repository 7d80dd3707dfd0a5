"""A policy against the untouched model on the same prompts: who wins, what changed, what it cost."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.stats.bootstrap import Interval, bootstrap_mean, paired_difference, win_rate

Array = NDArray[np.float64]
Gram = tuple[str, ...]


class Side(NamedTuple):
    """One model's answers, P prompts times G answers each.

    Shapes: utility, proxy, length (P, G); attributes[name] (P, G); logp_ref, kl (P, G): the reference's
    log-probability of an answer and the answer's KL estimate, both summed over its tokens, in nats;
    texts: P lists of G. `utility` and `attributes` are None and empty when there is no true utility.
    """

    utility: Array | None
    attributes: Mapping[str, Array]
    proxy: Array
    length: Array
    logp_ref: Array
    kl: Array
    texts: Sequence[Sequence[str]]


def compare(policy: Side, reference: Side, *, seed: int) -> dict[str, Interval]:
    """Every figure of policy against reference by name, with 95% intervals by bootstrap over prompts.

    `kl` in nats per answer; `reference_nats_added` in nats per token: the reference's negative
    log-probability per token of the policy's answers minus that of its own; `distinct2_ratio` without
    a unit: distinct word pairs per word pair, over the reference's.
    """
    out = {
        "kl": _mean(policy.kl, seed),
        "proxy": _mean(policy.proxy, seed), "proxy_reference": _mean(reference.proxy, seed),
        "length": _mean(policy.length, seed), "length_reference": _mean(reference.length, seed),
        "distinct2_ratio": distinct_ratio(policy.texts, reference.texts, 2, seed=seed),
        "reference_nats_added": nats_added(policy, reference, seed=seed),
        "proxy_win_rate": win_rate(policy.proxy, reference.proxy, seed),
    }  # fmt: skip
    together = {"": policy, "_reference": reference}
    out |= {
        f"length_correlation{end}": r
        for end, side in together.items()
        if (r := correlation(side.proxy, side.length, seed=seed)) is not None
    }
    if policy.utility is not None and reference.utility is not None:
        out["win_rate"] = win_rate(policy.utility, reference.utility, seed)
        out["utility"] = _mean(policy.utility, seed)
        out["utility_reference"] = _mean(reference.utility, seed)
        for name, after in policy.attributes.items():
            before = reference.attributes[name]
            out[f"attribute/{name}"] = _mean(after, seed)
            out[f"attribute_reference/{name}"] = _mean(before, seed)
            out[f"attribute_gain/{name}"] = paired_difference(after.mean(1), before.mean(1), seed)
    return out


def nats_added(policy: Side, reference: Side, *, seed: int) -> Interval:
    """How much less likely a token of the policy's answers is to the reference, in nats per token."""
    after = -policy.logp_ref.sum(1) / policy.length.sum(1)
    before = -reference.logp_ref.sum(1) / reference.length.sum(1)
    return paired_difference(after, before, seed)


def correlation(a: Array, b: Array, *, seed: int, draws: int = 1000) -> Interval | None:
    """Pearson's r of a and b (P, G) over all answers, 95% by bootstrap over prompts; None where either is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = a - a.mean(), b - b.mean()
    parts = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b]).sum(2)  # a prompt's sums: draws add them up
    rows = np.random.default_rng(seed).integers(len(a), size=(draws, len(a)))
    counts = np.stack([np.bincount(row, minlength=len(a)) for row in rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = _pearson(counts @ parts.T)
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return Interval(float(_pearson(parts.sum(1)[None])[0]), float(low), float(high))


def _pearson(sums: Array) -> Array:
    """(D,) from (D, 6) sums of 1, a, b, a^2, b^2, ab; not a number where either is constant."""
    n, a, b, aa, bb, ab = sums.T
    spread = np.sqrt(np.maximum(n * aa - a * a, 0.0)) * np.sqrt(np.maximum(n * bb - b * b, 0.0))
    return np.asarray(np.clip((n * ab - a * b) / spread, -1.0, 1.0))


def distinct_ratio(
    policy: Sequence[Sequence[str]], reference: Sequence[Sequence[str]], n: int, *, seed: int
) -> Interval:
    """Distinct n-grams per n-gram over all answers, policy over reference; 1 is as varied as before.

    The n-th answer of one meets the n-th answer of the other to the same prompt, and both are cut to the
    shorter one's n-grams, because the share falls with the amount of text. The interval comes from half-samples
    of the prompts.
    """
    cut = [
        [(x[: min(len(x), len(y))], y[: min(len(x), len(y))]) for x, y in _duels(after, before, n)]
        for after, before in zip(policy, reference, strict=True)
    ]

    def ratio(rows: Sequence[int]) -> float:
        after, before = ([g for r in rows for duel in cut[r] for g in duel[k]] for k in (0, 1))
        return len(set(after)) / len(set(before)) if before else 1.0

    rng = np.random.default_rng(seed)
    half = max(1, len(cut) // 2)
    draws = [ratio(rng.permutation(len(cut))[:half].tolist()) for _ in range(200)]
    value = ratio(range(len(cut)))
    spread = 1.96 * float(np.std(draws)) * (half / max(1, len(cut) - half)) ** 0.5  # a half-sample varies as the whole
    return Interval(value, value - spread, value + spread)


def _duels(after: Sequence[str], before: Sequence[str], n: int) -> list[tuple[list[Gram], list[Gram]]]:
    return [(_grams(x, n), _grams(y, n)) for x, y in zip(after, before, strict=True)]


def largest_share(gains: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Largest part that one attribute has in the net gain of utility; infinite when utility did not rise.

    Attributes that fell make the net gain smaller and so the share larger; it can exceed 1.
    """
    worth = [weights[name] * gain for name, gain in gains.items()]
    return max(worth) / sum(worth) if sum(worth) > 0 else float("inf")


def _grams(text: str, n: int) -> list[Gram]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _mean(table: Array, seed: int) -> Interval:
    """Mean over prompts of a (P, G) table, prompts resampled."""
    return bootstrap_mean(table.mean(1), seed)
