"""The critic: what it says before it has learned, and what it learns."""

import pytest
import torch

from backflip.policies.critic import CriticBatch, improve, new_critic


def batch(returns: torch.Tensor) -> CriticBatch:
    states = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 1, 5, 4, 2])[:, None]
    return CriticBatch(states, torch.zeros(6, 5), returns.expand(6, 5) * mask, mask)


def test_a_new_critic_says_0_everywhere() -> None:
    critic = new_critic(8, seed=1)

    assert torch.equal(critic.value(torch.randn(3, 4, 8)), torch.zeros(3, 4))


def test_the_scale_of_the_states_does_not_matter() -> None:
    critic = new_critic(8, seed=1)
    with torch.no_grad():
        critic.parameters[2].fill_(0.1)
    states = torch.randn(3, 4, 8)

    torch.testing.assert_close(critic.value(states), critic.value(100 * states), atol=1e-4, rtol=1e-4)


def test_it_learns_a_constant_and_tells_the_loss_it_began_with() -> None:
    critic = new_critic(8, seed=1)
    optimiser = torch.optim.Adam(critic.parameters, lr=1e-2)
    data = batch(torch.tensor(2.0))

    first = improve(critic, optimiser, data, epochs=200, clip=1e6)

    assert first == pytest.approx(2.0)  # half of (0 - 2)^2
    assert float((critic.value(data.states).detach() - 2.0)[data.mask].abs().max()) < 0.1


def test_beyond_the_value_clip_nothing_pulls_the_prediction_further() -> None:
    # it says 0 and said -1 before: held at -1 + 0.2, half of (-0.8 - 2)^2 is the larger error, and it is flat
    critic = new_critic(8, seed=1)
    before = [p.detach().clone() for p in critic.parameters]
    data = batch(torch.tensor(2.0))
    data = CriticBatch(data.states, data.value_old - 1.0, data.returns, data.mask)

    loss = improve(critic, torch.optim.Adam(critic.parameters, lr=1e-2), data, epochs=1, clip=0.2)

    assert loss == pytest.approx(3.92)
    assert all(torch.equal(p, b) for p, b in zip(critic.parameters, before, strict=True))


def test_padding_teaches_it_nothing() -> None:
    data = batch(torch.tensor(2.0))
    spoiled = CriticBatch(data.states, data.value_old, data.returns + 1e6 * ~data.mask, data.mask)
    learned = []
    for b in (data, spoiled):
        critic = new_critic(8, seed=1)
        improve(critic, torch.optim.Adam(critic.parameters, lr=1e-2), b, epochs=5, clip=0.2)
        learned.append(critic.parameters)

    assert all(torch.equal(a, b) for a, b in zip(*learned, strict=True))
