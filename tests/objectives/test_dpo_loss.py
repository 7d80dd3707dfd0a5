import math

import pytest
import torch

from backflip.objectives.dpo import dpo_loss


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_is_the_votes_log_likelihood_under_the_implicit_rewards():
    # gaps 0.5 * (3 - 1) = 1 and 0.5 * (0 - 2) = -1; a won the first, b the second: both agree with s(1)
    out = dpo_loss(t(3, 0), t(1, 2), t(1, 0), beta=0.5)

    assert float(out.loss) == pytest.approx(math.log1p(math.exp(-1)))
    assert (float(out.accuracy), float(out.margin)) == (1.0, 1.0)


def test_a_tie_is_half_a_win_of_each():
    out = dpo_loss(t(3), t(1), t(0.5), beta=0.5)

    assert float(out.loss) == pytest.approx(0.5 * math.log1p(math.exp(-1)) + 0.5 * math.log1p(math.exp(1)))
    assert (float(out.accuracy), float(out.margin)) == (0.5, 0.0)


def test_weights_count_and_parts_add_up_to_the_whole():
    a, b, wins, weight = t(1, 0, 2), t(0, 1, 5), t(1, 1, 0), t(1, 0.5, 2)
    whole = dpo_loss(a, b, wins, 0.3, weight=weight)
    parts = [dpo_loss(a[s], b[s], wins[s], 0.3, weight=weight[s], pairs=3.5) for s in (slice(0, 1), slice(1, 3))]
    by_hand = (1 * math.log1p(math.exp(-0.3)) + 0.5 * math.log1p(math.exp(0.3)) + 2 * math.log1p(math.exp(-0.9))) / 3.5

    assert float(whole.loss) == pytest.approx(by_hand)
    for name in ("loss", "accuracy", "margin"):
        assert float(sum(getattr(p, name) for p in parts)) == pytest.approx(float(getattr(whole, name)))
    assert float(whole.accuracy) == pytest.approx(3 / 3.5)


def test_the_gradient_pulls_the_winner_up_and_the_loser_down_by_how_wrong_the_policy_is():
    # d loss / d a = -beta * s(-gap): gap 0, beta 0.4
    a, b = t(0.0).requires_grad_(), t(0.0).requires_grad_()
    dpo_loss(a, b, t(1), 0.4).loss.backward()

    assert a.grad is not None
    assert b.grad is not None
    assert (float(a.grad), float(b.grad)) == pytest.approx((-0.2, 0.2))


def test_it_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="one length"):
        dpo_loss(t(1, 2), t(1), t(1), 0.1)
    with pytest.raises(ValueError, match="beta"):
        dpo_loss(t(1), t(1), t(1), 0.0)
    with pytest.raises(ValueError, match="wins"):
        dpo_loss(t(1), t(1), t(1.5), 0.1)
    with pytest.raises(ValueError, match="no pair"):
        dpo_loss(t(1), t(1), t(1), 0.1, weight=t(0))
