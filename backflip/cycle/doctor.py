"""Is a plan sound, and what will it cost? Asked before computing is spent, with the plan's own model and sizes.

One batch of answers, one fit on made-up votes and one step of the climb are enough to tell; nothing is stored.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from backflip.core.records import Answer, Feedback, Prompt
from backflip.core.rng import generator
from backflip.cycle.artefacts import UNREADABLE, load_array
from backflip.cycle.folder import REFERENCE, SFT_FOLDER
from backflip.cycle.forecast import Pace, Work, answers_a_step, seconds_by_step, work_of
from backflip.cycle.imitate import load_demonstrations
from backflip.cycle.plan import Plan
from backflip.cycle.run import check_prompts
from backflip.cycle.tools import Silent, Watcher, own_prompts, torch_dtype, untouched_model
from backflip.measure import soundness
from backflip.measure.soundness import Finding
from backflip.models.chat import Chat, open_chat
from backflip.models.load import load_model, pick_device
from backflip.models.memory import available_bytes, peak_bytes, saved_bytes, used_bytes
from backflip.policies import ppo
from backflip.policies.methods import METHODS
from backflip.policies.rollout import Preference
from backflip.policies.rollout import Tools as ClimbTools
from backflip.policies.sft import fresh_imitator, imitate
from backflip.policies.state import PolicyState, fresh_state
from backflip.rewards.fit import Reward, fit_reward
from backflip.rewards.model import RewardModel, emphasis, features_of, load_reward
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader, pack_answers

Array = NDArray[np.float64]

LARGEST_STEP = 96
"""Answers of the one step that is tried; a plan's larger step takes in proportion longer."""
MOST_VOTES = 1000
"""Made-up votes of the one fit that is tried."""
WRONG_SHARE = 0.15
"""Made-up votes that go against the rule (the longer answer wins), so that the fit has work to do."""
TRAINING_SPARE = 1.3
"""What a backward needs beside what the forward kept for it: the gradients in flight. Measured: bench/doctor.py."""
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What the doctor found, and what the plan will cost on this machine."""

    findings: list[Finding]
    seconds: dict[str, float]
    """Seconds of the whole run by what they are spent on; people's time to vote is not among them."""
    memory_gb: float
    """Most memory that the run will hold at once."""
    available_gb: float
    work: Work | None
    """None when a fault kept the doctor from counting."""

    @property
    def sound(self) -> bool:
        """Whether no fault was found."""
        return all(f.level != "fault" for f in self.findings)


@dataclass(eq=False)
class Patient:
    """A plan's model at work: what every check reads, and the seconds that were taken on the way."""

    plan: Plan
    chat: Chat
    reader: Reader
    engine: Engine
    prompts: list[Prompt]
    state: PolicyState
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


def examine(plan: Plan, *, root: Path | None = None, watcher: Watcher | None = None) -> Examination:
    """Check the model, prompts and sizes of `plan`, and of the run in `root` the rewards it has fitted.

    Raises: ConfigError or DataError for a plan, prompts or model that do not fit.
    """
    watcher = Silent() if watcher is None else watcher
    patient = open_patient(plan, root)
    watcher.begin("examine the plan", 4)
    tried = try_sampling(patient)
    watcher.advance(1, "answers drawn and read")
    chat, reader, answers, asked = patient.chat, patient.reader, tried.answers, tried.asked
    findings = [
        soundness.stop_tokens(chat, answers, plan.sampling.max_tokens),
        soundness.template(chat, list({p.id: p for p in asked}.values()), answers),
        soundness.sampler_agrees(reader, asked, answers),
        soundness.padding(reader, asked, answers),
        soundness.kl_at_start(reader, patient.state, asked, answers),
    ]
    watcher.advance(1, "log-probabilities compared")
    reward = try_fit(patient, tried)
    findings += [soundness.reward_scale(reward, tried.features), *_scales(root)]
    watcher.advance(1, "a reward fitted")
    room, foreseen = available_bytes(reader.trunk.device), foresee_training(patient, tried)
    memory = memory_finding(foreseen, room, plan.ppo.micro)
    if memory.level == "fault":
        return Examination(
            findings=[*findings, memory], seconds={}, memory_gb=_gb(used_bytes(reader.trunk.device) + foreseen),
            available_gb=_gb(room), work=None,
        )  # fmt: skip
    metrics = try_step(patient, tried, reward)
    if "val/ratio_first" in metrics:  # DPO and best-of-n have no ratio
        findings.append(soundness.first_ratio(metrics, reader.trunk.dtype))
    findings.append(memory)
    watcher.advance(1, "one step climbed")
    work, pace = _work(patient, root), pace_of(patient, tried)
    return Examination(
        findings=findings,
        seconds=seconds_by_step(work, pace),
        memory_gb=_gb(peak_bytes(reader.trunk.device)),
        available_gb=_gb(room),
        work=work,
    )


