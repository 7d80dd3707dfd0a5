"""PPO climbs what it is paid for, and only as far as the KL leash lets it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import Bench

from backflip.policies.ppo import PPO, Step, climb, fresh_state

HALF = 28  # tokens below this are paid for; END is one of them, so endings are left out of the count


class Pay:
    """`sign` times the share of tokens (the end left out) that are below HALF."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def score(self, prompts: Any, answers: Any) -> Any:
        return self.sign * np.array([share(a) for a in answers])


class Short:
    """Pays for short answers."""

    def score(self, prompts: Any, answers: Any) -> Any:
        return -np.array([len(a.tokens) for a in answers]) / 4


def share(answer: Any) -> float:
    said = answer.tokens[answer.tokens != 1]
    return float(np.mean(said < HALF)) if len(said) else 0.5


def plan_of(**changes: Any) -> PPO:
    keys: dict[str, Any] = {"prompts": 8, "answers": 8, "rank": 4, "alpha": 8.0, "learning_rate": 2e-2}
    keys |= {"kl_coef": 0.01, "missing_end_penalty": 0.0, "adapted": 1.0, "kl_horizon": 100_000}
    keys |= {"minibatches": 2, "epochs": 1, "lam": 0.95}
    return PPO(**(keys | changes))


def run(model: Path, scorer: Any, steps: int = 12, **changes: Any) -> list[Step]:
    plan, bench = plan_of(**changes), Bench(model, scorer)
    bench.state = fresh_state(bench.loaded.trunk, plan, 1)
    return list(climb(bench.state, bench.tools, plan, seed=5, max_tokens=10, until=steps))


def shares(steps: list[Step]) -> tuple[float, float]:
    """Mean share of paid-for tokens in the first step's answers and in the last step's."""
    first, last = (float(np.mean([share(a) for a in s.answers])) for s in (steps[0], steps[-1]))
    return first, last


def test_what_is_paid_for_rises(tiny_model: Path) -> None:
    first, last = shares(run(tiny_model, Pay(1.0)))

    assert last > first + 0.2


def test_full_fine_tuning_climbs_too_and_starts_at_ratio_1(tiny_model: Path) -> None:
    steps = run(tiny_model, Pay(1.0), rank=0, learning_rate=3e-3)
    first, last = shares(steps)

    assert last > first + 0.2
    assert [s.metrics["val/ratio_first"] for s in steps] == pytest.approx([1.0] * len(steps), abs=1e-5)


def test_what_costs_falls(tiny_model: Path) -> None:
    first, last = shares(run(tiny_model, Pay(-1.0)))

    assert last < first - 0.2


def test_answers_grow_shorter_when_that_pays(tiny_model: Path) -> None:
    steps = run(tiny_model, Short())

    assert steps[-1].metrics["length/mean"] < 0.7 * steps[0].metrics["length/mean"]
    assert steps[-1].metrics["ended/share"] > steps[0].metrics["ended/share"] + 0.3


def test_a_penalty_for_missing_ends_teaches_to_end(tiny_model: Path) -> None:
    steps = run(tiny_model, Pay(0.0), missing_end_penalty=2.0)

    assert steps[-1].metrics["ended/share"] > steps[0].metrics["ended/share"] + 0.3


def test_a_high_kl_coefficient_holds_the_policy_near_the_reference(tiny_model: Path) -> None:
    free = run(tiny_model, Pay(1.0))[-1].metrics["objective/kl"]
    held = run(tiny_model, Pay(1.0), kl_coef=1.0)[-1].metrics["objective/kl"]

    assert free > 0.5
    assert abs(held) < 0.3 * free


def test_the_leash_pulls_a_policy_back_that_has_gone_astray(tiny_model: Path) -> None:
    # with reward and KL both negated in the update, this would drive the KL up instead
    class Turning:
        def __init__(self) -> None:
            self.pay: Any = Pay(1.0)

        def score(self, prompts: Any, answers: Any) -> Any:
            return self.pay.score(prompts, answers)

    scorer = Turning()
    plan, bench, steps = plan_of(missing_end_penalty=0.0), Bench(tiny_model, scorer), []
    bench.state = fresh_state(bench.loaded.trunk, plan, 1)
    for step in climb(bench.state, bench.tools, plan, seed=5, max_tokens=10, until=24):
        steps.append(step.metrics["objective/kl"])
        if len(steps) == 8:
            scorer.pay, bench.state.kl_coef = Pay(0.0), 1.0

    assert steps[7] > 0.5
    assert float(np.mean(steps[-3:])) < 0.5 * steps[7]


def test_the_same_seed_takes_the_same_steps(tiny_model: Path) -> None:
    one, two = run(tiny_model, Pay(1.0), 2), run(tiny_model, Pay(1.0), 2)

    assert [s.metrics for s in one] == [s.metrics for s in two]


@pytest.mark.parametrize("key", ["steps", "prompts", "learning_rate", "kl_coef", "micro"])
def test_settings_that_cannot_work_are_refused_by_name(key: str) -> None:
    from backflip.core.errors import ConfigError

    with pytest.raises((ConfigError, ValueError), match=key):
        PPO(**{key: 0})
