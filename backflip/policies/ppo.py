"""PPO on a KL leash, one step at a time.

`climb` is a generator: whoever drives it checkpoints, measures, stops or rolls back between two steps.
It takes a `Scorer` and knows nothing of rewards, rounds or stores.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backflip.core.errors import BackflipError
from backflip.core.protocols import Scorer
from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator, seed_of
from backflip.models.adapters import new_adapter, upper_layers
from backflip.models.trunk import Trunk
from backflip.objectives.gae import gae, whiten
from backflip.objectives.kl import next_coefficient, token_rewards
from backflip.objectives.ppo import policy_loss, truncated_importance
from backflip.policies.critic import CriticBatch, improve
from backflip.policies.plan import PPO
from backflip.policies.state import PolicyState, new_state
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader, Reading, answer_batches, pack_answers

__all__ = ["PPO", "Rollout", "Step", "Tools", "climb", "fresh_state", "warm_up"]


class Step(NamedTuple):
    """One finished step: the policy after it, the answers it was made from, and the trade's metrics by name."""

    state: PolicyState
    answers: list[Answer]
    scores: np.ndarray[tuple[int], np.dtype[np.float64]]
    metrics: dict[str, float]


class Tools(NamedTuple):
    """What a climb works with: the sampler of the policy's answers, the trunk's reader, the reward, the prompts."""

    engine: Engine
    reader: Reader
    scorer: Scorer
    prompts: Sequence[Prompt]


def fresh_state(trunk: Trunk, config: PPO, seed: int) -> PolicyState:
    """The start of a run: an adapter on the upper layers that changes nothing, a critic that predicts 0."""
    shapes = upper_layers(trunk.linear_shapes(), config.adapted)
    adapter = new_adapter(shapes, rank=config.rank, alpha=config.alpha, seed=seed, device=trunk.device)
    return new_state(
        adapter,
        trunk.hidden_size,
        learning_rate=config.learning_rate,
        critic_learning_rate=config.critic_learning_rate,
        kl_coef=config.kl_coef,
        seed=seed,
    )


def climb(state: PolicyState, tools: Tools, config: PPO, *, seed: int, max_tokens: int, until: int) -> Iterator[Step]:
    """Yield one step after the other until `state.step` reaches `until`.

    `state` is changed in place and handed out with each step; a state loaded from a checkpoint carries on
    exactly. Randomness is keyed by (seed, step). Raises: BackflipError when a gradient is not finite.
    """
    while state.step < until:
        place = state.step
        prompts = _pick(tools.prompts, config.prompts, seed, place)
        tools.engine.load(state.version)
        sampled = tools.engine.sample(prompts, config.answers, seed=seed_of(seed, "step", place), max_tokens=max_tokens)
        answers = [a for batch in sampled for a in batch]
        by_id = {p.id: p for p in prompts}
        asked = [by_id[a.prompt_id] for a in answers]
        scores = tools.scorer.score(asked, answers)
        rollout = _look(state, tools.reader, asked, answers)
        metrics = _update(state, tools.reader, config, rollout, scores, seed)
        state.step += 1
        yield Step(state, answers, scores, metrics)


def _pick(prompts: Sequence[Prompt], count: int, seed: int, step: int) -> list[Prompt]:
    """`count` prompts of step `step`: consecutive slices of reshuffled passes over all of them."""
    chosen: list[Prompt] = []
    at = step * count
    while len(chosen) < min(count, len(prompts)):
        epoch, offset = divmod(at + len(chosen), len(prompts))
        p = prompts[int(generator(seed, "prompts", epoch).permutation(len(prompts))[offset])]
        if p not in chosen:
            chosen.append(p)
        else:  # a pass may begin with a prompt the last one ended on
            at += 1
    return chosen


class Rollout(NamedTuple):
    """A step's answers as the trainer sees them: readings by the reference and by the policy that sampled."""

    prompts: list[Prompt]
    answers: list[Answer]
    reference: Reading
    policy: Reading
    logp_sampler: Tensor
    states: Tensor


def _look(state: PolicyState, reader: Reader, prompts: list[Prompt], answers: list[Answer]) -> Rollout:
    reference = reader.reference(prompts, answers)
    policy = reader.read(prompts, answers, state.adapter)
    sampler = torch.zeros_like(policy.logp)
    for row, a in enumerate(answers):
        sampler[row, : len(a.logp)] = torch.from_numpy(np.array(a.logp)).to(sampler.device)
    if reference.states is None:
        raise RuntimeError("the reference's states were asked for")
    return Rollout(prompts, answers, reference, policy, sampler, reference.states)


