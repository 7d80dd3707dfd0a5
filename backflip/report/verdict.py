"""Where to stop believing the score: does the proxy still rise while the true utility does not?"""

from collections.abc import Sequence

from backflip.report.data import Estimate, Kind, Verdict, Version


def judge_score(versions: Sequence[Version]) -> Verdict | None:
    """Compare the last version with the one of highest true utility; None with fewer than two measured versions."""
    known = [v for v in versions if v.utility is not None and v.proxy is not None]
    if len(known) < 2:
        return None
    last = known[-1]
    best = max(known, key=lambda v: _of(v.utility).value)
    before = known[-2] if best is last else best
    return Verdict(kind=_kind(before, last, still_rising=best is last), best=best, last=last)


def _kind(before: Version, last: Version, *, still_rising: bool) -> Kind:
    proxy_rose = _of(last.proxy).value > _of(before.proxy).value
    if still_rising:
        if not proxy_rose:
            return "behind"
        return "together" if _apart(_of(before.utility), _of(last.utility)) else "unclear"
    if not proxy_rose:
        return "fell"
    return "parted" if _apart(_of(last.utility), _of(before.utility)) else "perhaps"


def _apart(lower: Estimate, upper: Estimate) -> bool:
    """Each value lies outside the other's interval, `upper` above (an estimate without interval is exact)."""
    top = lower.value if lower.high is None else lower.high
    bottom = upper.value if upper.low is None else upper.low
    return upper.value > top and bottom > lower.value


def _of(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate
