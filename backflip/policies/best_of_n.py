"""Best of n: draw n answers, keep the one that scores highest. As a sampler, and as something to learn.

The climb teaches the policy to give at once what the policy before the round gives as its best of n. Its leash is
n itself: the law it tends to is ln n - (n - 1) / n nats from where the round began, at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from backflip.core.protocols import Sampler, Scorer
from backflip.core.records import Answer, Prompt
from backflip.core.rng import seed_of
from backflip.policies.gradient import mean_of, take_steps
from backflip.policies.rollout import Rollout, Settings, Tools, climb_with, figures_of, paid_scores, roll_out
from backflip.policies.sft import imitation
from backflip.policies.state import PolicyState


@dataclass(frozen=True, eq=False)
class BestOf:
    """A `Sampler` whose every answer is the best of `of` that another sampler draws; the first of equals."""

    sampler: Sampler
    scorer: Scorer
    of: int
    missing_end_penalty: float = 0.0

    def load(self, policy: str) -> str:
        """See `Sampler.load`."""
        return self.sampler.load(policy)

    def sample(
        self, prompts: Sequence[Prompt], n: int, *, seed: int, max_tokens: int, finite: bool = True
    ) -> Iterator[list[Answer]]:
        """See `Sampler.sample`. The answers keep the log-probability with which they were drawn."""
        by_id = {p.id: p for p in prompts}
        drawn = self.sampler.sample(prompts, n * self.of, seed=seed, max_tokens=max_tokens, finite=finite)
        said = [a for batch in drawn for a in batch]  # a batch may be one prompt's answers: few to read at a time
        scores = self.scorer.score([by_id[a.prompt_id] for a in said], said)
        paid = paid_scores(scores, said, self.missing_end_penalty).reshape(-1, self.of)
        kept = [said[row * self.of + int(place)] for row, place in enumerate(paid.argmax(1))]
        yield [replace(a, index=a.index // self.of) for a in kept]


def update(state: PolicyState, tools: Tools, settings: Settings) -> tuple[Rollout, dict[str, float]]:
    """Gradient steps towards the best of `answers` answers to each of the step's prompts.

    What the policy itself answers is only watched. Source: BoN distillation, as in Sessa et al. 2024
    (arXiv:2407.14622), here by maximum likelihood; Anthony et al. 2017 (arXiv:1705.08439) call rounds of it expert
    iteration.
    """
    config = settings.config
    rollout = roll_out(state, tools, settings, answers=1)
    best = BestOf(tools.engine, tools.scorer, config.answers, config.missing_end_penalty)
    best.load(tools.start)
    seed = seed_of(settings.seed, "best of n", state.step)
    drawn = best.sample(rollout.prompts, 1, seed=seed, max_tokens=settings.max_tokens)
    kept = [a for batch in drawn for a in batch]
    steps = take_steps(state, tools.reader.portion, settings, imitation(state, tools.reader, rollout.prompts, kept))
    return rollout, mean_of(steps) | figures_of(rollout, state.kl_coef)


climb = partial(climb_with, update)
"""Yields one step after the other: see `climb_with`."""
