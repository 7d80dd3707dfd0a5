"""One step of a climb: answers sampled by the policy as it stands, scored, and read by policy and reference.

`climb_with` drives any optimiser as a generator: whoever iterates it checkpoints, measures, stops or rolls back
between two steps. An optimiser is an `Update`: it rolls out, takes its gradient steps and returns the step's figures.
Takes a `Scorer` and knows nothing of rewards, rounds or stores.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backflip.core.protocols import Scorer
from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator, seed_of
from backflip.objectives.kl import next_coefficient
from backflip.policies.not_finite import DIVERGED, REWARD, UNTOUCHED, Lines, NotFinite, lines_of
from backflip.policies.plan import PPO, Optimise
from backflip.policies.state import PolicyState
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader, Reading, sampled_logp

Scores = NDArray[np.float64]


class Step(NamedTuple):
    """One finished step: the policy after it, the answers it was made from, and the trade's metrics by name."""

    state: PolicyState
    answers: list[Answer]
    scores: Scores
    metrics: dict[str, float]


class Preference(NamedTuple):
    """Two answers to one prompt and how they were judged."""

    prompt: Prompt
    a: Answer
    b: Answer
    wins: float
    """1 where `a` was preferred, 0 where `b` was, 0.5 for a tie; or the probability that `a` is."""
    weight: float = 1.0


class Tools(NamedTuple):
    """What a climb works with: the sampler of the policy's answers, the trunk's reader, the reward, the prompts."""

    engine: Engine
    reader: Reader
    scorer: Scorer
    prompts: Sequence[Prompt]
    votes: Sequence[Preference] = ()
    """What DPO learns from."""
    start: str = "reference"
    """Version of the policy before the climb: what best-of-n draws from."""


class Settings(NamedTuple):
    """What holds for a whole climb."""

    config: PPO
    how: Optimise
    seed: int
    max_tokens: int


class Rollout(NamedTuple):
    """A step's answers as the trainer sees them: readings by the reference and by the policy that sampled."""

    prompts: list[Prompt]
    answers: list[Answer]
    scores: Scores
    """(B,) as the scorer gave them."""
    paid: Tensor
    """(B,) float32 scores less the penalty of answers that did not end."""
    reference: Reading
    policy: Reading
    logp_sampler: Tensor

    @property
    def states(self) -> Tensor:
        """(B, T, H) the reference's states before each token."""
        if self.reference.states is None:
            raise RuntimeError("the reference's states were asked for")
        return self.reference.states

    @property
    def group(self) -> Tensor:
        """(B,) int64: answers to the same prompt have the same number."""
        place = {p.id: i for i, p in enumerate(self.prompts)}
        return torch.tensor([place[p.id] for p in self.prompts], device=self.policy.mask.device)


class Update(Protocol):
    """One step of one optimiser: changes `state`, returns the answers it looked at and its figures."""

    def __call__(self, state: PolicyState, tools: Tools, settings: Settings) -> tuple[Rollout, dict[str, float]]:
        """Raises: NotFinite when a reading, score, loss or gradient is not finite."""
        ...


def climb_with(
    update: Update,
    state: PolicyState,
    tools: Tools,
    config: PPO,
    how: Optimise | None = None,
    *,
    seed: int,
    max_tokens: int,
    until: int,
) -> Iterator[Step]:
    """Yield one step of `update` after the other until `state.step` reaches `until`.

    `state` is changed in place and handed out with each step; a state loaded from a checkpoint carries on
    exactly. Randomness is keyed by (seed, step).

    Raises: NotFinite when a reading, score, loss or gradient is not finite. A part of the step may have been taken by
    then: the state is to be loaded anew from the checkpoint before it.
    """
    settings = Settings(config, Optimise() if how is None else how, seed, max_tokens)
    while state.step < until:
        rollout, metrics = update(state, tools, settings)
        state.step += 1
        yield Step(state, rollout.answers, rollout.scores, metrics)


def roll_out(state: PolicyState, tools: Tools, settings: Settings, *, answers: int) -> Rollout:
    """The step's prompts answered `answers` times each by the policy as it stands, scored and read.

    Raises: NotFinite when a log-probability or a score is not finite.
    """
    config, seed, place = settings.config, settings.seed, state.step
    prompts = [tools.prompts[i] for i in pick(len(tools.prompts), config.prompts, seed, "prompts", place)]
    tools.engine.load(state.version)
    key = seed_of(seed, "step", place)
    sampled = tools.engine.sample(prompts, answers, seed=key, max_tokens=settings.max_tokens, finite=False)
    said = [a for batch in sampled for a in batch]
    by_id = {p.id: p for p in prompts}
    asked = [by_id[a.prompt_id] for a in said]
    scores = tools.scorer.score(asked, said)
    reference = tools.reader.reference(asked, said)
    policy = tools.reader.read(asked, said, state.adapter)
    device = policy.logp.device
    sampler = sampled_logp(said, policy)
    paid = torch.as_tensor(paid_scores(scores, said, config.missing_end_penalty), dtype=torch.float32, device=device)
    rollout = Rollout(asked, said, scores, paid, reference, policy, sampler)
    _require_finite(rollout, place)
    return rollout


