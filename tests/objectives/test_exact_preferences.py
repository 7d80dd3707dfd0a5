"""DPO, online DPO, SFT and best of n against exact answers, in float64."""

from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import Sequences, bandit

from backflip.objectives.dpo import dpo_loss
from backflip.objectives.imitation import imitation_loss
from backflip.stats.best_of_n import best_of_n_kl, best_of_n_law, best_of_n_mean

BETA = 0.4
A, B = torch.triu_indices(8, 8, 1)


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int = 500) -> Tensor:
    """The logits at which a convex loss is least."""
    logits = start.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [logits], max_iter=steps, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    solver.step(closure)
    return logits.detach()


def fit_dpo(ref: Tensor, wins: Tensor, weight: Tensor, beta: float = BETA) -> Tensor:
    def loss(logits: Tensor) -> Tensor:
        ratio = logits.log_softmax(0) - ref
        return dpo_loss(ratio[A], ratio[B], wins, beta, weight=weight).loss

    return minimise(loss, ref).softmax(0)


def bradley_terry(won: Tensor) -> Tensor:
    """Maximum-likelihood strengths from a table of wins, by Zermelo's iteration, which knows no policy."""
    strength = torch.ones(len(won), dtype=torch.float64)
    games = won + won.T
    for _ in range(20_000):
        strength = won.sum(1) / (games / (strength[:, None] + strength[None, :])).sum(1)
        strength = strength / strength.sum()
    return strength.log()


def test_dpo_ends_at_the_bradley_terry_optimum_of_the_votes():
    ref, _ = bandit(8)
    won = torch.randint(1, 9, (8, 8), generator=torch.Generator().manual_seed(4)).double().fill_diagonal_(0)
    games = (won + won.T)[A, B]
    found = fit_dpo(ref, won[A, B] / games, games)

    assert float((found - (ref + bradley_terry(won) / BETA).softmax(0)).abs().max()) < 1e-7


def test_dpo_on_true_preferences_ends_at_the_tilted_reference():
    ref, reward = bandit(8)
    found = fit_dpo(ref, (reward[A] - reward[B]).sigmoid(), torch.ones(len(A), dtype=torch.float64))

    assert float((found - (ref + reward / BETA).softmax(0)).abs().max()) < 1e-7


def test_dpo_with_the_winner_taken_for_the_loser_ends_elsewhere():
    ref, reward = bandit(8)
    found = fit_dpo(ref, (reward[B] - reward[A]).sigmoid(), torch.ones(len(A), dtype=torch.float64))

    assert float((found - (ref + reward / BETA).softmax(0)).abs().max()) > 0.1


def test_online_dpo_ends_at_the_tilted_reference():
    # every pair as likely as the policy draws it, whatever the policy has become
    ref, reward = bandit(8)
    wins, logits = (reward[A] - reward[B]).sigmoid(), ref
    for _ in range(30):
        p = logits.softmax(0)

        def loss(x: Tensor, weight: Tensor = p[A] * p[B]) -> Tensor:
            ratio = x.log_softmax(0) - ref
            return dpo_loss(ratio[A], ratio[B], wins, BETA, weight=weight).loss

        logits = minimise(loss, logits, steps=20)

    assert float((logits.softmax(0) - (ref + reward / BETA).softmax(0)).abs().max()) < 1e-6


def test_the_gradient_of_online_dpo_is_the_mean_over_every_vote_the_reward_could_cast():
    ref, reward = bandit(8)
    logits = (ref + 0.3 * reward).requires_grad_()
    wins = (reward[A] - reward[B]).sigmoid()
    ratio = logits.log_softmax(0) - ref
    (got,) = torch.autograd.grad(dpo_loss(ratio[A], ratio[B], wins, BETA).loss, logits, retain_graph=True)
    one, none = torch.ones_like(wins), torch.zeros_like(wins)
    exact = torch.zeros_like(logits)
    for vote, chance in ((one, wins), (none, 1 - wins)):
        loss = dpo_loss(ratio[A], ratio[B], vote, BETA, weight=chance, pairs=float(len(A))).loss
        exact += torch.autograd.grad(loss, logits, retain_graph=True)[0]

    assert float((got - exact).abs().max()) < 1e-15


