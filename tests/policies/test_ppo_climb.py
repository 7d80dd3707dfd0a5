"""One step of PPO: each test pins one thing that, when wrong, makes PPO fail without a message."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import Bench, requests, save_model

from backflip.core.errors import BackflipError
from backflip.policies import gradient, ppo
from backflip.policies.ppo import PPO, Step, climb, fresh_state, warm_up

END = 1
TOKENS = 12


class Counting:
    """Pays for every token from the first half of the vocabulary."""

    def score(self, prompts: Any, answers: Any) -> Any:
        return np.array([np.mean(a.tokens < 28) for a in answers])


class Nothing:
    """Pays 1 for anything."""

    def score(self, prompts: Any, answers: Any) -> Any:
        return np.ones(len(answers))


def config(**changes: Any) -> PPO:
    keys = {"prompts": 4, "answers": 6, "rank": 4, "alpha": 8.0, "adapted": 1.0, "learning_rate": 5e-3}
    keys |= {"kl_coef": 0.1, "kl_horizon": 1000, "minibatches": 2, "epochs": 1, "missing_end_penalty": 0.5, "micro": 32}
    return PPO(**(keys | changes))


def steps_of(bench: Bench, plan: PPO, count: int = 1, seed: int = 7) -> list[Step]:
    bench.state = fresh_state(bench.loaded.trunk, plan, seed)
    return list(climb(bench.state, bench.tools, plan, seed=seed, max_tokens=TOKENS, until=count))


@pytest.fixture
def bench(tiny_model: Path) -> Bench:
    return Bench(tiny_model, Counting())


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`spy(module, "name")` is the list of (arguments, result) of every later call of that function there."""

    def watch(module: Any, name: str) -> list[tuple[Any, Any]]:
        real, calls = getattr(module, name), []

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            out = real(*args, **kwargs)
            calls.append((args, out))
            return out

        monkeypatch.setattr(module, name, wrapped)
        return calls

    return watch


def test_the_first_step_starts_at_kl_0_and_ratio_1_exactly(bench: Bench) -> None:
    first = steps_of(bench, config(minibatches=1, epochs=1))[0]

    assert first.metrics["objective/kl"] == 0.0
    assert first.metrics["val/ratio"] == 1.0
    assert first.metrics["policy/approxkl_avg"] == 0.0
    assert first.metrics["policy/clipfrac_avg"] == 0.0


def test_every_later_step_starts_at_ratio_1_too(bench: Bench) -> None:
    # the policy that is being changed is the one that sampled: nothing is left over from the step before
    for step in steps_of(bench, config(minibatches=2), 3):
        assert step.metrics["val/ratio_first"] == pytest.approx(1.0, abs=1e-6)


def test_the_ratio_leaves_1_after_the_first_minibatch(bench: Bench) -> None:
    step = steps_of(bench, config(minibatches=4))[0]

    assert step.metrics["policy/approxkl_avg"] > 1e-6


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_sampler_and_trainer_agree_on_every_token_also_when_the_policy_has_moved(
    tiny_model: Path, spy: Any, temperature: float
) -> None:
    looks = spy(ppo, "roll_out")
    steps = steps_of(Bench(tiny_model, Counting(), temperature=temperature), config(learning_rate=2e-2), 3)

    assert abs(steps[-1].metrics["objective/kl"]) > 0.01  # it has moved
    for _, rollout in looks:
        gap = (rollout.policy.logp - rollout.logp_sampler)[rollout.policy.mask]
        assert gap.abs().max() < 1e-4
    assert all(s.metrics["val/sampler_ratio"] == pytest.approx(1.0, abs=1e-4) for s in steps)


def test_the_temperature_is_in_all_three_log_probabilities(tiny_model: Path, spy: Any) -> None:
    from transformers import AutoModelForCausalLM

    looks = spy(ppo, "roll_out")
    bench = Bench(tiny_model, Counting(), temperature=1.7)
    steps_of(bench, config())
    rollout, model = looks[0][1], AutoModelForCausalLM.from_pretrained(tiny_model)

    for row in (0, 7, 23):
        prompt = bench.chat.encode(rollout.prompts[row])
        answer = torch.from_numpy(rollout.answers[row].tokens)
        ids = torch.cat([torch.tensor(prompt), answer])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(prompt) - 1 : -1]
        truth = (logits / 1.7).log_softmax(1).gather(1, answer[:, None])[:, 0]
        for logp in (rollout.policy.logp, rollout.reference.logp, rollout.logp_sampler):
            torch.testing.assert_close(logp[row, : len(answer)], truth, atol=1e-4, rtol=0)
            assert logp.dtype == torch.float32


def test_an_answer_that_did_not_end_pays_the_penalty_and_no_other_does(tiny_model: Path, spy: Any) -> None:
    calls = spy(gradient, "token_rewards")
    step = steps_of(Bench(tiny_model, Nothing()), config(missing_end_penalty=0.25))[0]

    ended = [a.ended for a in step.answers]
    assert 0 < sum(ended) < len(ended)
    assert calls[0][0][0].tolist() == [1.0 if e else 0.75 for e in ended]


