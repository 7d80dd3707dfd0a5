"""A plan's model put to a trial: one batch of answers, one fit on made-up votes, one step of the climb, all timed.

What the doctor looks at. Sizes are the plan's own, up to a limit; nothing is stored.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.errors import DataError
from backflip.core.records import Answer, Feedback, Prompt
from backflip.core.rng import generator
from backflip.cycle.folder import BASE, REFERENCE, has_begun, run_store
from backflip.cycle.forecast import Pace, Work, answers_a_step, work_of
from backflip.cycle.imitate import demonstrations
from backflip.cycle.paths import here
from backflip.cycle.plan import Plan
from backflip.cycle.run import check_prompts
from backflip.cycle.tools import own_prompts
from backflip.cycle.untouched import first_version, load_untouched
from backflip.models.chat import Chat, open_chat
from backflip.policies import ppo
from backflip.policies.foresight import Need, at_a_time, keep_within_memory, longest, need_of_climb, need_of_step
from backflip.policies.methods import METHODS
from backflip.policies.rollout import Preference
from backflip.policies.rollout import Tools as ClimbTools
from backflip.policies.sft import fresh_imitator, imitate
from backflip.policies.state import PolicyState, fresh_state
from backflip.rewards.ensemble import fit_ensemble
from backflip.rewards.fit import Reward, emphasis, fit_votes
from backflip.rewards.model import RewardModel, features_of
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader
from backflip.store import Store

Array = NDArray[np.float64]
Demonstrated = tuple[list[Prompt], list[Answer]]

LARGEST_STEP = 96
"""Answers of the one step that is tried; a plan's larger step takes in proportion longer."""
MOST_VOTES = 1000
"""Made-up votes of the one fit that is tried."""
RATERS = 6
"""Who cast them, made up too: as many as the default crowd has."""
WRONG_SHARE = 0.15
"""Made-up votes that go against the rule (the longer answer wins), so that the fit has work to do."""


@dataclass(frozen=True)
class Imports:
    """What a run has imported so far."""

    answers: int = 0
    votes: int = 0


@dataclass(eq=False)
class Patient:
    """A plan's model at work: what every check reads, and the seconds that were taken on the way."""

    plan: Plan
    chat: Chat
    reader: Reader
    engine: Engine
    prompts: list[Prompt]
    state: PolicyState
    demonstrations: Demonstrated | None
    """What stage 0 will learn from; None where there is none, or it is done."""
    imported: Imports
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Take the seconds of a piece of work."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def train(self) -> list[Prompt]:
        """The prompts that a climb uses."""
        return [p for p in self.prompts if p.split == "train"]


class Tried(NamedTuple):
    """One batch of answers by the untouched model, and their features (B, F)."""

    asked: list[Prompt]
    answers: list[Answer]
    features: Array


def open_patient(plan: Plan, root: Path | None = None) -> Patient:
    """Load the plan's model and prompts as its run would; that of the run in `root` where there is one.

    Raises: ConfigError; DataError, also when the model is not the one that the run began with.
    """
    began, first = time.perf_counter(), first_version(root, plan)
    if root is not None and has_begun(root, plan):
        with run_store(root, plan) as store:
            there = here(root, store, plan)
            loaded = load_untouched(root, plan, store, version=first)
            answers = store.samples(round=0, purpose="rate")
            ids = {p.id for p in store.pairs(round=0, stream="fit")}
            imported = Imports(len(answers), sum(v.pair_id in ids for v in store.votes(stream="fit")))
            chat = open_chat(loaded)
            shown = _shown(there, store, chat) if first == BASE else None
    else:
        there, imported = plan, Imports()
        loaded = load_untouched(root or Path(), plan, None, version=first)
        chat = open_chat(loaded)
        shown = _shown(there, None, chat) if first == BASE else None
    trunk, sampling = loaded.trunk, plan.sampling
    prompts = own_prompts(there)
    check_prompts(prompts, chat, plan)
    reader = Reader(trunk, chat, micro=plan.ppo.micro, temperature=sampling.temperature)
    state = fresh_state(trunk, plan.ppo, plan.seed)
    engine = Engine(
        lambda version: trunk if version == REFERENCE else trunk.merged(state.adapter),
        chat, batch=sampling.batch, temperature=sampling.temperature,
    )  # fmt: skip
    patient = Patient(plan, chat, reader, engine, prompts, state, shown, imported)
    patient.seconds["load"] = time.perf_counter() - began
    return patient


