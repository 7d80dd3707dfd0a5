"""Gradient steps on a policy: minibatches of a step's answers, each added up from parts that fit into memory."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator
from backflip.objectives.kl import k2, k3, token_rewards
from backflip.objectives.ppo import policy_loss, truncated_importance
from backflip.policies.not_finite import Lines, NotFinite
from backflip.policies.plan import KLTerm
from backflip.policies.rollout import Rollout, Settings, rollout_lines
from backflip.policies.state import PolicyState
from backflip.sampling.portion import Portion
from backflip.sampling.score import Reader, answer_batches, pack_answers

Rows = NDArray[np.int64]
PartLoss = Callable[[Rows, Rows], tuple[Tensor, dict[str, Tensor]]]
"""(rows of a part, rows of its minibatch) -> the part's share of the minibatch's loss, and of its figures."""
IN_THE_LOSS: dict[KLTerm, Callable[[Tensor, Tensor], Tensor]] = {"k2": k2, "k3": k3}
"""The KL terms that are no part of the reward."""


class Lesson(NamedTuple):
    """What gradient steps learn from: `size` items, each of `answers_each` answers."""

    part: PartLoss
    lines: Callable[[Rows], Lines]
    """The answers of some items, to be looked at when a step on them fails."""
    size: int
    answers_each: int = 1


class Target(NamedTuple):
    """What a policy gradient aims at. The units U are the tokens T, or one where an answer counts as a `whole`."""

    adv: Tensor
    """(B, U) advantages."""
    weight: Tensor
    """(B, U) how much each unit counts."""
    total: Callable[[Rows], float]
    """What a minibatch's sum over its units is divided by."""
    whole: bool = False


def token_weight(rollout: Rollout) -> Tensor:
    """(B, T) correction for a sampler that is not quite the trainer."""
    return truncated_importance(rollout.policy.logp, rollout.logp_sampler)


def paid_tokens(rollout: Rollout, settings: Settings, kl_coef: float) -> Tensor:
    """(B, T) reward of every token: the score at the end and, unless the leash is a term of the loss, k1."""
    coef = 0.0 if settings.how.kl in IN_THE_LOSS else kl_coef
    return token_rewards(rollout.paid, rollout.policy.logp, rollout.reference.logp, rollout.policy.mask, coef)


def policy_steps(
    state: PolicyState, reader: Reader, settings: Settings, rollout: Rollout, target: Target
) -> dict[str, float]:
    """Passes of clipped policy-gradient steps towards `target`, the KL term among them where it is no reward."""
    fold: Callable[[Tensor], Tensor] = (lambda x: x.sum(1, keepdim=True)) if target.whole else (lambda x: x)
    mask, old, ref = rollout.policy.mask, fold(rollout.policy.logp), fold(rollout.reference.logp)
    unit = mask.any(1, keepdim=True) if target.whole else mask
    penalty = IN_THE_LOSS.get(settings.how.kl)

    def part(rows: Rows, whole: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        logp, seen = trained_logp(state, reader, [rollout.prompts[i] for i in rows], [rollout.answers[i] for i in rows])
        logp, cut = fold(logp), slice(seen.shape[1])
        total, weight = target.total(whole), target.weight[rows, cut]
        out = policy_loss(
            logp, old[rows, cut], target.adv[rows, cut], unit[rows, cut], settings.config.clip, weight=weight,
            tokens=total,
        )  # fmt: skip
        share = total / float(unit[whole].sum())  # figures are means over units whatever the loss is divided by
        figures = {
            "loss/policy_avg": out.loss,
            "policy/clipfrac_avg": out.clipfrac * share,
            "policy/approxkl_avg": out.approx_kl * share,
            "val/ratio": out.ratio * share,
        }
        if penalty is None:
            return out.loss, figures
        nats = (penalty(logp, ref[rows, cut]) * weight).masked_fill(~unit[rows, cut], 0.0).sum() / total
        return out.loss + state.kl_coef * nats, figures | {"loss/kl_avg": nats}

    lesson = Lesson(part, lambda rows: rollout_lines(rollout, rows), len(rollout.answers))
    steps = take_steps(state, reader.portion, settings, lesson)
    first = steps[0]  # before it, nothing has changed
    return mean_of(steps) | {"val/ratio_first": first["val/ratio"], "val/approxkl_first": first["policy/approxkl_avg"]}


def take_steps(state: PolicyState, portion: Portion, settings: Settings, lesson: Lesson) -> list[dict[str, float]]:
    """`epochs` passes over a lesson in `minibatches` gradient steps each; the figures of every step.

    Raises: NotFinite as `gradient_step` does.
    """
    config, seen = settings.config, []
    micro = max(1, config.micro // lesson.answers_each)
    for epoch in range(config.epochs):
        order = generator(settings.seed, "minibatch", state.step, epoch).permutation(lesson.size)
        cut = np.array_split(order, min(config.minibatches, lesson.size))
        # sorted, a prompt's answers stay together, so that it is computed once
        seen += [
            gradient_step(state, portion, np.sort(rows), lesson, micro=micro, max_norm=config.max_norm) for rows in cut
        ]
    return seen


def mean_of(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over gradient steps."""
    return {name: float(np.mean([s[name] for s in steps])) for name in steps[0]}


def gradient_step(
    state: PolicyState, portion: Portion, rows: Rows, lesson: Lesson, *, micro: int, max_norm: float, table: str = "ppo"
) -> dict[str, float]:
    """One step of Adam on `rows`, at most `micro` at a time; gradients add up to those of all rows at once.

    `portion` is the reader's: where memory runs out, the step is begun again with fewer rows at a time.
    Raises: NotFinite when loss or gradient is not finite, before a weight or a moment changes; `table` is the plan's
    whose learning rate was too high.
    """

    def refuse(what: str) -> NotFinite:
        lower = f"a lower {table}.learning_rate"
        return NotFinite(f"The {what} of step {state.step}", lesson.lines(rows), cure=lower)

    def attempt(size: int) -> dict[str, float]:
        state.optimiser.zero_grad()
        sums: dict[str, float] = {}
        for s in answer_batches(len(rows), size):
            loss, figures = lesson.part(rows[s], rows)
            if not torch.isfinite(loss):
                raise refuse("loss")
            loss.backward()  # type: ignore[no-untyped-call]
            for name, x in figures.items():
                sums[name] = sums.get(name, 0.0) + float(x.detach())
        return sums

    sums = portion.within_memory(attempt, most=min(micro, len(rows)))
    norm = torch.nn.utils.clip_grad_norm_(list(state.adapter.parameters()), max_norm)
    if not torch.isfinite(norm):
        raise refuse("gradient")
    state.optimiser.step()
    return sums | {"grad/norm": float(norm)}


def trained_logp(
    state: PolicyState, reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answer]
) -> tuple[Tensor, Tensor]:
    """(B, T) log-probabilities by the policy in training, 0 where masked, with gradient; and the mask."""
    batch = pack_answers(reader.chat, prompts, answers, reader.trunk.device)
    after = reader.after(prompts, answers, state.adapter)
    hidden = reader.trunk.hidden(batch, state.adapter, after=after)
    logp, _ = reader.of_rows(hidden.final[batch.predict_rows[batch.answer_mask]], batch)
    return logp, batch.answer_mask
