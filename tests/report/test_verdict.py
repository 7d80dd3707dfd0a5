import pytest

from backflip.report.data import Estimate, Version
from backflip.report.verdict import judge_score


def version(number: int, proxy: float, utility: float, half: float = 0.1) -> Version:
    interval = Estimate(value=utility, low=utility - half, high=utility + half)
    return Version(number=number, kl=Estimate(value=2.0 * number), proxy=Estimate(value=proxy), utility=interval)


@pytest.mark.parametrize(
    ("proxies", "utilities", "kind", "best"),
    [
        ((0.0, 1.0, 2.0), (0.0, 0.5, 1.0), "together", 2),
        ((0.0, 1.0, 2.0), (0.0, 0.5, 0.55), "unclear", 2),
        ((0.0, 1.0, 0.9), (0.0, 0.5, 1.0), "behind", 2),
        ((0.0, 1.0, 2.0), (0.0, 1.0, 0.5), "parted", 1),
        ((0.0, 1.0, 2.0), (0.0, 1.0, 0.95), "perhaps", 1),
        ((0.0, 1.0, 0.9), (0.0, 1.0, 0.5), "fell", 1),
        ((0.0, 1.0), (0.5, 0.0), "parted", 0),
    ],
)
def test_the_score_is_believed_only_while_both_rise(
    proxies: tuple[float, ...], utilities: tuple[float, ...], kind: str, best: int
) -> None:
    # intervals are +-0.1: a change of 0.5 lies outside, one of 0.05 inside
    verdict = judge_score([version(k, p, u) for k, (p, u) in enumerate(zip(proxies, utilities, strict=True))])

    assert verdict is not None
    assert (verdict.kind, verdict.best.number, verdict.last.number) == (kind, best, len(proxies) - 1)


def test_nothing_is_said_without_two_measured_versions() -> None:
    untouched = version(0, 0.0, 0.0)
    unjudged = Version(number=1, kl=Estimate(value=2.0), proxy=Estimate(value=1.0))

    assert judge_score([]) is None
    assert judge_score([untouched]) is None
    assert judge_score([untouched, unjudged]) is None


@pytest.mark.parametrize(("best_half", "last_half"), [(0.1, 0.2), (0.2, 0.1)])
def test_a_change_is_clear_only_if_each_value_lies_outside_the_others_interval(
    best_half: float, last_half: float
) -> None:
    # 1.0 and 0.85 lie 0.15 apart: outside the interval of half width 0.1, inside the one of 0.2
    verdict = judge_score([version(0, 0.0, 1.0, half=best_half), version(1, 1.0, 0.85, half=last_half)])

    assert verdict is not None
    assert verdict.kind == "perhaps"
