"""From reward gaps to the chance of a vote: a temperature, and the width of a tie, fitted on votes of left-out prompts.

A fit is surer of the votes it has seen than of others; how much surer, only votes it has not seen can tell.
Source: Guo et al. 2017 (arXiv:1706.04599), section 4.2.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from backflip.stats.judgements import TIE, pair_likelihood

Array = NDArray[np.float64]
SPREAD = 0.5
"""Standard deviation of the prior of the logarithm of the temperature's inverse, around 0: few votes move it little."""
BOUNDS = (-4.0, 3.0)
"""Of both logarithms."""


class Calibration(NamedTuple):
    """P(a) = s(sharpness x gap - tie), and so on as in `stats.judgements`."""

    sharpness: float
    """1 / temperature."""
    tie: float
    """0 where nobody called a tie."""


def calibrate(gap: Array, choice: NDArray[np.int64], weight: Array, tie: float) -> Calibration:
    """The temperature and tie width under which held-out votes are likeliest; whoever cast them counts as one rater.

    Shapes: gap (P,) in logits, choice (P,) as in `judgements.CODES`, weight (P,). `tie` is where the search begins,
    and what is kept where no vote is left. Raises: ValueError when the lengths differ or a gap is not finite.
    """
    if not len(gap) == len(choice) == len(weight) or not np.isfinite(gap).all():
        raise ValueError("gap, choice and weight must be (P,), of one length and finite")
    if not weight.sum() > 0:
        return Calibration(1.0, tie)
    tied = bool((choice >= TIE).any())
    no = np.zeros(len(gap), dtype=np.int64)

    def loss(at: Array) -> tuple[float, Array]:
        width = np.full(len(gap), at[1]) if tied else None
        said = pair_likelihood(np.exp(at[0]) * gap, choice, no, width, None, None)
        by_sharpness = weight @ (said.view * np.exp(at[0]) * gap)
        value = 0.5 * (at[0] / SPREAD) ** 2 - weight @ said.logp
        return float(value), np.array([at[0] / SPREAD**2 - by_sharpness, -weight @ said.tie])

    start = np.array([0.0, np.log(np.clip(tie, np.exp(BOUNDS[0]), np.exp(BOUNDS[1])))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[BOUNDS, BOUNDS])
    return Calibration(float(np.exp(found.x[0])), float(np.exp(found.x[1])) if tied else tie)