def _shown(plan: Plan, store: Store | None, chat: Chat) -> Demonstrated | None:
    """What stage 0 would learn from now; None for a model that cannot stop, or while people have yet to write."""
    if not chat.stops:
        return None
    try:
        return demonstrations(plan, store, chat)
    except DataError:
        if plan.sft.demonstrations:
            raise
        return None


def try_sampling(patient: Patient) -> Tried:
    """Draw one batch of answers and read them, as the steps `sample` and `fit` do."""
    plan, engine = patient.plan, patient.engine
    count = max(2, plan.sampling.batch // plan.sampling.answers)
    prompts = patient.train()[:count]
    engine.load(REFERENCE)
    with patient.timed("draw"):
        drawn = engine.sample(prompts, plan.sampling.answers, seed=plan.seed, max_tokens=plan.sampling.max_tokens)
        answers = [a for batch in drawn for a in batch]
    by_id = {p.id: p for p in prompts}
    asked = [by_id[a.prompt_id] for a in answers]
    with patient.timed("read"):
        reading = patient.reader.reference(asked, answers)
    return Tried(asked, answers, features_of(reading, patient.chat, asked, answers))


def try_fit(patient: Patient, tried: Tried) -> Reward:
    """Fit a reward on made-up votes, as many as the first round will have: the longer answer wins."""
    plan, luck = patient.plan, generator(patient.plan.seed, "doctor")
    votes = min(MOST_VOTES, work_ahead(patient).votes[0]) or MOST_VOTES // 10
    rows = luck.integers(len(tried.features), size=2 * votes)
    spread = tried.features.std(0)
    features = tried.features[rows] + 0.3 * spread * luck.standard_normal((len(rows), len(spread)))
    length = np.array([len(a.tokens) for a in tried.answers])[rows]
    feedback = [
        Feedback(a=i, b=i + 1, choice="a" if (length[i] > length[i + 1]) != (luck.random() < WRONG_SHARE) else "b",
                 rater_id=f"doctor {i // 2 % RATERS}")
        for i in range(0, len(rows), 2)
    ]  # fmt: skip
    owner = [f"prompt {i // 4}" for i in range(len(rows))]
    with patient.timed("fit"):
        fitted = fit_votes(
            features, feedback, owner, tried.features, plan.fit, seed=plan.seed, emphasis=emphasis(len(spread))
        )
        fit_ensemble(fitted, tried.features, plan.fit, seed=plan.seed)
    patient.seconds["vote"] = patient.seconds["fit"] / votes
    return fitted.reward


def try_step(patient: Patient, tried: Tried, reward: Reward) -> dict[str, float]:
    """Warm up and take one step as a climb does, at most `LARGEST_STEP` answers large; its metrics."""
    plan, method = patient.plan, METHODS[patient.plan.optimise.by]
    scorer = RewardModel(reward, patient.reader)
    votes = _longer_wins(tried) if method.votes else []
    tools = ClimbTools(patient.engine, patient.reader, scorer, patient.train(), votes, REFERENCE)
    need, most = _climb_need(patient, tried)
    keep_within_memory(patient.reader, need, most)  # as a run does
    patient.reader.recent.clear()  # a run warms up on answers that it has yet to read
    if method.critic:
        with patient.timed("warm"):
            ppo.warm_up(patient.state, tools, plan.ppo, tried.asked, tried.answers)
    config = replace(plan.ppo, prompts=_prompts_tried(plan.ppo))
    rules = {"seed": plan.seed, "max_tokens": plan.sampling.max_tokens, "until": 1}
    with patient.timed("step"):
        [step] = method.climb(patient.state, tools, config, plan.optimise, **rules)
    patient.engine.load(patient.state.version)  # as the next step does, with the last copy still there
    if patient.demonstrations is not None:
        _try_imitation(patient, *patient.demonstrations)
    return step.metrics


def _prompts_tried(config: ppo.PPO) -> int:
    """Prompts of the one step that is tried."""
    return min(config.prompts, max(1, LARGEST_STEP // config.answers))


def _longer_wins(tried: Tried) -> list[Preference]:
    """Made-up votes on the answers that were drawn, each prompt's first against its second."""
    rows = zip(tried.asked, tried.answers, tried.answers[1:], strict=False)
    return [
        Preference(prompt, a, b, float(len(a.tokens) > len(b.tokens)))
        for prompt, a, b in rows
        if a.prompt_id == b.prompt_id
    ]


def _try_imitation(patient: Patient, prompts: list[Prompt], answers: list[Answer]) -> None:
    """One gradient step of stage 0."""
    config = patient.plan.sft
    reader = Reader(patient.reader.trunk, patient.chat, micro=config.micro)
    state = fresh_imitator(reader.trunk, config, patient.plan.seed)
    keep_within_memory(reader, need_of_step(reader, state.adapter, *longest(prompts, answers)), config.micro)
    with patient.timed("imitate"):
        next(imitate(state, reader, prompts, answers, config, seed=patient.plan.seed))


def pace_of(patient: Patient, tried: Tried) -> Pace:
    """Seconds for each kind of work, from the pieces that were tried."""
    s, count, config = patient.seconds, len(tried.answers), patient.plan.ppo
    whole, part = (min(n, len(patient.train())) for n in (config.prompts, _prompts_tried(config)))
    return Pace(
        load_s=s["load"], draw_s=s["draw"] / count, read_s=s["read"] / count, warm_s=s.get("warm", 0.0) / count,
        step_s=s["step"] * whole / part, vote_s=s["vote"], imitate_s=s.get("imitate", 0.0),
    )  # fmt: skip


def work_ahead(patient: Patient) -> Work:
    """The work of the whole plan; stage 0 only where it is still to be done."""
    plan, learned = patient.plan, patient.demonstrations
    count = 0 if learned is None else len(learned[1]) - round(plan.sft.held_out * len(learned[1]))
    splits = {s: sum(p.split == s for p in patient.prompts) for s in ("train", "monitor", "final")}
    work, more = work_of(plan, splits, count), patient.imported
    return replace(work, read=work.read + more.answers, votes=tuple(v + more.votes for v in work.votes))


def foresee_training(patient: Patient, tried: Tried, most: int | None = None) -> int:
    """Bytes that training will need beside what is held now: a climb's step, or stage 0's where that is more.

    With so many answers at a time as the plan says, but `most`.
    """
    config, reader = patient.plan.sft, patient.reader
    need, micro = _climb_need(patient, tried)
    needed = [need.of(min(micro, most or micro))]
    if patient.demonstrations is not None:
        adapter = fresh_imitator(reader.trunk, config, patient.plan.seed).adapter
        learned = need_of_step(reader, adapter, *longest(*patient.demonstrations))
        needed.append(learned.of(min(config.micro, most or config.micro)))
    return max(needed)


def _climb_need(patient: Patient, tried: Tried) -> tuple[Need, int]:
    """What a step of the climb needs, and how many answers it works on at a time."""
    plan, reader = patient.plan, patient.reader
    rollouts = answers_a_step(plan.ppo, len(patient.train()))
    shown, room = longest(tried.asked, tried.answers), plan.sampling.max_tokens
    need = need_of_climb(reader, patient.state, *shown, rollouts=rollouts, room=room)
    return need, at_a_time(plan.ppo, rollouts)