def test_imitation_ends_at_the_law_of_the_data():
    world = Sequences(2, 3, seed=3)  # 7 answers, ragged
    data = torch.randint(0, len(world.score), (60,), generator=torch.Generator().manual_seed(1))

    def loss(logits: Tensor) -> Tensor:
        return imitation_loss(world.logp(logits)[data], world.mask[data])

    logits = minimise(loss, world.logits_ref)
    found = world.logp(logits).masked_fill(~world.mask, 0.0).sum(1).exp()
    law = torch.bincount(data, minlength=len(world.score)).double() / 60

    assert float((found - law).abs().max()) < 1e-7


@pytest.mark.parametrize("n", [1, 2, 4])
def test_imitating_the_best_of_n_ends_at_its_order_statistic_law(n: int):
    # every draw of n from 5 equally likely answers is data once; two answers score the same
    score = [0.3, -1.0, 2.0, 0.3, 0.9]
    kept = [max(draw, key=lambda a: score[a]) for draw in product(range(5), repeat=n)]  # the first of equals
    data = torch.tensor(kept)
    logits = minimise(
        lambda x: imitation_loss(x.log_softmax(0)[data, None], torch.ones(len(data), 1, dtype=torch.bool)),
        torch.full((5,), 0.2, dtype=torch.float64).log(),
    )
    law = torch.from_numpy(best_of_n_law([0.2] * 5, score, n))

    count = Counter(kept)
    assert law.tolist() == pytest.approx([count[a] / 5**n for a in range(5)], abs=1e-15)
    assert float((logits.softmax(0) - law).abs().max()) < 1e-6


def test_best_of_2_of_a_coin_is_three_quarters_heads():
    assert best_of_n_law([0.5, 0.5], [0.0, 1.0], 2).tolist() == [0.25, 0.75]
    assert best_of_n_law([0.5, 0.25, 0.25], [0.0, 1.0, 1.0], 2).tolist() == [0.25, 0.375, 0.375]


def test_best_of_n_strays_no_further_than_ln_n_less_n_minus_1_over_n():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(2000))
    kl = {}
    for n in (2, 16):
        law = best_of_n_law(p, rng.random(2000), n)
        kl[n] = float((law * np.log(law / p)).sum())
    assert best_of_n_kl(2) == pytest.approx(0.1931, abs=1e-4)  # ln 2 - 1/2
    assert best_of_n_kl(16) == pytest.approx(1.8351, abs=1e-4)  # ln 16 - 15/16
    assert 0.98 * best_of_n_kl(2) < kl[2] < best_of_n_kl(2)
    assert 0.95 * best_of_n_kl(16) < kl[16] < best_of_n_kl(16)


def test_the_mean_of_best_of_n_is_that_over_every_choice_of_n():
    # pairs of (1, 10), (2, 40), (3, 20): the best are 40, 20, 20
    assert best_of_n_mean([1.0, 3.0, 2.0], [10.0, 20.0, 40.0], 2) == pytest.approx(80 / 3)
    assert best_of_n_mean([1.0, 3.0, 2.0], [10.0, 20.0, 40.0], 1) == pytest.approx(70 / 3)
    assert best_of_n_mean([1.0, 3.0, 2.0], [10.0, 20.0, 40.0], 3) == pytest.approx(20.0)
    # of two that score the same either may be kept
    assert best_of_n_mean([1.0, 1.0], [0.0, 1.0], 2) == pytest.approx(0.5)


def test_best_of_n_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="sum to 1"):
        best_of_n_law([0.5, 0.6], [0.0, 1.0], 2)
    with pytest.raises(ValueError, match="n must be 1 or more"):
        best_of_n_law([0.5, 0.5], [0.0, 1.0], 0)
    with pytest.raises(ValueError, match=r"1 \.\.\. 2"):
        best_of_n_mean([0.0, 1.0], [0.0, 1.0], 3)
    with pytest.raises(ValueError, match="n must be 1 or more"):
        best_of_n_kl(0)
