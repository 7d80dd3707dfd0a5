"""Every optimiser that a plan can name: it learns, it ends at its law, and a climb cut short is the unbroken one."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tiny_run import Bench, requests

from backflip.core.errors import BackflipError
from backflip.core.records import Answer
from backflip.objectives.group import above_mean, leave_one_out, normalised
from backflip.policies import dpo, gradient, online_dpo
from backflip.policies.best_of_n import BestOf
from backflip.policies.methods import METHODS
from backflip.policies.plan import COMPARING, PPO, Optimise, Optimiser
from backflip.policies.rollout import Preference, Rollout, Settings, Step, pick, roll_out
from backflip.policies.state import fresh_state, load_state, save_state
from backflip.stats.best_of_n import best_of_n_law

HALF = 28
NAMES = list(get_args(Optimiser))
every = pytest.mark.parametrize("by", NAMES)
grouped = pytest.mark.parametrize("by", ["rloo", "grpo", "dr_grpo"])


class Pay:
    """Pays `sign` times the share of tokens (the end left out) below HALF."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def score(self, prompts: Any, answers: Any) -> Any:
        return self.sign * np.array([share(a) for a in answers])


def share(answer: Any) -> float:
    said = answer.tokens[answer.tokens != 1]
    return float(np.mean(said < HALF)) if len(said) else 0.5


def config(**changes: Any) -> PPO:
    keys: dict[str, Any] = {"prompts": 8, "answers": 8, "rank": 4, "alpha": 8.0, "learning_rate": 2e-2}
    keys |= {"kl_coef": 0.01, "missing_end_penalty": 0.0, "adapted": 1.0, "kl_horizon": 100_000, "micro": 32}
    return PPO(**(keys | changes))


def votes(bench: Bench, count: int = 256) -> list[Preference]:
    """The untouched model's answers, in pairs, the better-paid one preferred."""
    bench.engine.load("reference")
    prompts = requests("train", 8)
    said = [a for b in bench.engine.sample(prompts, 2 * count // 8, seed=1, max_tokens=10) for a in b]
    by_id = {p.id: p for p in prompts}
    pairs = zip(said[::2], said[1::2], strict=True)
    return [Preference(by_id[a.prompt_id], a, b, 0.5 + 0.5 * np.sign(share(a) - share(b))) for a, b in pairs]


def bench_of(model: Path, by: str, scorer: Any, plan: PPO) -> Bench:
    bench = Bench(model, scorer)
    if METHODS[by].votes:  # type: ignore[index]
        bench.tools = bench.tools._replace(votes=votes(bench))
    bench.state = fresh_state(bench.loaded.trunk, plan, 1)
    start = bench.loaded.trunk
    bench.engine.fetch = lambda version: start if version == "reference" else bench.merged()
    return bench


def run(model: Path, by: str, steps: int, plan: PPO, scorer: Any = None, **how: Any) -> list[Step]:
    bench = bench_of(model, by, scorer or Pay(), plan)
    climb = METHODS[by].climb  # type: ignore[index]
    keys = {"seed": 5, "max_tokens": 10, "until": steps}
    return list(climb(bench.state, bench.tools, plan, Optimise(by=by, **how), **keys))  # type: ignore[arg-type]


def test_every_name_of_a_plan_has_a_method_and_every_method_a_name():
    assert list(METHODS) == NAMES
    assert set(NAMES) > COMPARING


@every
def test_what_is_paid_for_rises(tiny_model: Path, by: str):
    steps = run(tiny_model, by, 24 if by == "dpo" else 12, config(), beta=0.05)
    first, last = (float(np.mean([share(a) for s in some for a in s.answers])) for some in (steps[:3], steps[-3:]))

    assert last > first + 0.1


@every
def test_a_climb_cut_short_and_loaded_is_the_unbroken_one(tiny_model: Path, tmp_path: Path, by: str):
    plan = config(prompts=4, answers=4, epochs=2)
    bench = bench_of(tiny_model, by, Pay(), plan)
    climb, how = METHODS[by].climb, Optimise(by=by)  # type: ignore[index, arg-type]
    keys = {"seed": 5, "max_tokens": 8}
    whole = [s.metrics for s in climb(bench.state, bench.tools, plan, how, **keys, until=3)]

    again = bench_of(tiny_model, by, Pay(), plan)
    first = [s.metrics for s in climb(again.state, again.tools, plan, how, **keys, until=1)]
    assert again.state is not None
    save_state(again.state, tmp_path / "one")
    again.state = load_state(tmp_path / "one")
    rest = [s.metrics for s in climb(again.state, again.tools, plan, how, **keys, until=3)]

    assert first + rest == whole
    assert {"objective/kl", "objective/scores", "length/mean", "grad/norm"} <= whole[0].keys()


@every
def test_gradients_do_not_depend_on_the_micro_batch(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, by: str):
    norms = {
        micro: run(tiny_model, by, 1, config(prompts=4, answers=4, minibatches=1, micro=micro))[0].metrics["grad/norm"]
        for micro in (1, 6, 64)
    }

    assert norms[64] > 1e-4
    assert norms[1] == pytest.approx(norms[64], rel=1e-3)
    assert norms[6] == pytest.approx(norms[64], rel=1e-3)


@every
def test_parts_of_a_minibatch_add_up_to_its_gradient(tiny_model: Path, by: str):
    def gradient_of(micro: int) -> torch.Tensor:
        """Adam's first moments after one gradient step: a tenth of its gradient, which nothing clips."""
        plan = config(prompts=4, answers=4, minibatches=1, micro=micro, max_norm=1e9)
        bench = bench_of(tiny_model, by, Pay(), plan)
        assert bench.state is not None
        for name in bench.state.adapter.b:  # away from the start, where half of the gradient is 0
            bench.state.adapter.b[name].data.fill_(0.02)
        how = Optimise(by=by, kl="k3")  # type: ignore[arg-type]
        list(METHODS[by].climb(bench.state, bench.tools, plan, how, seed=5, max_tokens=10, until=1))  # type: ignore[index]
        return torch.cat(
            [bench.state.optimiser.state[p]["exp_avg"].flatten() for p in bench.state.adapter.parameters()]
        )

    single, three, whole = (gradient_of(micro).double() for micro in (1, 3, 16))

    assert float(whole.norm()) > 1e-4
    for parts in (single, three):
        assert float((parts - whole).norm() / whole.norm()) < 1e-6


@every
def test_a_gradient_that_is_not_finite_stops_the_climb_before_a_weight_changes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, by: str
):
    real = gradient.trained_logp

    def broken(*args: Any) -> Any:
        logp, mask = real(*args)
        return logp * float("nan"), mask

    for module in (gradient, dpo, __import__("backflip.policies.sft", fromlist=["sft"])):
        monkeypatch.setattr(module, "trained_logp", broken)
    bench = bench_of(tiny_model, by, Pay(), config())
    with pytest.raises(BackflipError, match=r"(?s)step 0 is not finite.*ppo\.learning_rate"):
        list(
            METHODS[by].climb(bench.state, bench.tools, config(), Optimise(by=by), seed=5, max_tokens=4, until=1)  # type: ignore[index, arg-type]
        )
    assert bench.state is not None
    assert not any(t.any() for t in bench.state.adapter.b.values())


@grouped
def test_a_step_begins_at_ratio_1_and_kl_0(tiny_model: Path, by: str):
    first, second = run(tiny_model, by, 2, config(minibatches=2))

    assert (first.metrics["objective/kl"], first.metrics["val/ratio_first"]) == (0.0, pytest.approx(1.0, abs=1e-6))
    assert second.metrics["val/ratio_first"] == pytest.approx(1.0, abs=1e-4)
    assert second.metrics["policy/approxkl_avg"] > 1e-6


def seen_targets(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[tuple[Rollout, gradient.Target]]:
    seen: list[tuple[Rollout, gradient.Target]] = []
    real = module.policy_steps

    def watched(state: Any, reader: Any, settings: Any, rollout: Rollout, target: gradient.Target) -> Any:
        seen.append((rollout, target))
        return real(state, reader, settings, rollout, target)

    monkeypatch.setattr(module, "policy_steps", watched)
    return seen


@grouped
@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_an_answer_is_paid_its_score_less_penalty_and_kl_and_compared_within_its_prompt(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, by: str, kl: str
):
    from backflip.policies import grpo, rloo

    seen = seen_targets(monkeypatch, rloo if by == "rloo" else grpo)
    plan = config(kl_coef=0.5, missing_end_penalty=0.25)
    steps = run(tiny_model, by, 2, plan, kl=kl)
    rollout, target = seen[1]

    nats = ((rollout.policy.logp - rollout.reference.logp) * rollout.policy.mask).sum(1)
    coef = steps[1].metrics["objective/kl_coef"] if kl == "k1" else 0.0
    ended = torch.tensor([a.ended for a in rollout.answers])
    paid = torch.tensor(rollout.scores, dtype=torch.float32) - 0.25 * (~ended).float() - coef * nats
    ids = sorted({p.id for p in rollout.prompts})
    group = torch.tensor([ids.index(p.id) for p in rollout.prompts])
    adv = {"rloo": leave_one_out, "grpo": normalised, "dr_grpo": above_mean}[by](paid, group)

    assert float(nats.abs().max()) > 0.01
    torch.testing.assert_close(target.adv[:, 0], adv, atol=1e-4, rtol=1e-3)
    assert ("loss/kl_avg" in steps[0].metrics) == (kl == "k3")


def test_each_optimiser_weighs_tokens_in_its_own_way(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    # GRPO: every answer 1; unbiased GRPO: every token 1 of max_tokens; RLOO: one unit an answer
    from backflip.policies import grpo, rloo

    seen = seen_targets(monkeypatch, grpo)
    run(tiny_model, "grpo", 1, config())
    run(tiny_model, "dr_grpo", 1, config())
    (rollout, published), (_, plain) = seen
    mask, rows = rollout.policy.mask, np.arange(16)
    assert len(set(mask.sum(1).tolist())) > 2

    torch.testing.assert_close((published.weight * mask).sum(1), torch.ones(64), atol=1e-3, rtol=0)
    assert published.total(rows) == 16
    torch.testing.assert_close(plain.weight[mask], torch.ones(int(mask.sum())), atol=1e-3, rtol=0)
    assert plain.total(rows) == 160
    seen = seen_targets(monkeypatch, rloo)
    run(tiny_model, "rloo", 1, config())
    assert (seen[0][1].whole, tuple(seen[0][1].weight.shape), seen[0][1].total(rows)) == (True, (64, 1), 16)


@pytest.mark.parametrize("kl", ["k2", "k3"])
@pytest.mark.parametrize("by", ["ppo", "rloo", "grpo", "dr_grpo"])
def test_the_leash_holds_also_as_a_term_of_the_loss(tiny_model: Path, by: str, kl: str):
    free = run(tiny_model, by, 8, config(), kl=kl)[-1].metrics["objective/kl"]
    held = run(tiny_model, by, 8, config(kl_coef=3.0), kl=kl)[-1].metrics["objective/kl"]

    assert free > 0.3
    assert abs(held) < 0.5 * free


def test_a_tighter_beta_holds_dpo_nearer(tiny_model: Path):
    far = run(tiny_model, "dpo", 8, config(learning_rate=5e-3), beta=0.02)[-1].metrics["objective/kl"]
    near = run(tiny_model, "dpo", 8, config(learning_rate=5e-3), beta=5.0)[-1].metrics["objective/kl"]

    assert far > 1.5 * abs(near)


def test_dpo_without_votes_is_refused(tiny_model: Path):
    bench = Bench(tiny_model, Pay())
    bench.state = fresh_state(bench.loaded.trunk, config(), 1)
    with pytest.raises(ValueError, match="no vote"):
        next(dpo.climb(bench.state, bench.tools, config(), seed=5, max_tokens=4, until=1))


def test_online_dpo_compares_neighbours_with_the_odds_of_their_rewards(tiny_model: Path):
    plan = config(prompts=2, answers=5, missing_end_penalty=0.25)
    bench = bench_of(tiny_model, "online_dpo", Pay(), plan)
    assert bench.state is not None
    rollout = roll_out(bench.state, bench.tools, Settings(plan, Optimise(), 5, 10), answers=5)
    pairs = online_dpo.pairs_of(rollout)

    assert [(v.a.index, v.b.index) for v in pairs] == [(0, 1), (2, 3)] * 2  # the fifth is left over
    assert all(v.prompt.id == v.a.prompt_id == v.b.prompt_id for v in pairs)
    worth = {id(a): s - 0.25 * (not a.ended) for a, s in zip(rollout.answers, rollout.scores, strict=True)}
    odds = [1 / (1 + np.exp(worth[id(v.b)] - worth[id(v.a)])) for v in pairs]
    assert [v.wins for v in pairs] == pytest.approx(odds, abs=1e-6)


def test_the_best_of_n_sampler_keeps_the_first_of_the_best_and_counts_a_missing_end():
    class Given:
        def load(self, policy: str) -> str:
            return policy

        def sample(self, prompts: Any, n: int, *, seed: int, max_tokens: int, finite: bool) -> Any:
            assert n == 6
            yield [answer(p.id, i, ended=i != 1) for p in prompts for i in range(n)]

    class Known:
        def score(self, prompts: Any, answers: Any) -> Any:
            worth = {"train-02": [1.0, 1.1, 1.0, 4.0, 5.0, 5.0], "train-01": [0.0, 3.0, 2.0, 1.0, 0.0, 0.5]}
            return np.array([worth[a.prompt_id][a.index] for a in answers])

    def answer(prompt: str, i: int, ended: bool) -> Answer:
        return Answer(
            prompt_id=prompt, index=i, policy="p", tokens=np.array([i]), logp=np.zeros(1, np.float32), ended=ended,
            text=str(i),
        )  # fmt: skip

    best = BestOf(Given(), Known(), of=3, missing_end_penalty=0.5)
    (kept,) = best.sample(requests("train", 2), 2, seed=1, max_tokens=4)

    # train-02: 1.0, 0.6, 1.0 -> the first; 4, 5, 5 -> the fifth. train-01: 0, 2.5, 2 -> the second; 1, 0, 0.5
    assert [(a.prompt_id, a.index, a.text) for a in kept] == [
        ("train-02", 0, "0"), ("train-02", 1, "4"), ("train-01", 0, "1"), ("train-01", 1, "3"),
    ]  # fmt: skip


def test_steps_take_everything_once_before_anything_comes_again():
    taken = [i for step in range(5) for i in pick(10, 4, 7, "votes", step)]

    assert set(Counter(taken).values()) == {2}
    assert pick(3, 8, 7, "votes", 0) in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])


class ByToken:
    """Pays each first token its own figure: a bandit of as many answers as the model has words."""

    def __init__(self, words: int) -> None:
        self.worth = np.random.default_rng(3).standard_normal(words)

    def score(self, prompts: Any, answers: Any) -> Any:
        return np.array([self.worth[a.tokens[0]] for a in answers])


@pytest.mark.slow
@pytest.mark.parametrize("by", ["ppo", "rloo", "dr_grpo", "online_dpo", "best_of_n"])
def test_the_real_climb_ends_at_its_law_on_a_bandit(tiny_model: Path, by: str):
    # one prompt, answers of one token: the law is known exactly, whatever the network
    plan = config(
        prompts=1, answers=256, minibatches=1, rank=0, learning_rate=3e-3, kl_coef=0.5, kl_horizon=10**9, micro=256,
        steps=1,
    )  # fmt: skip
    if by == "best_of_n":
        plan = replace(plan, answers=3, prompts=64)
    bench = bench_of(tiny_model, "ppo", ByToken(100), plan)
    [prompt] = requests("train", 1)
    asked = [prompt] if by != "best_of_n" else [replace(prompt, id=f"p{i}") for i in range(64)]
    tokens = np.arange(len(bench.chat.tokenizer))
    answers = [
        Answer(
            prompt_id=prompt.id, index=0, policy="p", tokens=np.array([t]), logp=np.zeros(1, np.float32), ended=True,
            text="",
        )
        for t in tokens
    ]  # fmt: skip
    worth = bench.tools.scorer.score([], answers)
    ref = bench.reader.read([prompt] * len(answers), answers).logp[:, 0].double().log_softmax(0).numpy()
    bench.tools = bench.tools._replace(prompts=asked)
    state = bench.state
    assert state is not None
    climb = METHODS[by].climb  # type: ignore[index]
    how = Optimise(by=by, beta=0.5)  # type: ignore[arg-type]
    total = 120
    for step in climb(state, bench.tools, plan, how, seed=5, max_tokens=1, until=total):
        state.optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step.state.step / total)
    found = np.exp(bench.reader.read([prompt] * len(answers), answers, state.adapter).logp[:, 0].double().numpy())

    tilted = np.exp(ref + worth / 0.5)
    law = best_of_n_law(np.exp(ref), worth, 3) if by == "best_of_n" else tilted / tilted.sum()
    distance = 0.5 * np.abs(found - law).sum()
    assert 0.5 * np.abs(np.exp(ref) - law).sum() > 0.3
    assert distance < 0.08
