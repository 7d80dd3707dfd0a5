"""What a plan says about training policies. Free of torch, so that a plan is read in no time."""

from dataclasses import dataclass
from typing import Literal

from backflip.core.config import require

Optimiser = Literal["ppo", "rloo", "grpo", "dr_grpo", "dpo", "online_dpo", "best_of_n"]
Critics = Literal["probe", "model"]
KLTerm = Literal["k1", "k2", "k3"]
COMPARING: frozenset[Optimiser] = frozenset(("rloo", "grpo", "dr_grpo", "online_dpo", "best_of_n"))
"""Optimisers that compare the answers to one prompt with each other."""
STEERING: frozenset[Optimiser] = frozenset(("ppo", "rloo", "grpo", "dr_grpo"))
"""Optimisers whose KL coefficient steers to ppo.kl_target."""


@dataclass(frozen=True, kw_only=True)
class Optimise:
    """Which optimiser a round uses. The table [ppo] says how for all of them: steps, answers, learning rate, adapter.
    Of its keys only lam, value_clip and those of the critic are PPO's alone."""

    by: Optimiser = "ppo"
    """PPO has a critic. "rloo", "grpo" and "dr_grpo" (GRPO without its two biased divisions) compare the answers to
    one prompt instead. "dpo" learns from the votes, "online_dpo" from pairs of new answers that the reward compares,
    "best_of_n" from the best of ppo.answers answers, drawn from the policy as the round found it."""
    kl: KLTerm = "k1"
    """How ppo, rloo, grpo and dr_grpo pay for KL. "k1" is taken from the reward, which is exact. "k2" and "k3" are
    terms of the loss and biased over answers of several tokens; k3, usual with GRPO, pulls to another optimum."""
    beta: float = 0.1
    """The leash of dpo and online_dpo: logits of preference per nat from the untouched model; smaller is longer."""
    when_not_finite: Literal["stop", "skip"] = "stop"
    """What happens to a step whose loss, gradient, rewards or log-probabilities are not finite. It is never taken, and
    its answers are kept below rounds/*/refused. "stop" ends the run there; "skip" goes on with the next step, from the
    policy before it, and stops at the fourth such step in a row."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require(self.beta > 0, "beta", "a number above 0")


@dataclass(frozen=True, kw_only=True)
class PPO:
    """How one round optimises the policy, by PPO or by whatever optimise.by names."""

    steps: int = 8
    """Sample-and-update steps a round."""
    prompts: int = 8
    """Prompts per step."""
    answers: int = 6
    """Answers per prompt and step."""
    epochs: int = 1
    """Passes over a step's answers."""
    minibatches: int = 2
    """Gradient steps per pass."""
    learning_rate: float = 1.5e-3
    """Adam's learning rate for the policy's adapter."""
    rank: int = 16
    """Rank of the policy's adapter; 0 trains every weight of the layers (full fine-tuning; take a learning rate
    near 1e-5)."""
    adapted: float = 0.5
    """Share of the model's layers that the adapter changes, counted from the top; fewer layers, faster steps."""
    alpha: float = 32.0
    """LoRA alpha: the adapter's change is scaled by alpha / rank."""
    clip: float = 0.2
    """Probability ratios further from 1 than this earn nothing more."""
    critic: Critics = "probe"
    """What predicts an answer's worth token by token: a small network on the untouched model's states, which costs next
    to nothing, or a second model trained beside the policy, with an adapter of the same rank (at rank 0 a whole model;
    take a critic_learning_rate near that of the policy, and few critic_epochs)."""
    value_clip: float = 0.2
    """The critic's prediction moves at most this far per step, in units of reward."""
    critic_learning_rate: float = 3e-3
    """Adam's learning rate for the critic."""
    critic_epochs: int = 8
    """Passes of the critic over a step's answers."""
    lam: float = 1.0
    """GAE's lambda; gamma is 1. At 1 an answer's early tokens share fully in its score, which suits short answers."""
    kl_coef: float = 0.2
    """Reward lost per nat of KL to the untouched model, at the start. The reward has standard deviation 1, so the
    best policy stands about 0.5 / kl_coef**2 nats away: 0.2 for 12, were there time to reach it."""
    kl_target: float = 6.0
    """KL per answer that the adaptive coefficient steers to, in nats."""
    kl_horizon: int = 200
    """Answers over which the coefficient adapts."""
    missing_end_penalty: float = 0.5
    """Reward lost by an answer that did not end by itself."""
    max_norm: float = 1.0
    """Gradient norm is clipped to this."""
    micro: int = 24
    """Answers per forward and backward, at most: fewer where the free memory would not do. Results do not change."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for key in (
            "steps",
            "prompts",
            "answers",
            "epochs",
            "minibatches",
            "critic_epochs",
            "kl_horizon",
            "micro",
        ):
            require(getattr(self, key) >= 1, key, "a whole number of 1 or more")
        for key in (
            "learning_rate",
            "alpha",
            "clip",
            "value_clip",
            "critic_learning_rate",
            "kl_coef",
            "kl_target",
            "max_norm",
        ):
            require(getattr(self, key) > 0, key, "a number above 0")
        require(self.rank >= 0, "rank", "a whole number of 0 or more")
        require(0 < self.adapted <= 1, "adapted", "a number above 0, up to 1")
        require(0 <= self.lam <= 1, "lam", "a number from 0 to 1")
        require(self.missing_end_penalty >= 0, "missing_end_penalty", "0 or more")
        require(self.prompts * self.answers >= self.minibatches, "minibatches", "at most prompts * answers")
        require(self.prompts * self.answers < 5 * self.kl_horizon, "kl_horizon", "more than prompts * answers / 5")


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Stage 0: fine-tuning on demonstrations, before the first round. Without a file or people who write there is none.

    The model it makes is then the run's untouched model: the one that KL and wins are counted from.
    """

    demonstrations: str = ""
    """A JSONL file of answers to learn from, with {"prompt": ..., "completion": ...} or {"messages": [...]} lines."""
    written: int = 0
    """Answers that stage 0 waits for people to write in the browser; 0 waits for none. It learns from all that are
    there when it begins, beside those of the file; later ones go out with `backflip export data`, for another run."""
    deadline_minutes: float = 0.0
    """Longest time that stage 0 waits for answers that people write; 0 sets no limit."""
    epochs: int = 3
    """Passes over the demonstrations."""
    batch: int = 16
    """Demonstrations per gradient step."""
    learning_rate: float = 5e-4
    """Adam's learning rate at the first step; it falls in a straight line to 0."""
    rank: int = 32
    """Rank of the adapter that is trained and then folded into the weights; 0 trains every weight (take a learning
    rate near 2e-5)."""
    held_out: float = 0.1
    """Share of the demonstrations that are not learned from, to tell how well the rest are generalised."""
    max_norm: float = 1.0
    """Gradients are clipped to this norm."""
    micro: int = 16
    """Demonstrations per forward, at most: fewer where the free memory would not do. Results do not change."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for key in ("epochs", "batch", "micro"):
            require(getattr(self, key) >= 1, key, "a whole number of 1 or more")
        for key in ("learning_rate", "max_norm"):
            require(getattr(self, key) > 0, key, "a number above 0")
        require(self.rank >= 0, "rank", "a whole number of 0 or more")
        require(self.written == 0 or self.written >= 2, "written", "0, or a whole number of 2 or more")
        require(self.deadline_minutes >= 0, "deadline_minutes", "0 or more")
        require(0 <= self.held_out < 1, "held_out", "a number from 0, below 1")

    @property
    def planned(self) -> bool:
        """Whether there is a stage 0."""
        return bool(self.demonstrations or self.written)
