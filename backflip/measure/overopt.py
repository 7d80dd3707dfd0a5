"""Best of n from the untouched model's scored answers: its curve, both laws fitted to it, and where gold turns."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.stats.best_of_n import best_of_n_curve, best_of_n_kl
from backflip.stats.bootstrap import Interval, bootstrap_mean
from backflip.stats.overopt import Form, fit_form, foretell

Array = NDArray[np.float64]
FORMS: tuple[Form, ...] = ("best_of_n", "rl")
EACH = 16
"""Up to here every n is looked at; beyond, each is about a fifth larger than the one before."""


class Point(NamedTuple):
    """What best of `n` gains over a single answer, mean over prompts with 95% by bootstrap over prompts."""

    n: int
    proxy: Interval
    """In the reward's own unit."""
    gold: Interval | None
    """In gold's own unit; None where nobody knows gold."""


class Law(NamedTuple):
    """A law fitted to gold's curve, and how it foretold the far part (n > N / 4) from the near one, on other prompts.

    `error` and `flat_error`: root mean square error of the law, and of the guess that gold stays as it was, in gold's
    unit; `gain`: squared error of the flat guess minus that of the law, interval over the new prompts. None where there
    are too few answers or prompts to foretell from.
    """

    form: Form
    alpha: Interval
    beta: Interval
    peak: Interval | None
    """KL in nats at which gold is highest; None: no peak in sight up to N."""
    error: float | None
    flat_error: float | None
    gain: Interval | None


def points_of(answers: int) -> list[int]:
    """The n that are looked at with so many answers a prompt, from 1 to all of them."""
    wide = np.geomspace(EACH, max(answers, EACH), 1 + max(0, round(4 * np.log2(max(answers, EACH) / EACH))))
    return sorted({n for n in [*range(1, EACH + 1), *(round(x) for x in wide.tolist()), answers] if n <= answers})


def best_of_n_points(proxy: Array, gold: Array | None, seed: int) -> list[Point]:
    """The gain of best of n, n from 2 to N, over one answer.

    Shapes: proxy, gold (P, N): N answers of the untouched model to each of P prompts. Raises: ValueError with fewer
    than 2 prompts or a score that is not finite.
    """
    ns = points_of(proxy.shape[1])
    curves = [None if table is None else best_of_n_curve(proxy, table, ns) for table in (proxy, gold)]

    def gain(curve: Array | None, at: int) -> Interval | None:
        return None if curve is None else bootstrap_mean(curve[:, at] - curve[:, 0], seed)

    out = []
    for i, n in enumerate(ns[1:], start=1):
        by_proxy = gain(curves[0], i)
        assert by_proxy is not None
        out.append(Point(n, by_proxy, gain(curves[1], i)))
    return out


def laws(proxy: Array, gold: Array, seed: int) -> list[Law]:
    """Both laws of Gao et al. fitted to gold's curve; empty with too few answers (4) or prompts (2) for a fit.

    Shapes: proxy, gold (P, N). Source: Gao, Schulman & Hilton 2022 (arXiv:2210.10760).
    """
    count = proxy.shape[1]
    ns = points_of(count)
    if len(proxy) < 2 or len(ns) < 4:
        return []
    curve = best_of_n_curve(proxy, gold, ns)
    gains = curve - curve[:, :1]
    d = np.sqrt([best_of_n_kl(n) for n in ns])
    near = sum(n <= count / 4 for n in ns)
    out = []
    for form in FORMS:
        turn = fit_form(form, d, gains, seed)
        peak = None if turn.peak is None else Interval(*(float(x) ** 2 for x in turn.peak))
        told = foretell(form, d, gains, near, seed) if near >= 4 and len(proxy) >= 4 else None
        errors = (None, None, None) if told is None else (told.error, told.flat_error, told.gain)
        out.append(Law(form, turn.alpha, turn.beta, peak, *errors))
    return out


def better_law(fitted: list[Law]) -> Law | None:
    """The law that foretold better; the one for best of n where nothing could be foretold."""
    told = [law for law in fitted if law.error is not None]
    return min(told, key=lambda law: law.error or 0.0) if told else next(iter(fitted), None)
