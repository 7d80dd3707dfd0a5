"""Backflip's side of a comparison: the program's own code, in a process of its own. See `serve`.

What each work measures is the path that a run takes: `policies.ppo`, `policies.grpo`, `policies.dpo`, `rewards.fit`.
Only the prompts come as tokens and answers never end, so that both sides make the same number of tokens.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from engine import endless_chat, head_flops, matmul_peak, training_flops, trunk_flops
from serve import Phases, Turn, serve

from backflip.core.records import Answer, Feedback, Prompt
from backflip.models.load import DEMO_MODEL, Loaded, load_model
from backflip.policies import dpo
from backflip.policies.methods import METHODS
from backflip.policies.plan import PPO, Optimise
from backflip.policies.rollout import Preference, Settings, Tools
from backflip.policies.state import PolicyState, fresh_state
from backflip.rewards.fit import Fit, Reward, emphasis, fit_reward
from backflip.rewards.model import RewardModel, features_of
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader, middle_layer


def some_reward(features: int) -> Reward:
    """A linear reward of fixed random weights: what it says matters to nobody here."""
    weight = np.random.default_rng(0).standard_normal(features) / features**0.5
    return Reward(np.zeros(features), np.ones(features), weight, 0.0, 0.0, 1.0, 300.0)


def asked(ids: list[list[int]]) -> tuple[list[Prompt], dict[str, list[int]]]:
    """Prompts whose tokens are given, and those tokens by prompt."""
    by_id = {str(i): tokens for i, tokens in enumerate(ids)}
    return [Prompt(id=i, split="train", text="") for i in by_id], by_id


def ready(settings: dict[str, Any], config: PPO, phases: Phases) -> tuple[Loaded, PolicyState, Tools]:
    """Model, policy and tools, with sampling and reading counted as phases."""
    loaded = load_model(DEMO_MODEL)
    prompts, by_id = asked(settings["prompts"])
    chat = endless_chat(loaded, by_id)
    state = fresh_state(loaded.trunk, config, 0)
    engine = Engine(lambda _: loaded.trunk.merged(state.adapter), chat)
    reader = Reader(loaded.trunk, chat, micro=config.micro)
    sample: Any = engine.sample
    parts: Any = engine
    parts.load = phases.timed("sample", engine.load)
    parts.sample = phases.timed("sample", lambda *a, **k: list(sample(*a, **k)))
    reading: Any = reader
    reading.read = phases.timed("read", reader.read)
    scorer = RewardModel(some_reward(2 * loaded.trunk.hidden_size + 5), reader)
    return loaded, state, Tools(engine, reader, scorer, prompts)


def climb(settings: dict[str, Any], config: PPO, by: Any, kl: Any, phases: Phases) -> Turn:
    """One step of an optimiser, as the cycle drives it."""
    return step_of(settings, config, by, kl, *ready(settings, config, phases))


def step_of(
    settings: dict[str, Any], config: PPO, by: Any, kl: Any, loaded: Loaded, state: PolicyState, tools: Tools
) -> Turn:
    """A turn is one step."""

    def turn() -> dict[str, Any]:
        how = Optimise(by=by, kl=kl)
        steps = METHODS[by].climb(state, tools, config, how, seed=0, max_tokens=settings["new"], until=state.step + 1)
        [step] = list(steps)
        began = time.perf_counter()
        least = least_seconds(loaded, state, config, len(settings["prompts"][0]), settings["new"])
        tokens = sum(len(a.tokens) for a in step.answers)
        return {"tokens": tokens, "least_seconds": least, "aside": time.perf_counter() - began}

    return turn


def ppo_of(settings: dict[str, Any], **changes: Any) -> PPO:
    """The demo's PPO on the episodes and passes asked for, one gradient step a pass."""
    return PPO(prompts=settings["episodes"], answers=1, epochs=settings["epochs"], minibatches=1, **changes)


def one_trunk(settings: dict[str, Any], phases: Phases) -> Turn:
    """PPO as the demo does it: adapter, linear reward and critic share one trunk."""
    return climb(settings, ppo_of(settings), "ppo", "k1", phases)


def separate(settings: dict[str, Any], phases: Phases) -> Turn:
    """PPO with four whole models: policy and value model in training, reward model and reference as they are."""
    config = ppo_of(
        settings, rank=0, adapted=1.0, learning_rate=1e-5, critic="model", critic_learning_rate=1e-5,
        critic_epochs=settings["epochs"],
    )  # fmt: skip
    loaded, state, tools = ready(settings, config, phases)
    copy = fresh_state(loaded.trunk, config, 1).adapter
    judge = Reader(loaded.trunk.merged(copy), tools.reader.chat, micro=config.micro)
    judge_read: Any = judge
    judge_read.read = phases.timed("read", judge.read)
    weight = np.random.default_rng(0).standard_normal(loaded.trunk.hidden_size)

    class Whole:
        """A reward model of its own: a whole model, and a weight on its last state."""

        def score(self, prompts: list[Prompt], answers: list[Answer]) -> Any:
            return judge.read(prompts, answers).last.double().numpy() @ weight

    turn = step_of(settings, config, "ppo", "k1", loaded, state, tools._replace(scorer=Whole()))
    return lambda: turn() | {"full_models": 4}