def open_patient(plan: Plan, root: Path | None = None) -> Patient:
    """Load the plan's model and prompts as a run would. Raises: ConfigError; DataError."""
    prompts = own_prompts(plan)
    if plan.model.threads:
        torch.set_num_threads(plan.model.threads)
    began = time.perf_counter()
    trained = root is not None and (root / SFT_FOLDER).exists()
    name = untouched_model(root, plan) if root is not None and trained else plan.model.name
    loaded = load_model(name, dtype=torch_dtype(plan.model.dtype), device=pick_device(plan.model.device))
    chat = open_chat(loaded)
    check_prompts(prompts, chat, plan)
    trunk, sampling = loaded.trunk, plan.sampling
    reader = Reader(trunk, chat, micro=plan.ppo.micro, temperature=sampling.temperature)
    state = fresh_state(trunk, plan.ppo, plan.seed)
    engine = Engine(
        lambda version: trunk if version == REFERENCE else trunk.merged(state.adapter),
        chat, batch=sampling.batch, temperature=sampling.temperature,
    )  # fmt: skip
    patient = Patient(plan, chat, reader, engine, prompts, state)
    patient.seconds["load"] = time.perf_counter() - began
    return patient


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
    votes = min(MOST_VOTES, _work(patient, None).votes[0]) or MOST_VOTES // 10
    rows = luck.integers(len(tried.features), size=2 * votes)
    spread = tried.features.std(0)
    features = tried.features[rows] + 0.3 * spread * luck.standard_normal((len(rows), len(spread)))
    length = np.array([len(a.tokens) for a in tried.answers])[rows]
    feedback = [
        Feedback(a=i, b=i + 1, choice="a" if (length[i] > length[i + 1]) != (luck.random() < WRONG_SHARE) else "b",
                 rater_id="doctor")
        for i in range(0, len(rows), 2)
    ]  # fmt: skip
    owner = [f"prompt {i // 4}" for i in range(len(rows))]
    with patient.timed("fit"):
        reward = fit_reward(
            features, feedback, owner, tried.features, plan.fit, seed=plan.seed, emphasis=emphasis(len(spread))
        )
    patient.seconds["vote"] = patient.seconds["fit"] / votes
    return reward


def try_step(patient: Patient, tried: Tried, reward: Reward) -> dict[str, float]:
    """Warm up and take one step as a climb does, at most `LARGEST_STEP` answers large; its metrics."""
    plan, method = patient.plan, METHODS[patient.plan.optimise.by]
    scorer = RewardModel(reward, patient.reader)
    votes = _longer_wins(tried) if method.votes else []
    tools = ClimbTools(patient.engine, patient.reader, scorer, patient.train(), votes, REFERENCE)
    if method.critic:
        with patient.timed("warm"):
            ppo.warm_up(patient.state, tools, plan.ppo, tried.asked, tried.answers)
    config = replace(plan.ppo, prompts=_prompts_tried(plan.ppo))
    rules = {"seed": plan.seed, "max_tokens": plan.sampling.max_tokens, "until": 1}
    with patient.timed("step"):
        [step] = method.climb(patient.state, tools, config, plan.optimise, **rules)
    patient.engine.load(patient.state.version)  # as the next step does, with the last copy still there
    if plan.sft.demonstrations:
        _try_imitation(patient)
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


