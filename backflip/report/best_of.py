"""Best of n for the page, from the figures that the cycle kept."""

from backflip.measure.overopt import FORMS
from backflip.report.data import BestOf, BestPoint, Estimate, Law
from backflip.report.figures import Figures
from backflip.stats.best_of_n import best_of_n_kl


def best_of_n(figures: Figures) -> BestOf | None:
    """Best of n under the newest reward that it was measured with; None where it never was."""
    rounds = [
        r for r, t in figures.places("measure") if t == 0 and "best_of/proxy_gain" in figures.values(r, "measure")
    ]
    if not rounds:
        return None
    at = rounds[-1]

    def get(name: str, tick: int = 0) -> Estimate | None:
        return figures.estimate(at, "measure", f"best_of/{name}", tick)

    own = get("gold_sd")
    sd = own.value if own else 0.0
    points = []
    for n in (t for r, t in figures.places("measure") if r == at and t > 1):
        if (proxy := get("proxy", n)) is None:
            continue
        gold = get("gold", n) if sd > 0 else None
        points.append(BestPoint(n=n, kl=best_of_n_kl(n), proxy=proxy, gold=gold and _scaled(gold, sd)))
    laws = (
        Law(
            form=form, peak=get(f"{form}/peak"), error=get(f"{form}/foretold_error"),
            flat_error=get(f"{form}/foretold_flat_error"), gain=get(f"{form}/foretold_gain"),
        )
        for form in FORMS
        if get(f"{form}/alpha")
    )  # fmt: skip
    return BestOf(points=tuple(points), laws=tuple(laws), peak=get("peak")) if points else None


def _scaled(estimate: Estimate, sd: float) -> Estimate:
    low, high = (None if b is None else b / sd for b in (estimate.low, estimate.high))
    return Estimate(value=estimate.value / sd, low=low, high=high)