def grpo(settings: dict[str, Any], phases: Phases) -> Turn:
    """GRPO as published, `group` answers to each prompt."""
    config = PPO(
        prompts=settings["episodes"] // settings["group"], answers=settings["group"], epochs=1, minibatches=1,
        kl_coef=settings["beta"],
    )  # fmt: skip
    return climb(settings, config, "grpo", "k3", phases)


def pairs_of(settings: dict[str, Any]) -> tuple[list[Prompt], list[Answer], list[Answer]]:
    """The pairs' prompts, chosen and rejected answers."""
    prompts, _ = asked(settings["prompts"])

    def answers(side: str, index: int) -> list[Answer]:
        return [
            Answer(
                prompt_id=p.id, index=index, policy="", tokens=np.array(ids), logp=np.zeros(len(ids), np.float32),
                ended=True, text="",
            )
            for p, ids in zip(prompts, settings[side], strict=True)
        ]  # fmt: skip

    return prompts, answers("chosen", 0), answers("rejected", 1)


def tokens_read(settings: dict[str, Any]) -> int:
    """Tokens of all pairs, a prompt counted with either answer, as the other side has it."""
    return sum(2 * len(p) + len(a) + len(b) for p, a, b in zip(*(settings[k] for k in PAIRS), strict=True))


PAIRS = ("prompts", "chosen", "rejected")


def reward(settings: dict[str, Any], phases: Phases) -> Turn:
    """Features of both answers read by the trunk, and a reward fitted to the votes."""
    _, _, tools = ready(settings, PPO(), phases)
    reader = tools.reader

    def turn() -> dict[str, Any]:
        prompts, a, b = pairs_of(settings)
        both, said = [*prompts, *prompts], [*a, *b]
        layer = middle_layer(reader.trunk.layers)
        features = features_of(reader.read(both, said, layers=(layer,)), reader.chat, both, said)
        votes = [Feedback(a=i, b=i + len(a), choice="a", rater_id="r") for i in range(len(a))]
        fit_reward(features, votes, [p.id for p in both], features, Fit(), seed=0, emphasis=emphasis(features.shape[1]))
        return {"tokens": tokens_read(settings)}

    return turn


def dpo_pass(settings: dict[str, Any], phases: Phases) -> Turn:
    """One pass of DPO over the votes, without the answers that a step samples to be watched."""
    config = PPO(epochs=1, minibatches=-(-len(settings["prompts"]) // settings["micro"]))
    _, state, tools = ready(settings, config, phases)
    how = Settings(config, Optimise(by="dpo"), 0, settings["new"])

    def turn() -> dict[str, Any]:
        votes = [Preference(p, a, b, 1.0) for p, a, b in zip(*pairs_of(settings), strict=True)]
        dpo.learn(state, tools.reader, how, votes)
        return {"tokens": tokens_read(settings)}

    return turn


def least_seconds(loaded: Loaded, state: PolicyState, config: PPO, prompt: int, new: int) -> float:
    """Seconds that the step's arithmetic and reading of weights take at the machine's peaks, both measured now.

    A decode step takes whichever is longer, its products or the reading of all weights; whatever reads many tokens at
    once takes its products. Layers that the adapter leaves alone are computed once. Left out: the critic, Adam, the
    merging of the adapter.
    """
    speed, reading = matmul_peak() * 1e9, read_peak()
    count = config.prompts * config.answers
    head = head_flops(loaded)
    token = trunk_flops(loaded) + head
    weights = 2.0 * (token / 2)  # bytes in bfloat16
    prefill = config.prompts * (prompt * trunk_flops(loaded) + head)
    decode = (new - 1) * max(count * token / speed, weights / reading)
    trunk, upper = (config.prompts * prompt + count * new) * trunk_flops(loaded), config.adapted
    read = trunk * (1 + upper) + 2 * count * new * head  # the reference, and the policy from where it differs
    train = training_flops(loaded, state.adapter.b, config.prompts, count, prompt, new, known=True)
    return decode + (prefill + read + config.epochs * train) / speed


def read_peak() -> float:
    """Bytes per second of a product that reads a large matrix once, the best of five."""
    matrix, vector = torch.randn(8192, 8192), torch.randn(8192)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mv(matrix, vector)
        best = min(best, time.perf_counter() - began)
    return matrix.numel() * 4 / best


WORK: dict[str, Callable[[dict[str, Any], Phases], Turn]] = {
    "ppo": one_trunk,
    "separate": separate,
    "grpo": grpo,
    "reward": reward,
    "dpo": dpo_pass,
}


def prepare(settings: dict[str, Any], phases: Phases) -> Turn:
    """What `settings` ask for, ready for its first turn."""
    torch.set_num_threads(settings["threads"])
    return WORK[settings["work"]](settings, phases)


if __name__ == "__main__":
    serve(prepare)