def _update(
    state: PolicyState,
    reader: Reader,
    config: PPO,
    rollout: Rollout,
    scores: np.ndarray[tuple[int], np.dtype[np.float64]],
    seed: int,
) -> dict[str, float]:
    """Advantages, the gradient steps of policy and critic, the KL coefficient; returns the metrics."""
    mask, logp_old = rollout.policy.mask, rollout.policy.logp
    ended = torch.tensor([a.ended for a in rollout.answers], device=mask.device)
    score = (
        torch.as_tensor(scores, dtype=torch.float32, device=mask.device) - config.missing_end_penalty * (~ended).float()
    )
    reward = token_rewards(score, logp_old, rollout.reference.logp, mask, state.kl_coef)
    with torch.no_grad():
        value_old = state.critic.value(rollout.states) * mask
    adv, returns = gae(reward, value_old, mask, 1.0, config.lam)
    steps = _policy_steps(state, reader, config, rollout, whiten(adv, mask), seed)
    batch = CriticBatch(rollout.states, value_old, returns, mask)
    critic_loss = improve(
        state.critic, state.critic_optimiser, batch, epochs=config.critic_epochs, clip=config.value_clip
    )
    kl = float(((logp_old - rollout.reference.logp) * mask).sum(1).mean())
    before = state.kl_coef
    state.kl_coef = next_coefficient(before, kl, config.kl_target, len(rollout.answers), config.kl_horizon)
    gap = ((logp_old - rollout.logp_sampler).exp() * mask).sum() / mask.sum()
    lengths = mask.sum(1).float()
    return steps | {
        "objective/kl": kl,
        "objective/kl_coef": before,
        "objective/scores": float(np.mean(scores)),
        "objective/rlhf_reward": float(reward.sum(1).mean()),
        "objective/entropy": float((rollout.policy.entropy * mask).sum() / mask.sum()),
        "loss/value_avg": critic_loss,
        "val/sampler_ratio": float(gap),
        "length/mean": float(lengths.mean()),
        "ended/share": float(ended.float().mean()),
    }


def _policy_steps(
    state: PolicyState, reader: Reader, config: PPO, rollout: Rollout, adv: Tensor, seed: int
) -> dict[str, float]:
    """The minibatch steps. Gradients add up over micro-batches to those of the whole minibatch."""
    mask, logp_old = rollout.policy.mask, rollout.policy.logp
    weight = truncated_importance(logp_old, rollout.logp_sampler)
    seen: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        order = generator(seed, "minibatch", state.step, epoch).permutation(len(rollout.answers))
        for part in np.array_split(order, config.minibatches):
            rows = np.sort(part)  # keeps a prompt's answers together, so that it is computed once
            tokens = int(mask[rows].sum())
            sums = dict.fromkeys(("loss/policy_avg", "policy/clipfrac_avg", "policy/approxkl_avg", "val/ratio"), 0.0)
            state.optimiser.zero_grad()
            for s in answer_batches(len(rows), config.micro):
                r = rows[s]
                batch = pack_answers(
                    reader.chat, [rollout.prompts[i] for i in r], [rollout.answers[i] for i in r], mask.device
                )
                hidden = reader.trunk.hidden(batch, state.adapter)
                logp, _ = reader.of_rows(hidden.final[batch.predict_rows[batch.answer_mask]], batch)
                width = logp.shape[1]
                loss = policy_loss(
                    logp,
                    logp_old[r, :width],
                    adv[r, :width],
                    batch.answer_mask,
                    config.clip,
                    weight=weight[r, :width],
                    tokens=tokens,
                )
                loss.loss.backward()  # type: ignore[no-untyped-call]
                for name, x in zip(sums, (loss.loss, loss.clipfrac, loss.approx_kl, loss.ratio), strict=True):
                    sums[name] += float(x.detach())
            norm = torch.nn.utils.clip_grad_norm_(list(state.adapter.parameters()), config.max_norm)
            if not torch.isfinite(norm):
                raise BackflipError(
                    f"The gradient of step {state.step} is not finite: the policy has diverged.\n"
                    "The learning rate is probably too high for this model and reward.\n"
                    "Start a new run (another --dir) with a lower ppo.learning_rate."
                )
            state.optimiser.step()
            seen.append(sums | {"grad/norm": float(norm)})
    mean = {name: float(np.mean([s[name] for s in seen])) for name in seen[0]}
    return mean | {"val/ratio_first": seen[0]["val/ratio"]}


def warm_up(
    state: PolicyState, tools: Tools, config: PPO, prompts: Sequence[Prompt], answers: Sequence[Answer]
) -> float:
    """Let the critic learn a refitted reward's scale from answers already sampled; returns its loss before.

    The value clip is left open: there is no earlier prediction worth staying near.
    """
    reading = tools.reader.reference(prompts, answers)
    if reading.states is None:
        raise RuntimeError("the reference's states were asked for")
    penalty = np.array([0.0 if a.ended else config.missing_end_penalty for a in answers])
    score = torch.as_tensor(
        tools.scorer.score(prompts, answers) - penalty, dtype=torch.float32, device=reading.mask.device
    )
    with torch.no_grad():
        value = state.critic.value(reading.states)
    batch = CriticBatch(reading.states, value, score[:, None].expand_as(reading.mask) * reading.mask, reading.mask)
    return improve(state.critic, state.critic_optimiser, batch, epochs=10 * config.critic_epochs, clip=1e6)