def _try_imitation(patient: Patient) -> None:
    """One gradient step of stage 0."""
    config, chat = patient.plan.sft, patient.chat
    prompts, answers = load_demonstrations(config.demonstrations, chat)
    reader = Reader(patient.reader.trunk, chat, micro=config.micro)
    state = fresh_imitator(reader.trunk, config, patient.plan.seed)
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


def _work(patient: Patient, root: Path | None) -> Work:
    """The work of the whole plan; stage 0 only where it is still to be done."""
    plan, count = patient.plan, 0
    if plan.sft.demonstrations and not (root is not None and (root / SFT_FOLDER).exists()):
        _, answers = load_demonstrations(plan.sft.demonstrations, patient.chat)
        count = len(answers) - round(plan.sft.held_out * len(answers))
    splits = {s: sum(p.split == s for p in patient.prompts) for s in ("train", "monitor", "final")}
    return work_of(plan, splits, count)


def foresee_training(patient: Patient, tried: Tried) -> int:
    """Bytes that a step of the climb will need beside what is held now, told from a forward of one or two answers."""
    reader, state, plan = patient.reader, patient.state, patient.plan
    adapter, trunk = state.adapter, reader.trunk
    longest = sorted(range(len(tried.answers)), key=lambda i: -len(tried.answers[i].tokens))

    def kept(count: int) -> int:
        rows = longest[:count]
        asked, answers = [tried.asked[i] for i in rows], [tried.answers[i] for i in rows]
        batch = pack_answers(reader.chat, asked, answers, trunk.device)

        def forward() -> object:
            hidden = trunk.hidden(batch, adapter)
            return hidden, reader.of_rows(hidden.final[batch.predict_rows[batch.answer_mask]], batch)

        return saved_bytes(forward, [*trunk.state().values(), *adapter.parameters()])

    one, two = kept(1), kept(2)
    rollouts = answers_a_step(plan.ppo, len(patient.train()))
    micro = min(plan.ppo.micro, ceil(rollouts / plan.ppo.minibatches))
    activations = one + (micro - 1) * max(0, two - one)
    tuned = sum(p.numel() for p in adapter.parameters())
    copied = sum(a * b for name, (a, b) in trunk.linear_shapes().items() if name in adapter.b) * trunk.dtype.itemsize
    states = rollouts * plan.sampling.max_tokens * trunk.hidden_size * 4
    return int(TRAINING_SPARE * activations + tuned * 4 * 3 + 2 * copied + 6 * states)


def memory_finding(needed: int, room: int, micro: int) -> Finding:
    """Whether training fits; `needed` is what it takes beside what is held now, `room` what is free, in bytes."""
    figures = {"needed_gb": _gb(needed), "available_gb": _gb(room)}
    fact = f"Training will take {_gb(needed):.1f} GB more than the model holds; {_gb(room):.1f} GB are free."
    if needed <= room:
        return Finding(name="memory", level="ok", fact=fact, figures=figures)
    fits = max(1, int(micro * room / needed))
    return Finding(
        name="memory", level="fault", fact=fact, figures=figures,
        cause=f"A micro-batch of {micro} answers keeps its activations until the backward.",
        cure=f"Set ppo.micro = {fits}: results do not change. Where that is not enough, take a smaller model.",
    )  # fmt: skip


def _scales(root: Path | None) -> list[Finding]:
    """The scale of every reward that the run in `root` has fitted, on the answers of its first round."""
    out: list[Finding] = []
    reference = root / "rounds" / "r1" / "features-rate.safetensors" if root is not None else None
    if root is None or reference is None or not reference.exists():
        return out
    features = load_array(reference, "features")
    for folder in sorted((root / "rounds").glob("r*/reward")):
        with suppress(*UNREADABLE):  # a broken reward is fitted anew by the step that needs it
            found = soundness.reward_scale(load_reward(folder), features)
            out.append(replace(found, name=f"reward scale, {folder.parent.name}"))
    return out


def _gb(count: int) -> float:
    return count / GB
