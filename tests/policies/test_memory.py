"""Training that runs out of memory amid a minibatch: no gradient counts twice, and the step is the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import Bench, requests

from backflip.core.records import Answer
from backflip.models.llama import Llama
from backflip.policies.ppo import PPO, climb, fresh_state
from backflip.policies.sft import SFT, fresh_imitator, imitate
from backflip.policies.state import PolicyState


class Pays:
    """Pays for every token from the first half of the vocabulary."""

    def score(self, prompts: Any, answers: Any) -> Any:
        return np.array([np.mean(a.tokens < 28) for a in answers])


def climbed(bench: Bench, micro: int) -> PolicyState:
    """One PPO step of one minibatch of 8 answers."""
    plan = PPO(prompts=2, answers=4, minibatches=1, rank=4, adapted=1.0, learning_rate=5e-3, micro=micro)
    bench.state = fresh_state(bench.loaded.trunk, plan, 7)
    return next(climb(bench.state, bench.tools, plan, seed=7, max_tokens=8, until=1)).state


def imitated(bench: Bench, micro: int) -> PolicyState:
    """One step on a batch of 8 demonstrations."""
    config = SFT(batch=8, rank=4, micro=micro)
    prompts = requests("train", 8)
    tokens = np.array(bench.chat.encode_answer("the sun is good ."))
    logp = np.zeros(len(tokens), dtype=np.float32)
    answers = [
        Answer(prompt_id=p.id, index=0, policy="people", tokens=tokens, logp=logp, ended=True, text="") for p in prompts
    ]
    state = fresh_imitator(bench.loaded.trunk, config, 5)
    return next(imitate(state, bench.reader, prompts, answers, config, seed=5)).state


def change(state: PolicyState) -> torch.Tensor:
    """Adam's first moments: the gradient, scaled."""
    return torch.cat([state.optimiser.state[p]["exp_avg"].flatten() for p in state.adapter.parameters()])


@pytest.mark.parametrize("train", [climbed, imitated])
def test_a_minibatch_that_runs_out_of_memory_midway_is_begun_again(
    train: Callable[[Bench, int], PolicyState], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = change(train(Bench(tiny_model, Pays(), micro=2), 2))
    real, training = Llama.hidden, 0

    def second_is_too_much(self: Llama, batch: Any, *args: Any, **more: Any) -> Any:
        nonlocal training
        training += torch.is_grad_enabled()
        if torch.is_grad_enabled() and training == 2:  # the first part's gradient is in already
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, batch, *args, **more)

    monkeypatch.setattr(Llama, "hidden", second_is_too_much)
    bench = Bench(tiny_model, Pays(), micro=4)
    got = change(train(bench, 4))

    assert training == 2 + 4  # 4 and 4 at first, then 2 four times
    assert bench.reader.portion.size == 2
    assert torch.allclose(got, want, atol=1e-7, rtol=1e-4)
    assert float(want.abs().max()) > 1e-4