def rollout_lines(rollout: Rollout, rows: NDArray[np.int64]) -> Lines:
    """What the trainer knows of some answers of a rollout, to be looked at."""
    figures: dict[str, Tensor | Scores] = {
        "score": rollout.scores[rows], "paid": rollout.paid[rows], "logp": rollout.policy.logp[rows],
        "logp_reference": rollout.reference.logp[rows],
    }  # fmt: skip
    return lines_of([rollout.prompts[i] for i in rows], [rollout.answers[i] for i in rows], figures)


def _require_finite(rollout: Rollout, step: int) -> None:
    """Raises: NotFinite for the first of a rollout's numbers that nothing could be learned from."""
    of_policy, by = f"A log-probability by the policy in step {step}", "a lower ppo.learning_rate"
    for numbers, what, cause, cure in (
        (rollout.reference.logp, f"A log-probability by the untouched model in step {step}", UNTOUCHED,
         'model.dtype = "float32", or with another model'),
        (rollout.logp_sampler, of_policy, DIVERGED, by),
        (rollout.policy.logp, of_policy, DIVERGED, by),
        (rollout.paid, f"A reward in step {step}", REWARD, "other votes or prompts"),
    ):  # fmt: skip
        if not torch.isfinite(numbers).all():
            raise NotFinite(what, rollout_lines(rollout, np.arange(len(rollout.answers))), cause=cause, cure=cure)


def paid_scores(scores: Scores, answers: Sequence[Answer], missing_end_penalty: float) -> Scores:
    """(B,) scores less the penalty of each answer that did not end by itself."""
    return scores - missing_end_penalty * np.array([not a.ended for a in answers])


def pick(total: int, count: int, seed: int, what: str, step: int) -> list[int]:
    """The `count` of `total` things that step `step` takes: consecutive slices of reshuffled passes over all."""
    chosen: list[int] = []
    at = step * count
    while len(chosen) < min(count, total):
        epoch, offset = divmod(at + len(chosen), total)
        i = int(generator(seed, what, epoch).permutation(total)[offset])
        if i not in chosen:
            chosen.append(i)
        else:  # a pass may begin with one that the last pass ended on
            at += 1
    return chosen


def steer(state: PolicyState, config: PPO, rollout: Rollout) -> None:
    """Let the KL coefficient follow the KL that was met."""
    kl = _kl(rollout)
    state.kl_coef = next_coefficient(state.kl_coef, kl, config.kl_target, len(rollout.answers), config.kl_horizon)


def figures_of(rollout: Rollout, kl_coef: float) -> dict[str, float]:
    """What every optimiser tells of a step's answers, `kl_coef` being the coefficient they were paid by."""
    mask = rollout.policy.mask
    kl = _kl(rollout)
    gap = ((rollout.policy.logp - rollout.logp_sampler).exp() * mask).sum() / mask.sum()
    return {
        "objective/kl": kl,
        "objective/kl_coef": kl_coef,
        "objective/scores": float(np.mean(rollout.scores)),
        "objective/rlhf_reward": float(rollout.paid.mean()) - kl_coef * kl,
        "objective/entropy": float((rollout.policy.entropy * mask).sum() / mask.sum()),
        "val/sampler_ratio": float(gap),
        "length/mean": float(mask.sum(1).float().mean()),
        "ended/share": float(np.mean([a.ended for a in rollout.answers])),
    } | _with_length(rollout)


def _with_length(rollout: Rollout) -> dict[str, float]:
    """How far score and length go together over a step's answers, Pearson's r; nothing where either is constant."""
    length = np.array([len(a.tokens) for a in rollout.answers], dtype=np.float64)
    if np.ptp(length) == 0 or np.ptp(rollout.scores) == 0:
        return {}
    return {"length/score_correlation": float(np.corrcoef(rollout.scores, length)[0, 1])}


def _kl(rollout: Rollout) -> float:
    """Mean of k1 summed over an answer's tokens, in nats."""
    return float(((rollout.policy.logp - rollout.reference.logp) * rollout.policy.mask).sum(1).mean())
