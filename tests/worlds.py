"""Worlds whose objective E[r] - b KL(pi || ref) can be enumerated: a bandit, and every answer of a few tokens."""

import torch
from torch import Tensor

ANSWERS = 40
COEF = 0.7  # b, reward per nat


def bandit(answers: int = ANSWERS) -> tuple[Tensor, Tensor]:
    """Reference log-probabilities and rewards of the answers, (A,) float64."""
    rng = torch.Generator().manual_seed(11)
    ref = torch.randn(answers, generator=rng, dtype=torch.float64).log_softmax(0)
    return ref, torch.randn(answers, generator=rng, dtype=torch.float64)


def optimum(ref: Tensor, reward: Tensor) -> Tensor:
    """ref * exp(r / b) / Z: what maximises E[r] - b KL(pi || ref)."""
    return (ref + reward / COEF).softmax(0)


class Sequences:
    """Every answer of at most `steps` tokens over `vocabulary` tokens of a tabular policy in float64.

    Token 0 ends the answer, so that answers are ragged. Row `prefix` of `logits` is the policy after that prefix.
    """

    def __init__(self, steps: int, vocabulary: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        answers: list[tuple[int, ...]] = []
        open_ones: list[tuple[int, ...]] = [()]
        prefixes: list[tuple[int, ...]] = []
        for step in range(steps):
            prefixes += open_ones
            longer = [(*p, v) for p in open_ones for v in range(vocabulary)]
            answers += [a for a in longer if a[-1] == 0 or step == steps - 1]
            open_ones = [a for a in longer if a[-1] != 0]
        place = {p: i for i, p in enumerate(prefixes)}
        shape = (len(answers), steps)
        self.mask = torch.zeros(shape, dtype=torch.bool)
        self.prefix = torch.zeros(shape, dtype=torch.int64)
        self.token = torch.zeros(shape, dtype=torch.int64)
        for row, answer in enumerate(answers):
            for t, token in enumerate(answer):
                self.mask[row, t], self.prefix[row, t], self.token[row, t] = True, place[answer[:t]], token
        size = (len(prefixes), vocabulary)
        self.logits = torch.randn(size, generator=rng, dtype=torch.float64).requires_grad_()
        self.logits_ref = torch.randn(size, generator=rng, dtype=torch.float64)
        self.score = torch.randn(len(answers), generator=rng, dtype=torch.float64)

    def logp(self, logits: Tensor) -> Tensor:
        """(B, T) log-probability of every token, garbage where masked."""
        return logits.log_softmax(1)[self.prefix, self.token].masked_fill(~self.mask, 99.0)

    def objective(self) -> Tensor:
        """E[score] - b KL(pi || ref), exact."""
        logp = self.logp(self.logits).masked_fill(~self.mask, 0.0).sum(1)
        logp_ref = self.logp(self.logits_ref).masked_fill(~self.mask, 0.0).sum(1)
        return (logp.exp() * (self.score - COEF * (logp - logp_ref))).sum()
