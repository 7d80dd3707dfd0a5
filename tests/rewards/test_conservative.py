"""What a climb is paid where the plan is wary: the least member, less for their variance, nothing for length."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from backflip.core.config import Unfit
from backflip.rewards.conservative import Scored, caution, combined, per_token
from backflip.rewards.plan import Fit

MEMBERS = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])


def test_what_is_paid_worked_by_hand():
    assert_allclose(combined(MEMBERS, Fit()), [3, 2])
    assert_allclose(combined(MEMBERS, Fit(conservative="worst")), [1, 2])
    # variance of 1, 3, 5: 8/3
    assert_allclose(combined(MEMBERS, Fit(conservative="uncertainty", uncertainty=0.3)), [3 - 0.8, 2])


def test_the_effect_of_length_is_its_least_squares_slope():
    length = np.array([1.0, 2.0, 3.0, 6.0])

    assert per_token(5 + 0.5 * length, length) == pytest.approx(0.5)
    assert per_token(np.array([1.0, 2.0]), np.array([4.0, 4.0])) == 0.0


@pytest.mark.parametrize("conservative", ["mean", "worst", "uncertainty"])
def test_length_alone_is_not_paid_and_the_untouched_model_stays_at_0(conservative):
    draw = np.random.default_rng(0)

    def scored(count: int, longer: float) -> Scored:
        length = draw.integers(5, 40, count) + longer
        return Scored(draw.normal(size=(4, count)) + 0.2 * length, length)

    sampled, reference = scored(50, 10.0), scored(80, 0.0)
    found = caution(Fit(conservative=conservative, length_free=True), sampled, reference)

    assert found.per_token == pytest.approx(0.2, abs=0.05)
    assert np.corrcoef(found.pay(*sampled), sampled.length)[0, 1] == pytest.approx(0, abs=1e-9)
    assert found.pay(*reference).mean() == pytest.approx(0, abs=1e-9)
    paid = caution(Fit(conservative=conservative), sampled, reference)
    assert paid.per_token == 0
    assert paid.pay(*reference).mean() == pytest.approx(0, abs=1e-9)


def test_one_member_alone_cannot_be_compared():
    for how in ("worst", "uncertainty"):
        with pytest.raises(Unfit, match=f'fit.conservative = "{how}" compares them'):
            Fit(conservative=how, members=1)
    assert Fit(length_free=True, members=1).length_free
