from itertools import permutations

import numpy as np
import pytest
import torch

from backflip.objectives.preference import probabilities
from backflip.stats.judgements import TIE, A, B, pair_likelihood, ranking_likelihood, thumb_likelihood

NO = np.zeros(3, dtype=np.int64)
EACH = np.array([A, B, TIE])


def chances(view: float, tie: float | None, lapse: float | None = None, guess: float = 0.0, **more) -> list[float]:
    said = EACH if tie is not None else EACH[:2]
    of = lambda x: None if x is None else np.full(len(said), x)  # noqa: E731
    return np.exp(
        pair_likelihood(np.full(len(said), view), said, NO[: len(said)], of(tie), of(lapse), None, guess, **more).logp
    ).tolist()


def test_ties_of_rao_and_kupper_are_those_of_the_preference_loss():
    want = [float(p) for p in probabilities(torch.tensor([1.3], dtype=torch.float64), 0.4)]

    assert chances(1.3, np.log(0.4)) == pytest.approx(want)


def test_davidsons_ties_worked_by_hand():
    # view 0: a and b weigh 1, the tie exp(ln 2) = 2; view 2 ln 3: a weighs 3, b 1/3
    assert chances(0.0, np.log(2.0), ties="davidson") == pytest.approx([1 / 4, 1 / 4, 1 / 2])
    assert chances(2 * np.log(3), np.log(2.0), ties="davidson") == pytest.approx([9 / 16, 1 / 16, 6 / 16])


def test_who_never_looks_answers_by_lot():
    # lapse 1/2; open eyes say a for sure, closed ones a 1/4, b 1/4, tie 1/2
    assert chances(100.0, np.log(0.1), 0.0, ties="rao-kupper") == pytest.approx([5 / 8, 1 / 8, 2 / 8])
    # nobody may be undecided: a or b by lot
    assert chances(100.0, None, 0.0) == pytest.approx([3 / 4, 1 / 4])


def test_a_vote_without_a_strength_is_one_with_any_strength():
    view, cut = np.full(4, 0.8), np.tile([0.5, 1.7], (4, 1))
    for code in (A, B):
        for lapse in (None, np.full(4, -1.0)):
            said = pair_likelihood(
                view, np.full(4, code), np.array([0, 1, 2, 3]), np.full(4, -1.0), lapse, cut, ties="rao-kupper"
            )
            p = np.exp(said.logp)
            assert p[0] == pytest.approx(p[1:].sum())


def test_strengths_worked_by_hand():
    # view ln 3, cuts 0 and ln 3: P(a) = 3/4; of those, stronger than 1 s(ln 3) = 3/4, stronger than 2 s(0) = 1/2
    said = pair_likelihood(
        np.full(3, np.log(3)), np.full(3, A), np.array([1, 2, 3]), None, None, np.tile([0, np.log(3)], (3, 1))
    )
    assert np.exp(said.logp) == pytest.approx([3 / 4 * 1 / 4, 3 / 4 * 1 / 4, 3 / 4 * 1 / 2])


def test_the_orders_of_three_answers_exhaust_what_can_happen():
    reward = np.array([0.3, -1.0, 2.0])
    views = np.array([reward[list(order)] for order in permutations(range(3))])
    for lapse in (None, np.full(6, 0.7)):
        assert np.exp(ranking_likelihood(views, lapse)[0]).sum() == pytest.approx(1)
    # best first of weights 1, 2, 3: 3/6 * 2/3
    order = np.log([[3.0, 2.0, 1.0]])
    assert np.exp(ranking_likelihood(order, None)[0]) == pytest.approx([1 / 3])


def test_an_order_of_two_is_a_vote_however_the_row_is_filled_up():
    short = ranking_likelihood(np.array([[1.5, 0.2, -np.inf]]), None)

    assert np.exp(short[0]) == pytest.approx(chances(1.3, None)[0])
    assert short[1][0, 2] == 0


def test_thumbs_worked_by_hand():
    up, down = np.array([True]), np.array([False])
    view = np.array([np.log(4.0)])
    assert np.exp(thumb_likelihood(view, up, None)[0]) == pytest.approx([4 / 5])
    assert np.exp(thumb_likelihood(view, down, np.array([0.0]))[0]) == pytest.approx([(1 / 5 + 1 / 2) / 2])


def test_votes_without_a_probability_are_refused():
    with pytest.raises(ValueError, match="undecided"):
        pair_likelihood(np.zeros(1), np.array([TIE]), NO[:1], None, None, None)
    with pytest.raises(ValueError, match="strength"):
        pair_likelihood(np.zeros(1), np.array([A]), NO[:1] + 1, None, None, None)


def test_far_views_stay_finite():
    for ties in ("rao-kupper", "davidson"):
        for code in EACH:
            for view in (-800.0, 800.0):
                said = pair_likelihood(
                    np.array([view]), np.array([code]), NO[:1], np.zeros(1), np.array([-3.0]), None, ties=ties
                )
                assert all(np.isfinite(x).all() for x in said)
