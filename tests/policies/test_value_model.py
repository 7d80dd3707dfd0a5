"""The critic as a role of the trunk: what it says, what it learns, and that portions do not matter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import Bench, requests
from torch.testing import assert_close

from backflip.core.records import Answer, Prompt
from backflip.policies.critic import Seen, Wanted
from backflip.policies.plan import PPO
from backflip.policies.value_model import ValueModel, new_value_model
from backflip.sampling.score import Reader


class Nothing:
    def score(self, prompts: list[Prompt], answers: list[Answer]) -> np.ndarray:
        return np.zeros(len(answers))


def lesson(model: Path, rank: int, micro: int = 32) -> tuple[ValueModel, Seen, Wanted]:
    """A fresh value model, 12 answers to 3 prompts, and returns that tell answers apart: their number of tokens."""
    bench = Bench(model, Nothing())
    prompts = requests("train", 3)
    bench.engine.load("reference")
    [answers] = bench.engine.sample(prompts, 4, seed=1, max_tokens=8)
    reader = Reader(bench.loaded.trunk, bench.chat, micro=micro)
    asked = [p for p in prompts for _ in range(4)]
    reading = reader.reference(asked, answers)
    assert reading.states is not None
    length = torch.tensor([float(len(a.tokens)) for a in answers])[:, None] / 4
    critic = new_value_model(bench.loaded.trunk, PPO(rank=rank, alpha=8.0, adapted=1.0), seed=0)
    wanted = Wanted(torch.zeros_like(reading.logp), length * reading.mask, reading.mask)
    return critic, Seen(reader, asked, answers, reading.states), wanted


@pytest.mark.parametrize("rank", [0, 4])
def test_it_says_0_and_learns_more_than_its_head_could(tiny_model: Path, rank: int) -> None:
    left = []
    for alone in (False, True):
        critic, seen, wanted = lesson(tiny_model, rank)
        assert torch.equal(critic.predict(seen) * wanted.mask, torch.zeros_like(wanted.returns))
        learned = [critic.head] if alone else critic.parameters
        first = critic.learn(torch.optim.Adam(learned, lr=3e-3), seen, wanted, epochs=60, clip=1e6)
        assert first == pytest.approx(float(0.5 * wanted.returns.square().sum() / wanted.mask.sum()))
        left.append(float((critic.predict(seen) - wanted.returns)[wanted.mask].square().mean()))
    assert left[0] < 0.5 * left[1]


def test_its_gradient_does_not_depend_on_the_portions(tiny_model: Path) -> None:
    gradients = []
    for micro in (12, 5, 1):
        critic, seen, wanted = lesson(tiny_model, 0, micro)
        critic.learn(torch.optim.SGD(critic.parameters, lr=0.0), seen, wanted, epochs=1, clip=0.2)
        gradients.append([p.grad for p in critic.parameters])
    for other in gradients[1:]:
        assert_close(other, gradients[0], atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_not_finite_changes_no_weight(tiny_model: Path) -> None:
    critic, seen, wanted = lesson(tiny_model, 4)
    wanted = wanted._replace(returns=wanted.returns * float("inf"))
    before = [p.detach().clone() for p in critic.parameters]

    assert np.isnan(critic.learn(torch.optim.Adam(critic.parameters), seen, wanted, epochs=2, clip=0.2))
    assert all(torch.equal(p, b) for p, b in zip(critic.parameters, before, strict=True))


def test_it_has_the_policys_layers(tiny_model: Path) -> None:
    trunk = Bench(tiny_model, Nothing()).loaded.trunk
    half, config = PPO(adapted=0.5), PPO(adapted=1.0)
    assert len(new_value_model(trunk, half, 0).adapter.b) < len(new_value_model(trunk, config, 0).adapter.b)
    assert new_value_model(trunk, replace(config, rank=3), 0).adapter.rank == 3
