"""What thirty votes of one person teach: a taste, SmolLM2's own answers, unseen prompts, and a policy after one round.

The simulated person wants answers short, warm, or in plain words, and 15% of the votes are turned round. Answers are
drawn and read once and kept in bench/out (ten minutes on one thread).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from demo import final_sides
from numpy.typing import NDArray
from table import ROOT, Row, code

from backflip.core.records import Feedback, Judged, Prompt
from backflip.cycle.folder import start_run
from backflip.cycle.plan import Model, Plan, TaskPlan, plan_for
from backflip.cycle.run import run_rounds
from backflip.cycle.trial import open_patient
from backflip.raters.personas import Crowd, Persona
from backflip.rewards.fit import TOKEN_FIGURES, emphasis, fit_reward
from backflip.rewards.model import features_of
from backflip.rewards.plan import Fit
from backflip.stats.bootstrap import Interval, win_shares
from backflip.tasks import FORMS, TASKS, RequestUtility, Task, load_prompt_file, load_requests
from backflip.tasks.requests import sense
from backflip.tasks.words import words

Array = NDArray[np.float64]
BARS: Mapping[str, float] = MappingProxyType({"short": 0.9, "warm": 0.8, "plain words": 0.75})
"""The least share of unseen prompts where the chosen answer is the better one."""
VOTES, FLIPPED, PERSONS, BEST_OF, PICKS, TOKENS = 30, 0.15, 20, 16, 2, 48
"""Votes of one person, how many go wrong, persons, answers to choose from, picks by lot, longest answer."""
PROMPTS = {"train": (60, 6), "final": (50, BEST_OF + PICKS)}
"""(prompts, answers to each) that are voted on, and that are chosen for."""


class Tastes:
    """A true utility of three tastes, each in [0, 1] and lowered for what is no text, as `RequestUtility`'s are."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """`weights` over 1 each, by taste."""
        self.weights: Mapping[str, float] = MappingProxyType({**dict.fromkeys(BARS, 1.0), **(weights or {})})
        self.names = tuple(self.weights)
        self._requests = RequestUtility()

    def judge(self, prompt: Prompt, text: str, ended: bool) -> Judged:
        """Short: fewer words; warm: the warmth of `RequestUtility`; plain words: fewer letters a word."""
        said = words(text)
        letters = sum(map(len, said)) / max(len(said), 1)
        attributes = {
            "short": sense(said) / (1 + len(said) / 10),
            "warm": self._requests.judge(prompt, text, ended).attributes["warmth"],
            "plain words": sense(said) / (1 + letters),
        }
        return Judged(value=sum(self.weights[n] * a for n, a in attributes.items()), attributes=attributes)

    def table(self) -> list[tuple[str, float, str]]:
        """(taste, weight, meaning)."""
        return [(n, w, "see judge") for n, w in self.weights.items()]

    def describe(self) -> str:
        """The tastes in words."""
        return ", ".join(self.names)


TASK = Task(
    name="tastes", prompts=load_requests, utility=Tastes, prompt_file=partial(load_prompt_file, forms=FORMS),
    max_tokens=TOKENS,
)  # fmt: skip


class Drawn(NamedTuple):
    """Answers by the untouched model to P prompts. Shapes: features (P, A, F), worth (P, A, tastes)."""

    features: Array
    worth: Array


def draw_answers(kept: Path = ROOT / "bench" / "out" / "thirty.npz") -> tuple[Drawn, Drawn]:
    """The answers that are voted on and those that are chosen from: sampled and read, or taken from the disk."""
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        patient = open_patient(replace(plan_for("requests"), model=Model(threads=1)))
        patient.engine.load("reference")
        utility, out = Tastes(), {}
        for split, (count, each) in PROMPTS.items():
            prompts = [p for p in patient.prompts if p.split == split][:count]
            drawn = [a for answers in patient.engine.sample(prompts, each, seed=0, max_tokens=TOKENS) for a in answers]
            asked = [p for p in prompts for _ in range(each)]
            features = features_of(patient.reader.reference(asked, drawn), patient.chat, asked, drawn)
            judged = [utility.judge(p, a.text, a.ended).attributes for p, a in zip(asked, drawn, strict=True)]
            out[f"{split}.features"] = features.reshape(count, each, -1)
            out[f"{split}.worth"] = np.array([[j[t] for t in BARS] for j in judged]).reshape(count, each, -1)
            out[f"{split}.text"] = np.array([a.text for a in drawn]).reshape(count, each)
        np.savez(kept, **out)
    found = np.load(kept)
    one, other = (Drawn(found[f"{split}.features"], found[f"{split}.worth"]) for split in PROMPTS)
    return one, other


