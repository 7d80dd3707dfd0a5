import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from backflip.objectives.ppo import entropy, policy_loss, truncated_importance, value_loss


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def mask(*values: bool) -> Tensor:
    return torch.tensor([values])


def ragged(seed: int, rows: int = 6, width: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, logp_old, adv and a right-padded mask with at least one token a row."""
    rng = torch.Generator().manual_seed(seed)
    logp, logp_old, adv = (torch.randn(rows, width, generator=rng, dtype=torch.float64) for _ in range(3))
    length = torch.randint(1, width + 1, (rows, 1), generator=rng)
    return logp, logp_old, adv, torch.arange(width) < length


def test_gain_is_capped_when_a_good_token_got_likelier():
    # ratio e, advantage +1, clip 0.2: the objective stops at 1.2
    out = policy_loss(row(1.0), row(0.0), row(1.0), mask(True), clip=0.2)
    assert_close(out.loss, torch.tensor(-1.2, dtype=torch.float64))
    assert out.clipfrac == 1


def test_gain_is_capped_when_a_bad_token_got_rarer():
    # ratio 1/e, advantage -1: the objective stops at -0.8
    out = policy_loss(row(-1.0), row(0.0), row(-1.0), mask(True), clip=0.2)
    assert_close(out.loss, torch.tensor(0.8, dtype=torch.float64))
    assert out.clipfrac == 1


def test_a_mistake_is_never_clipped():
    # a good token got rarer (ratio 1/e, adv 1), a bad one likelier (ratio e, adv -1): both count in full
    out = policy_loss(row(-1.0, 1.0), row(0.0, 0.0), row(1.0, -1.0), mask(True, True))
    assert_close(out.loss, torch.tensor((-math.exp(-1) + math.e) / 2, dtype=torch.float64))
    assert out.clipfrac == 0


def test_the_default_clip_is_a_fifth():
    inside = policy_loss(row(math.log(1.19)), row(0.0), row(1.0), mask(True))
    outside = policy_loss(row(math.log(1.3)), row(0.0), row(1.0), mask(True))
    assert inside.loss.item() == pytest.approx(-1.19)
    assert outside.loss.item() == pytest.approx(-1.2)


def test_a_clipped_token_has_no_gradient_and_an_unclipped_one_its_ratio_times_advantage():
    logp = row(1.0, 0.1).requires_grad_()
    policy_loss(logp, row(0.0, 0.0), row(1.0, 3.0), mask(True, True)).loss.backward()
    assert logp.grad is not None
    assert_close(logp.grad, row(0.0, -3.0 * math.exp(0.1) / 2))


def test_the_log_ratio_is_clamped_at_twenty():
    # a bad token 1000 nats likelier: the ratio stops at e^20 instead of overflowing
    out = policy_loss(row(0.0), row(-1000.0), row(-1.0), mask(True))
    assert_close(out.loss, torch.tensor(math.exp(20.0), dtype=torch.float64))
    assert_close(out.approx_kl, torch.tensor(math.exp(20.0) - 21.0, dtype=torch.float64))
    low = policy_loss(row(-1000.0), row(0.0), row(1.0), mask(True))
    assert_close(low.ratio, torch.tensor(math.exp(-20.0), dtype=torch.float64))


def test_at_ratio_one_nothing_is_clipped_and_the_kl_is_exactly_zero():
    logp, _, adv, m = ragged(1)
    out = policy_loss(logp, logp.clone(), adv, m)
    assert (out.ratio, out.approx_kl, out.clipfrac) == (1, 0, 0)
    assert_close(out.loss, -adv[m].mean())


def test_approx_kl_is_the_mean_of_ratio_minus_one_minus_log_ratio():
    # ratios 2 and 1/2: (1 - ln 2 + ln 2 - 1/2) / 2 = 1/4
    out = policy_loss(row(math.log(2), -math.log(2)), row(0.0, 0.0), row(0.0, 0.0), mask(True, True))
    assert out.approx_kl.item() == pytest.approx(0.25)
    assert out.ratio.item() == pytest.approx(1.25)


def test_only_logp_gets_a_gradient():
    logp, logp_old, adv, m = (x.requires_grad_() if x.is_floating_point() else x for x in ragged(2))
    weight = torch.ones_like(adv).requires_grad_()
    out = policy_loss(logp, logp_old, adv, m, weight=weight)
    out.loss.backward()
    assert logp.grad is not None
    assert logp_old.grad is adv.grad is weight.grad is None
    assert not out.clipfrac.requires_grad
    assert not out.approx_kl.requires_grad
    assert not out.ratio.requires_grad


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 5))
def test_accumulating_parts_equals_one_big_batch(seed: int, cut: int):
    logp, logp_old, adv, m = ragged(seed)
    whole_logp = logp.clone().requires_grad_()
    whole = policy_loss(whole_logp, logp_old, adv, m)
    whole.loss.backward()

    parts_logp = logp.clone().requires_grad_()
    parts = []
    for part in (slice(0, cut), slice(cut, None)):
        out = policy_loss(parts_logp[part], logp_old[part], adv[part], m[part], tokens=int(m.sum()))
        out.loss.backward()
        parts.append(out)
    assert_close(parts_logp.grad, whole_logp.grad)
    for name in ("loss", "clipfrac", "approx_kl", "ratio"):
        assert_close(sum(getattr(p, name) for p in parts), getattr(whole, name))


def test_a_mean_of_means_would_be_another_loss():
    # three tokens in one row, one in the other: the token mean weighs them 3 to 1, not 1 to 1
    adv = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    m = torch.tensor([[True, True, True], [True, False, False]])
    out = policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), adv, m)
    assert out.loss.item() == pytest.approx(-(3 * 1 + 5) / 4)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e9])
def test_padding_may_hold_anything(garbage: float):
    logp, logp_old, adv, m = ragged(3)
    clean = logp.clone().requires_grad_()
    policy_loss(clean, logp_old, adv, m, weight=torch.ones_like(adv)).loss.backward()

    dirty = logp.masked_fill(~m, garbage).requires_grad_()
    filled = (x.masked_fill(~m, garbage) for x in (logp_old, adv))
    out = policy_loss(dirty, *filled, m, weight=torch.ones_like(adv).masked_fill(~m, garbage))
    out.loss.backward()
    assert all(x.isfinite() for x in out)
    assert_close(dirty.grad, clean.grad)
    value = logp.masked_fill(~m, garbage).requires_grad_()
    rest = (x.masked_fill(~m, garbage) for x in (logp_old, adv))
    critic = value_loss(value, *rest, m)
    critic.loss.backward()
    assert_close(critic.loss, value_loss(logp, logp_old, adv, m).loss)
    assert value.grad is not None
    assert value.grad.isfinite().all()


def test_weights_scale_each_tokens_gain():
    out = policy_loss(row(0.0, 0.0), row(0.0, 0.0), row(1.0, 3.0), mask(True, True), weight=row(2.0, 0.5))
    assert out.loss.item() == pytest.approx(-(2 * 1 + 0.5 * 3) / 2)


def test_importance_weights_are_truncated_at_the_cap():
    logp_old = row(math.log(0.9), math.log(0.3), 0.0).requires_grad_()
    got = truncated_importance(logp_old, row(math.log(0.3), math.log(0.6), -500.0))
    assert_close(got, row(2.0, 0.5, 2.0))
    assert not got.requires_grad
    assert_close(truncated_importance(logp_old, row(math.log(0.3), 0.0, 0.0), cap=5.0)[0, 0].item(), 3.0)


def test_value_loss_takes_the_larger_of_clipped_and_free_error():
    # was 0, now 1, clip 0.2. Target 1: free error 0, clipped 0.8. Target 0: free 1, clipped 0.2.
    out = value_loss(row(1.0, 1.0), row(0.0, 0.0), row(1.0, 0.0), mask(True, True))
    assert out.loss.item() == pytest.approx(0.5 * (0.8**2 + 1.0**2) / 2)
    assert out.clipfrac == 0.5


def test_a_value_beyond_the_clip_is_not_pushed_further():
    value = row(1.0, 0.1).requires_grad_()
    value_loss(value, row(0.0, 0.0), row(2.0, 2.0), mask(True, True)).loss.backward()
    assert value.grad is not None
    assert_close(value.grad, row(0.0, (0.1 - 2.0) / 2))


def test_only_the_value_gets_a_gradient_and_parts_add_up():
    value, value_old, returns, m = (x.requires_grad_() if x.is_floating_point() else x for x in ragged(4))
    whole = value_loss(value, value_old, returns, m)
    whole.loss.backward()
    assert value_old.grad is returns.grad is None
    parts = [value_loss(value[i], value_old[i], returns[i], m[i], tokens=int(m.sum())) for i in ([0, 1], [2, 3, 4, 5])]
    assert_close(parts[0].loss + parts[1].loss, whole.loss)
    assert_close(parts[0].clipfrac + parts[1].clipfrac, whole.clipfrac)


def test_entropy_of_known_distributions():
    # uniform over 4: ln 4; one certain token: 0; (1/2, 1/4, 1/4): 1.5 ln 2; forbidden tokens count nothing
    no = -math.inf
    logits = torch.tensor(
        [
            [0.0, 0.0, 0.0, 0.0],
            [0.0, no, no, no],
            [math.log(2), 0.0, 0.0, no],
        ],
        dtype=torch.float64,
    ).requires_grad_()
    got = entropy(logits)
    assert_close(got, torch.tensor([math.log(4), 0.0, 1.5 * math.log(2)], dtype=torch.float64))
    got.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_entropy_is_computed_in_float32_at_least():
    assert entropy(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"adv": torch.zeros(1, 2)}, "adv"),
        ({"logp": torch.zeros(1, 1, dtype=torch.bfloat16)}, "float32"),
        ({"mask": torch.ones(1, 1)}, "bool"),
        ({"mask": torch.zeros(1, 1, dtype=torch.bool)}, "at least one"),
        ({"weight": torch.ones(1)}, "weight"),
        ({"clip": 0.0}, "clip"),
        ({"tokens": 0}, "at least one"),
    ],
)
def test_policy_loss_refuses_what_does_not_fit(change: dict[str, object], says: str):
    good = {name: torch.zeros(1, 1) for name in ("logp", "logp_old", "adv")} | {"mask": mask(True)}
    with pytest.raises(ValueError, match=says):
        policy_loss(**(good | change))


def test_value_loss_and_importance_refuse_what_does_not_fit():
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="returns"):
        value_loss(one, one, torch.zeros(2, 1), mask(True))
    with pytest.raises(ValueError, match="clip"):
        value_loss(one, one, one, mask(True), clip=-1.0)
    with pytest.raises(ValueError, match="cap"):
        truncated_importance(one, one, cap=0.5)
    with pytest.raises(ValueError, match="logp_sampler"):
        truncated_importance(one, torch.zeros(1, 2))
