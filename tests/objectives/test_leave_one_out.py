import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from backflip.objectives.group import leave_one_out


def test_each_answer_is_compared_with_the_mean_of_the_others():
    # group 7: 1 - (2+6)/2, 2 - (1+6)/2, 6 - (1+2)/2; group 3: 10 - 20 and 20 - 10
    reward = torch.tensor([1.0, 10.0, 2.0, 20.0, 6.0])
    group = torch.tensor([7, 3, 7, 3, 7])
    assert leave_one_out(reward, group).tolist() == [-3.0, -10.0, -1.5, 10.0, 4.5]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(-50, 50))
def test_advantages_sum_to_zero_and_ignore_a_shift_of_one_group(seed: int, size: int, shift: float):
    rng = torch.Generator().manual_seed(seed)
    reward = torch.randn(3 * size, generator=rng, dtype=torch.float64)
    group = (torch.arange(3 * size) % 3)[torch.randperm(3 * size, generator=rng)]
    adv = leave_one_out(reward, group)
    assert_close(torch.zeros(3, dtype=torch.float64).index_add(0, group, adv), torch.zeros(3, dtype=torch.float64))
    assert_close(leave_one_out(reward + shift * (group == 1), group), adv)


def test_no_gradient_flows():
    reward = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not leave_one_out(reward, torch.tensor([0, 0])).requires_grad


def test_it_refuses_lonely_answers_and_wrong_shapes():
    with pytest.raises(ValueError, match="one answer only"):
        leave_one_out(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="must be"):
        leave_one_out(torch.tensor([1.0, 2.0]), torch.tensor([0]))