def test_the_score_lies_on_the_last_token_and_that_is_the_stop_token_of_an_ended_answer(
    tiny_model: Path, spy: Any
) -> None:
    calls = spy(gradient, "token_rewards")
    step = steps_of(Bench(tiny_model, Nothing()), config(missing_end_penalty=0.25))[0]

    reward = calls[0][1]
    for row, a in enumerate(step.answers):
        expected = torch.zeros(reward.shape[1])
        expected[len(a.tokens) - 1] = 1.0 if a.ended else 0.75  # the KL is 0 at the first step
        assert torch.equal(reward[row], expected)
        assert (a.tokens[-1] == END) == a.ended
        assert END not in a.tokens[:-1]


def test_the_kl_penalty_is_charged_per_token_with_the_coefficient_of_the_step(bench: Bench, spy: Any) -> None:
    looks, calls = spy(ppo, "roll_out"), spy(gradient, "token_rewards")
    steps = steps_of(bench, config(learning_rate=2e-2, missing_end_penalty=0.0), 2)

    rollout, reward = looks[1][1], calls[1][1]
    kl = (rollout.policy.logp - rollout.reference.logp) * rollout.policy.mask
    coef = steps[1].metrics["objective/kl_coef"]
    total = torch.as_tensor(steps[1].scores, dtype=torch.float32) - coef * kl.sum(1)
    torch.testing.assert_close(reward.sum(1), total)
    assert (kl != 0).any()
    assert steps[1].metrics["objective/kl"] == pytest.approx(float(kl.sum(1).mean()))


def test_the_reference_never_changes(bench: Bench) -> None:
    trunk = bench.loaded.trunk
    before = {name: t.clone() for name, t in trunk.state().items()}
    prompts = requests("train", 4)
    bench.engine.load("reference")
    answers = [a for batch in bench.engine.sample(prompts, 1, seed=1, max_tokens=6) for a in batch]
    logp = bench.reader.read(prompts, answers).logp

    steps_of(bench, config(learning_rate=2e-2, epochs=2), 3)

    assert all(torch.equal(t, before[name]) for name, t in trunk.state().items())
    assert torch.equal(bench.reader.read(prompts, answers).logp, logp)
    assert bench.state is not None
    assert not torch.equal(bench.reader.read(prompts, answers, bench.state.adapter).logp, logp)


def gradients(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, micro: int) -> list[torch.Tensor]:
    """Gradients of every minibatch of one step, before they are clipped; the sampler's side is the same for all."""
    bench = Bench(tiny_model, Counting())
    bench.state = fresh_state(bench.loaded.trunk, config(), 7)
    for name in bench.state.adapter.b:  # away from the start, where half the gradients are 0
        bench.state.adapter.b[name].data.fill_(0.02)
    seen: list[torch.Tensor] = []
    parameters = list(bench.state.adapter.parameters())
    with monkeypatch.context() as m:
        m.setattr(bench.state.optimiser, "step", lambda: None)
        m.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, norm: _note(list(p), parameters, seen))
        plan = config(micro=micro, minibatches=2)
        list(climb(bench.state, bench.tools, plan, seed=7, max_tokens=TOKENS, until=1))
    return seen


def _note(given: list[Any], parameters: list[Any], seen: list[torch.Tensor]) -> torch.Tensor:
    if given[0] is parameters[0]:
        seen.append(torch.cat([p.grad.flatten() for p in parameters]).clone())
    return torch.tensor(1.0)


