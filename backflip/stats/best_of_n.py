"""Best of n: draw n answers, keep the one that scores highest. Its law, its distance, and what it would earn."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]


def best_of_n_law(p: ArrayLike, score: ArrayLike, n: int) -> Array:
    """(A,) probability that each of A answers is the best of `n` independent draws.

    An answer's share is F(score)**n - F(score-)**n, F being the distribution function of the score; answers that
    score the same share it in proportion to `p`, as they do when the first of the best is kept.

    Shapes: p (A,) probabilities that sum to 1, score (A,). Raises: ValueError when they do not fit or n is below 1.
    Source: order statistics; for language models Stiennon et al. 2020 (arXiv:2009.01325).
    """
    p, score = np.asarray(p, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if p.ndim != 1 or p.shape != score.shape or (p < 0).any() or not math.isclose(p.sum(), 1.0, abs_tol=1e-9):
        raise ValueError("p must be (A,) probabilities that sum to 1, with a score each")
    if n < 1:
        raise ValueError(f"n must be 1 or more, not {n}")
    _, level = np.unique(score, return_inverse=True)
    mass = np.bincount(level, weights=p)
    reached = np.minimum(np.cumsum(mass), 1.0)
    best = np.diff(reached**n, prepend=0.0)
    share = np.divide(best, mass, out=np.zeros_like(best), where=mass > 0)
    return np.asarray(p * share[level])


def best_of_n_kl(n: int) -> float:
    """ln n - (n - 1) / n: how far best of n strays from the policy it draws from, in nats, at most.

    Exact where no two answers score the same and none is likely by itself. Raises: ValueError when n is below 1.
    Source: Stiennon et al. 2020; that it is a bound: Beirami et al. 2024 (arXiv:2401.01879).
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, not {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_mean(proxy: ArrayLike, gold: ArrayLike, n: int) -> float:
    """What the best of `n` answers by `proxy` is worth in `gold`, averaged over every choice of n of the N given.

    sum over ranks i = n ... N of C(i - 1, n - 1) / C(N, n) * gold(i), ranks by rising proxy: unbiased, with far less
    noise than one draw of n. Answers with the same proxy share their gold.

    Shapes: proxy, gold (N,). Raises: ValueError when they do not fit or n lies outside 1 ... N.
    Source: Nakano et al. 2021 (arXiv:2112.09332), appendix I.
    """
    proxy, gold = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if proxy.ndim != 1 or proxy.shape != gold.shape:
        raise ValueError("proxy and gold must be (N,) and of one length")
    count = len(proxy)
    if not 1 <= n <= count:
        raise ValueError(f"n must lie in 1 ... {count}, not {n}")
    _, level, size = np.unique(proxy, return_inverse=True, return_counts=True)
    shared = np.bincount(level, weights=gold) / size
    rank = np.arange(n, count + 1)
    log_weight = _log_choose(rank - 1, n - 1) - _log_choose(np.array(count), n)
    return float(np.exp(log_weight) @ shared[np.sort(level)][n - 1 :])


def best_of_n_curve(proxy: ArrayLike, gold: ArrayLike, ns: Sequence[int]) -> Array:
    """(P, len(ns)) what the best of n by `proxy` is worth in `gold`, for each prompt and n: see `best_of_n_mean`.

    Shapes: proxy, gold (P, N), N scored answers to each of P prompts; pass the proxy as gold for its own curve.
    Raises: ValueError when the shapes do not fit, a number is not finite, or an n lies outside 1 ... N.
    """
    proxy, gold = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if proxy.ndim != 2 or proxy.shape != gold.shape:
        raise ValueError(f"proxy and gold must be (P, N) and alike, not {proxy.shape} and {gold.shape}")
    if not (np.isfinite(proxy).all() and np.isfinite(gold).all()):
        raise ValueError("a score is not finite")
    return np.array([[best_of_n_mean(p, g, n) for n in ns] for p, g in zip(proxy, gold, strict=True)])


def _log_choose(n: NDArray[np.int64], k: int) -> Array:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
