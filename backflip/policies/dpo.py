"""DPO: the policy learns from the votes themselves, without a reward model and without sampling.

The answers that a step samples are only watched: they say where the policy stands, and nothing is learned from them.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from backflip.core.records import Answer, Prompt
from backflip.objectives.dpo import dpo_loss
from backflip.policies.gradient import Lesson, Rows, mean_of, take_steps, trained_logp
from backflip.policies.not_finite import Lines, lines_of
from backflip.policies.rollout import Preference, Rollout, Settings, Tools, climb_with, figures_of, pick, roll_out
from backflip.policies.state import PolicyState
from backflip.sampling.score import Reader


def update(state: PolicyState, tools: Tools, settings: Settings) -> tuple[Rollout, dict[str, float]]:
    """Gradient steps on the next votes; half as many as a step of the others has answers, as a vote reads two.

    Raises: ValueError when there are no votes. Source: Rafailov et al. 2023 (arXiv:2305.18290).
    """
    if not tools.votes:
        raise ValueError("no vote to learn from: DPO needs at least one")
    config = settings.config
    rollout = roll_out(state, tools, settings, answers=1)
    count = max(1, config.prompts * config.answers // 2)
    votes = [tools.votes[i] for i in pick(len(tools.votes), count, settings.seed, "votes", state.step)]
    return rollout, learn(state, tools.reader, settings, votes) | figures_of(rollout, state.kl_coef)


def learn(state: PolicyState, reader: Reader, settings: Settings, votes: Sequence[Preference]) -> dict[str, float]:
    """Passes of gradient steps on `votes`, and the mean of their figures."""
    reading = reader.reference(*_both(votes))
    ref_a, ref_b = reading.logp.sum(1).chunk(2)
    wins, weight = (
        torch.tensor(x, device=ref_a.device) for x in zip(*[(v.wins, v.weight) for v in votes], strict=True)
    )

    def part(rows: Rows, whole: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        logp, _ = trained_logp(state, reader, *_both([votes[i] for i in rows]))
        a, b = logp.sum(1).chunk(2)
        out = dpo_loss(
            a - ref_a[rows], b - ref_b[rows], wins[rows], settings.how.beta, weight=weight[rows],
            pairs=float(weight[whole].sum()),
        )  # fmt: skip
        return out.loss, {"loss/dpo": out.loss, "rewards/accuracies": out.accuracy, "rewards/margins": out.margin}

    def lines(rows: Rows) -> Lines:
        ref = reading.logp[[*rows, *(rows + len(votes))]]
        return lines_of(*_both([votes[i] for i in rows]), {"logp_reference": ref})  # without the votes, for `forget`

    return mean_of(take_steps(state, reader.portion, settings, Lesson(part, lines, len(votes), answers_each=2)))


def _both(votes: Sequence[Preference]) -> tuple[list[Prompt], list[Answer]]:
    """The prompts and answers of all first answers, then of all second ones."""
    return [v.prompt for v in votes] * 2, [v.a for v in votes] + [v.b for v in votes]


climb = partial(climb_with, update)
"""Yields one step of DPO after the other: see `climb_with`."""