def test_gradients_do_not_depend_on_the_micro_batch(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single, five, whole = (gradients(tiny_model, monkeypatch, micro) for micro in (1, 5, 64))

    assert len(single) == len(five) == len(whole) == 2
    for parts in (single, five):
        for a, b in zip(parts, whole, strict=True):
            assert float(b.norm()) > 1e-3
            torch.testing.assert_close(a, b, atol=1e-6 * float(b.norm()), rtol=1e-3)


def test_the_minibatches_of_an_epoch_hold_every_answer_once(bench: Bench, spy: Any) -> None:
    calls = spy(gradient, "pack_answers")
    steps_of(bench, config(epochs=3, minibatches=5, micro=2))

    count = Counter((a.prompt_id, a.index) for args, _ in calls for a in args[2])
    assert len(count) == 24
    assert set(count.values()) == {3}
    first_pass = Counter((a.prompt_id, a.index) for args, _ in calls[: len(calls) // 3] for a in args[2])
    assert set(first_pass.values()) == {1}


def test_every_prompt_comes_once_before_any_comes_again(bench: Bench) -> None:
    plan = config(prompts=3, answers=2)
    steps = steps_of(bench, plan, 8)  # 24 prompts from 8: three passes
    asked = [list(dict.fromkeys(a.prompt_id for a in s.answers)) for s in steps]

    assert all(len(ids) == 3 for ids in asked)
    count = Counter(i for ids in asked for i in ids)
    assert sum(count.values()) == 24
    assert set(count.values()) <= {2, 3, 4}
    assert len({tuple(ids) for ids in asked}) == 8
    assert len({i for ids in asked[:3] for i in ids}) == 8


def test_advantages_are_whitened_over_the_whole_step_not_over_a_minibatch(bench: Bench, spy: Any) -> None:
    calls = spy(gradient, "policy_loss")
    steps_of(bench, config(minibatches=4))

    parts = [args[2][args[3]] for args, _ in calls]
    whole = torch.cat(parts)
    assert float(whole.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(whole.square().mean()) == pytest.approx(1.0, abs=1e-3)
    assert max(abs(float(p.mean())) for p in parts) > 0.02


@pytest.mark.parametrize("own", [True, False])
def test_dropout_is_off_in_every_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    import backflip.models.load as load

    real = load.load_model
    monkeypatch.setattr("tiny_run.load_model", lambda path, **kwargs: real(path, own=own, **kwargs))
    bench = Bench(save_model(tmp_path / "model", attention_dropout=0.5), Counting())
    step = steps_of(bench, config(minibatches=1))[0]

    assert step.metrics["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert step.metrics["val/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert step.metrics["val/sampler_ratio"] == pytest.approx(1.0, abs=1e-4)


def test_the_kl_coefficient_falls_below_the_target_and_rises_above_it(bench: Bench) -> None:
    # 24 answers, horizon 1000; KL 0 is the full -0.2 below target: 0.1 * (1 - 0.2 * 24 / 1000)
    low = steps_of(bench, config(kl_target=6.0), 1)
    assert low[0].metrics["objective/kl_coef"] == 0.1
    assert low[0].state.kl_coef == pytest.approx(0.1 * (1 - 0.0048))

    high = steps_of(bench, config(kl_target=1e-6, learning_rate=2e-2), 3)
    assert high[2].metrics["objective/kl"] > 1e-3
    assert high[2].state.kl_coef == pytest.approx(high[2].metrics["objective/kl_coef"] * (1 + 0.0048))


def test_adam_has_epsilon_1e_5_for_policy_and_critic(bench: Bench) -> None:
    state = fresh_state(bench.loaded.trunk, config(learning_rate=3e-4, critic_learning_rate=2e-3), 7)

    assert [o.param_groups[0]["eps"] for o in (state.optimiser, state.critic_optimiser)] == [1e-5, 1e-5]
    assert [o.param_groups[0]["lr"] for o in (state.optimiser, state.critic_optimiser)] == [3e-4, 2e-3]


def test_the_gradient_norm_is_clipped_before_adam_sees_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = config(max_norm=1e-4, minibatches=1)
    bench.state = fresh_state(bench.loaded.trunk, plan, 7)
    parameters, norms, real = list(bench.state.adapter.parameters()), [], bench.state.optimiser.step

    def step() -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))
        real()

    monkeypatch.setattr(bench.state.optimiser, "step", step)
    done = list(climb(bench.state, bench.tools, plan, seed=7, max_tokens=TOKENS, until=1))

    assert done[0].metrics["grad/norm"] > 1e-2  # told as it was
    assert norms == [pytest.approx(1e-4, rel=1e-2)]


def test_warming_up_lowers_the_critics_loss_and_touches_nothing_of_the_policy(bench: Bench) -> None:
    plan = config()
    state = bench.state = fresh_state(bench.loaded.trunk, plan, 7)
    before = [p.detach().clone() for p in state.adapter.parameters()]
    prompts = requests("train", 8)
    bench.engine.load("reference")
    answers = [a for batch in bench.engine.sample(prompts, 4, seed=1, max_tokens=TOKENS) for a in batch]
    asked = [p for p in prompts for _ in range(4)]

    first = warm_up(state, bench.tools, plan, asked, answers)
    second = warm_up(state, bench.tools, plan, asked, answers)

    # a fresh critic says 0, so its first loss is half the mean square of what each token's answer earned
    earned = np.array([np.mean(a.tokens < 28) - (0.0 if a.ended else 0.5) for a in answers])
    lengths = np.array([len(a.tokens) for a in answers])
    assert first == pytest.approx(0.5 * float((earned**2 * lengths).sum() / lengths.sum()), rel=1e-4)
    assert second < 0.7 * first
    assert all(torch.equal(p, b) for p, b in zip(state.adapter.parameters(), before, strict=True))
    assert (len(state.optimiser.state), state.step, state.kl_coef) == (0, 0, 0.1)


def test_a_reward_that_is_not_a_number_stops_the_climb_before_a_weight_changes(tiny_model: Path) -> None:
    class Broken:
        def score(self, prompts: Any, answers: Any) -> Any:
            return np.full(len(answers), np.nan)

    bench, plan = Bench(tiny_model, Broken()), config()
    bench.state = fresh_state(bench.loaded.trunk, plan, 7)

    with pytest.raises(BackflipError, match="step 0 is not finite"):
        list(climb(bench.state, bench.tools, plan, seed=7, max_tokens=TOKENS, until=1))
    assert all(torch.isfinite(p).all() for p in bench.state.adapter.parameters())
    assert not any(t.any() for t in bench.state.adapter.b.values())
