import pytest
import torch

from backflip.objectives.group import above_mean, normalised

GROUP = torch.tensor([7, 3, 7, 3, 7])


def test_above_the_mean_counts_the_answer_itself_in():
    # group 7: mean 3; group 3: mean 15
    assert above_mean(torch.tensor([1.0, 10.0, 2.0, 20.0, 6.0]), GROUP).tolist() == [-2.0, -5.0, -1.0, 5.0, 3.0]


def test_normalised_divides_by_the_deviation_of_the_groups_sample():
    # group 7: 1, 2, 6 about 3: variance (4 + 1 + 9) / 2 = 7; group 3: 10, 20 about 15: variance 50
    found = normalised(torch.tensor([1.0, 10.0, 2.0, 20.0, 6.0], dtype=torch.float64), GROUP)
    deviation = [7**0.5 + 1e-4, 50**0.5 + 1e-4]

    assert found.tolist() == pytest.approx(
        [-2 / deviation[0], -5 / deviation[1], -1 / deviation[0], 5 / deviation[1], 3 / deviation[0]], abs=1e-12
    )


def test_a_group_that_agrees_has_no_advantage():
    assert normalised(torch.tensor([2.0, 2.0, 2.0]), torch.tensor([0, 0, 0])).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("advantage", [above_mean, normalised])
def test_lonely_answers_are_refused_and_no_gradient_flows(advantage):
    with pytest.raises(ValueError, match="one answer only"):
        advantage(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]))
    assert not advantage(torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0, 0])).requires_grad
