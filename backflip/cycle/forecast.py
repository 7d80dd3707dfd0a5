"""What a plan will cost: the work in it, counted, and the seconds that each kind takes on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass

from backflip.cycle.best_of import PROMPTS
from backflip.cycle.optimise import WARM_UP
from backflip.cycle.plan import Plan
from backflip.cycle.sample import prompts_asked
from backflip.policies.methods import METHODS
from backflip.policies.plan import PPO
from backflip.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run computes from its start to its end, in counts."""

    drawn: int
    """Answers sampled outside the climbs."""
    read: int
    """Answers read by one model outside the climbs."""
    warmed: int
    """Answers on which critics are warmed up."""
    steps: int
    """Steps of the climbs."""
    votes: tuple[int, ...]
    """Votes that each round's fit reads, imports left out."""
    imitated: int
    """Gradient steps of stage 0."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that one piece of each kind of work takes."""

    load_s: float
    draw_s: float
    read_s: float
    warm_s: float
    step_s: float
    vote_s: float
    imitate_s: float = 0.0


def work_of(plan: Plan, prompts: Mapping[str, int], demonstrations: int = 0) -> Work:
    """The work in `plan` with so many prompts of each split, and demonstrations that are learned from."""
    asked = {s: prompts_asked(plan, prompts["train" if s == "fit" else "monitor"], s) for s in ("fit", "random")}
    rated = sum(asked.values()) * plan.sampling.answers
    m = plan.measure
    asked_monitor = min(m.monitor_prompts or prompts["monitor"], prompts["monitor"])
    monitor, best_of = asked_monitor * m.monitor_answers, min(asked_monitor, PROMPTS) * m.best_of
    final = min(m.final_prompts or prompts["final"], prompts["final"]) * m.final_answers
    others = len(TASKS[plan.task.name].baselines)
    drawn = plan.rounds * (rated + monitor) + (1 + others) * (monitor + final) + final + best_of
    read = plan.rounds * (rated + 2 * monitor) + monitor + 3 * final + best_of
    if demonstrations:
        drawn, read = drawn + monitor + final, read + monitor + final
    per_round = round((plan.rate.pairs - plan.rate.held_out) * (1 + plan.rate.double_share))
    return Work(
        drawn=drawn,
        read=read,
        warmed=METHODS[plan.optimise.by].critic * plan.rounds * min(WARM_UP, asked["fit"] * plan.sampling.answers),
        steps=plan.rounds * plan.ppo.steps,
        votes=tuple(per_round * r for r in range(1, plan.rounds + 1)),
        imitated=plan.sft.epochs * -(-demonstrations // plan.sft.batch),
    )


def seconds_by_step(work: Work, pace: Pace) -> dict[str, float]:
    """Seconds of a whole run by what they are spent on."""
    out = {
        "load": pace.load_s,
        "stage 0": work.imitated * pace.imitate_s,
        "sample": work.drawn * pace.draw_s,
        "read": work.read * pace.read_s,
        "fit": sum(work.votes) * pace.vote_s,
        "optimise": work.steps * pace.step_s + work.warmed * pace.warm_s,
    }
    return {name: seconds for name, seconds in out.items() if seconds}


def answers_a_step(config: PPO, prompts: int) -> int:
    """Answers that one step of a climb samples from so many prompts."""
    return min(config.prompts, prompts) * config.answers