def feedback_of(voted: Drawn, taste: int, seed: int) -> list[Feedback]:
    """One person's votes on pairs of answers, numbered prompt by prompt; a pair that is equal to them is not asked."""
    luck = np.random.default_rng([seed, taste])
    prompts, answers = voted.worth.shape[:2]
    cast: list[Feedback] = []
    while len(cast) < VOTES:
        p = int(luck.integers(prompts))
        a, b = (int(i) for i in luck.choice(answers, 2, replace=False))
        gap = voted.worth[p, a, taste] - voted.worth[p, b, taste]
        right = luck.random() >= FLIPPED
        if gap != 0:
            choice = "a" if (gap > 0) == right else "b"
            cast.append(Feedback(a=p * answers + a, b=p * answers + b, choice=choice, rater_id="one"))  # type: ignore[arg-type]
    return cast


def chosen_well(voted: Drawn, offered: Drawn, taste: int, seed: int, columns: slice) -> Array:
    """(P,) how often, prompt by prompt, the best of 16 by the fitted reward beats a pick by lot; ties count half."""
    answers, size = voted.features.shape[1:]
    features = voted.features.reshape(-1, size)[:, columns]
    owner = [str(i // answers) for i in range(len(features))]
    feedback, counts = feedback_of(voted, taste, seed), emphasis(size)[columns]
    reward = fit_reward(features, feedback, owner, features, Fit(), seed=seed, emphasis=counts)
    score = reward.score(offered.features[:, :BEST_OF, columns].reshape(-1, features.shape[1]))
    best = score.reshape(-1, BEST_OF).argmax(1)
    worth = offered.worth[..., taste]
    ahead = worth[np.arange(len(worth)), best][:, None] - worth[:, BEST_OF:]
    return np.asarray(((np.sign(ahead) + 1) / 2).mean(1))


def measure_tastes() -> dict[str, list[list[float]]]:
    """Tables (PERSONS, P) of `chosen_well`, by taste and features."""
    voted, offered = draw_answers()
    out = {}
    for t, taste in enumerate(BARS):
        for name, columns in (("", slice(None)), (", language model only", slice(0, -TOKEN_FIGURES))):
            table = [chosen_well(voted, offered, t, seed, columns) for seed in range(PERSONS)]
            out[taste + name] = np.array(table).tolist()
    return out


def plan_of(seed: int, taste: str) -> Plan:
    """The demo's plan for one round of thirty votes by one person of a taste, measured on the final prompts."""
    person = Persona(name="one", sees=(taste,), error=FLIPPED, tie_width=0.0, count=1)
    plan = replace(plan_for("requests"), seed=seed, rounds=1)
    rate = replace(plan.rate, pairs=VOTES, held_out=0, pairs_per_prompt=1, double_share=0.0, repeat_share=0.0)
    measure = replace(plan.measure, monitor_prompts=10)
    crowd = Crowd(personas=(person,))
    return replace(
        plan, task=TaskPlan(name=TASK.name), model=Model(threads=1), rate=rate, measure=measure, raters=crowd
    )


def policy_wins(seed: int, taste: str) -> list[float]:
    """(P,) how often the policy after one round is better than the reference by a taste, final prompt by prompt."""
    TASKS[TASK.name] = TASK
    root = ROOT / "bench" / "out" / f"thirty-{taste.replace(' ', '-')}-{code()}-s{seed}"
    start_run(root, plan_of(seed, taste))
    run_rounds(root)
    policy, reference = final_sides(root)
    return win_shares(policy.attributes[taste], reference.attributes[taste]).tolist()


def interval(table: Array, draws: int = 2000) -> Interval:
    """Mean of a table (persons, prompts), with a 95% interval that resamples both."""
    luck, (rows, columns) = np.random.default_rng(0), table.shape
    drawn = [
        table[luck.integers(rows, size=rows)][:, luck.integers(columns, size=columns)].mean() for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(table.mean()), float(low), float(high))


def rows_of_tastes(found: Mapping[str, Any], row: Callable[..., Row]) -> list[Row]:
    """The rows on thirty votes; those of the language model alone have no bar."""
    return [
        row(f"thirty votes {name}", interval(np.array(table)), "of prompts", f">= {BARS[name]}" if name in BARS else "")
        for name, table in found.items()
    ]


def rows_of_policy(wins: Sequence[Sequence[float]], row: Callable[..., Row]) -> list[Row]:
    """The rows on the policy after one round, over its seeds."""
    won = interval(np.array(wins))
    name = "thirty votes policy wins short"
    return [
        row(name, won, "of prompts", ">= 0.6"),
        row(f"{name}, lower bound", won, "of prompts", "low > 0.5"),
    ]
