"""One climb of a reward, watched with all there is to watch: gold at every step, the alarm, its rivals, and the truth.

The climb always goes on to its end, so that what the alarm would have kept can be held against the best there was. The
alarm's judgements, the curve and the final figures come from different draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.protocols import Scorer
from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator, seed_of
from backflip.measure.alarm import Seen, exhibits, listen, paragraph
from backflip.measure.warnings import Watched, repetition_of, warn
from backflip.models.adapters import Adapter
from backflip.models.chat import Chat
from backflip.models.load import Loaded
from backflip.policies.methods import METHODS
from backflip.policies.plan import PPO, Optimise
from backflip.policies.rollout import Step, Tools
from backflip.policies.state import fresh_state
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader
from backflip.stats.falling import Look, in_doubt

Array = NDArray[np.float64]
BETA, FLIPPED = 2.0, 0.25
"""Who judges: logistic noise on the difference of gold in standard deviations, and then a share of votes flipped."""
RATE = 0.05
SMOOTH = 3
"""Looks over which gold is averaged to find the best one."""


@dataclass(frozen=True)
class World:
    """A model, its prompts, how it is trained, and what an answer is truly worth."""

    loaded: Loaded
    chat: Chat
    reader: Reader
    prompts: list[Prompt]
    tokens: int
    """The longest answer."""
    judge: Callable[[Sequence[Prompt], Sequence[Answer]], tuple[Array, Array]]
    """(gold (B,), attributes (B, A)), gold with mean 0 and standard deviation 1 among the untouched model's answers."""
    names: tuple[str, ...]
    """(A,) what the attributes are called."""
    config: PPO
    how: Optimise


class Plan(NamedTuple):
    """How a climb is watched."""

    steps: int
    most_kl: float
    """Nats at which the climb ends."""
    every: int
    """Steps between two looks."""
    votes: int = 24
    """Judgements at each look."""
    labels: int = 600
    """Judgements at most; what is left of them at the end goes to the last policy, as long as it is in doubt."""
    drawn: int = 192
    """Answers drawn at each look to know gold there."""
    fresh: int = 512
    """Answers drawn at the end to know gold at the policies that were kept."""
    fixed_kl: float = 3.5
    """The rival: stop at this many nats."""


class Kept(NamedTuple):
    """A look: the policy as it stood, and the truth about it."""

    tick: int
    kl: float
    adapter: Adapter | None
    by_prompt: list[float]
    """Gold for each prompt, in the world's order."""
    attributes: list[float]

    @property
    def gold(self) -> float:
        """Mean over the prompts."""
        return float(np.mean(self.by_prompt))


class Draw:
    """Fresh answers of a policy along the climb, judged."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.adapter: Adapter | None = None
        self.engine = Engine(lambda _: world.loaded.trunk.merged(self.adapter), world.chat, batch=256)

    def answers(self, adapter: Adapter | None, count: int, seed: int) -> tuple[list[Prompt], list[Answer]]:
        """About `count` answers, as many to each prompt; fewer prompts, drawn by lot, where there are not so many."""
        order = generator(seed, "prompts").permutation(len(self.world.prompts))[:count]
        asked = [self.world.prompts[i] for i in order]
        self.adapter = adapter
        self.engine.load("now")
        n = max(1, count // len(asked))
        said = [a for b in self.engine.sample(asked, n, seed=seed, max_tokens=self.world.tokens) for a in b]
        return [p for p in asked for _ in range(n)], said

    def gold(self, adapter: Adapter | None, count: int, seed: int) -> tuple[Array, Array]:
        """Gold (B,) and attributes (B, A) of fresh answers."""
        return self.world.judge(*self.answers(adapter, count, seed))

    def kept(self, tick: int, kl: float, adapter: Adapter, count: int, seed: int) -> Kept:
        """A look at a policy."""
        prompts, said = self.answers(adapter, count, seed)
        gold, parts = self.world.judge(prompts, said)
        found: dict[str, list[float]] = {}
        for p, g in zip(prompts, gold.tolist(), strict=True):
            found.setdefault(p.id, []).append(g)
        order = [p.id for p in self.world.prompts if p.id in found]
        return Kept(tick, kl, adapter, [float(np.mean(found[i])) for i in order], parts.mean(0).tolist())


def prefers(gap: float, luck: np.random.Generator) -> bool:
    """Whether the simulated judge says that the first answer is better, `gap` being how much better it is."""
    right = luck.random() < 1 / (1 + np.exp(-BETA * gap))
    return bool(right) != (luck.random() < FLIPPED)


def climb(world: World, scorer: Scorer, plan: Plan, seed: int, check: Scorer | None = None) -> dict[str, Any]:
    """Climb `scorer` to the end; what was seen, what the alarm did, and gold (mean, standard error) where it counts."""
    state = fresh_state(world.loaded.trunk, world.config, seed)
    engine = Engine(lambda _: world.loaded.trunk.merged(state.adapter), world.chat, batch=64)
    tools = Tools(engine, world.reader, scorer, world.prompts)
    draw, steps, seen, kept = Draw(world), list[dict[str, Any]](), list[Seen](), list[Kept]()
    rang: dict[str, Any] | None = None
    method = METHODS[world.how.by]
    rules = {"seed": seed, "max_tokens": world.tokens, "until": plan.steps}
    for step in method.climb(state, tools, world.config, world.how, **rules):
        steps.append(_watched(world, step, scorer, check))
        tick, kl = step.state.step, step.metrics["objective/kl"]
        if tick % plan.every == 0:
            kept.append(draw.kept(tick, kl, _copy(state.adapter), plan.drawn, seed_of(seed, "look", tick)))
            if rang is None and (len(seen) + 1) * plan.votes <= plan.labels:
                rang = _look(world, draw, scorer, kept[-1], seen, plan.votes, seed)
        if kl > plan.most_kl:
            break
    while rang is None and in_doubt([s.look for s in seen]) and (len(seen) + 1) * plan.votes <= plan.labels:
        rang = _look(world, draw, scorer, kept[-1], seen, plan.votes, seed)
    return {
        "steps": steps,
        "looks": [
            {"tick": k.tick, "kl": k.kl, "gold": k.gold, "by_prompt": k.by_prompt, "attributes": k.attributes}
            for k in kept
        ],
        "judged": [{"tick": x.tick, "wins": x.look.wins, "judged": x.look.judged} for x in seen],
        "labels": int(sum(s.look.judged for s in seen)),
        "rang": rang,
        **_outcomes(world, draw, kept, rang, steps, plan, seed),
    }


def _watched(world: World, step: Step, scorer: Scorer, check: Scorer | None) -> dict[str, Any]:
    """What a step's own answers say."""
    by_id = {p.id: p for p in world.prompts}
    asked = [by_id[a.prompt_id] for a in step.answers]
    gold, parts = world.judge(asked, step.answers)
    return {
        "kl": step.metrics["objective/kl"],
        "proxy": float(step.scores.mean()),
        "gold": float(gold.mean()),
        "attributes": parts.mean(0).tolist(),
        "length": step.metrics["length/mean"],
        "repetition": repetition_of([a.text for a in step.answers]),
        "check": float("nan") if check is None else float(check.score(asked, step.answers).mean()),
        "spread": float(scorer.spread(asked, step.answers).mean()) if hasattr(scorer, "spread") else float("nan"),
    }


def _look(
    world: World, draw: Draw, scorer: Scorer, kept: Kept, seen: list[Seen], votes: int, seed: int
) -> dict[str, Any] | None:
    """Judge fresh answers against the untouched model's; what the alarm says if it rings now."""
    prompts, ours = draw.answers(kept.adapter, votes, seed_of(seed, "ours", len(seen)))
    theirs = draw.answers(None, votes, seed_of(seed, "ours", len(seen)))[1]  # the same prompts
    luck = generator(seed, "judge", len(seen))
    gap = world.judge(prompts, ours)[0] - world.judge(prompts, theirs)[0]
    wins = [float(prefers(g, luck)) for g in gap]
    seen.append(Seen(kept.tick, Look(float(np.sqrt(max(kept.kl, 0.0))), sum(wins), len(wins))))
    ring = listen(seen, RATE)
    if ring is None:
        return None
    gain = scorer.score(prompts, ours) - scorer.score(prompts, theirs)
    said = [(p.text, a.text, b.text) for p, a, b in zip(prompts, ours, theirs, strict=True)]
    shown = exhibits(said, gain.tolist(), wins)
    return {
        "tick": kept.tick,
        "kl": kept.kl,
        "back_to": ring.best.tick if ring.best else 0,
        "log_e": ring.evidence.log_e,
        "told": paragraph(ring, seen, world.config.kl_target, kept.tick),
        "shown": [e._asdict() for e in shown],
    }


def _outcomes(
    world: World, draw: Draw, kept: list[Kept], rang: dict[str, Any] | None, steps: list[dict[str, Any]], plan: Plan,
    seed: int
) -> dict[str, Any]:  # fmt: skip
    """Fresh gold at the policies that each way of stopping keeps."""
    smooth = np.convolve([k.gold for k in kept], np.ones(SMOOTH), "same") / np.convolve(
        np.ones(len(kept)), np.ones(SMOOTH), "same"
    )
    end = kept[-1].tick
    warned = warn([Watched(**{f: s[f] for f in Watched._fields}) for s in steps])
    first = min((w.tick + 1 for w in warned), default=end)
    stops = {
        "reference": 0,
        "alarm": end if rang is None else rang["back_to"],
        "best": kept[int(smooth.argmax())].tick,
        "fixed kl": next((k.tick for k in kept if k.kl >= plan.fixed_kl), end),
        "warning": next((k.tick for k in kept if k.tick >= first), end),
        "end": end,
    }
    known: dict[int, tuple[float, float]] = {}
    for tick in sorted(set(stops.values())):
        adapter = next((k.adapter for k in kept if k.tick == tick), None)
        gold = draw.gold(adapter, plan.fresh, seed_of(seed, "fresh", tick))[0]
        known[tick] = float(gold.mean()), float(gold.std(ddof=1) / np.sqrt(len(gold)))
    return {
        "stops": stops,
        "fresh": {name: known[tick] for name, tick in stops.items()},
        "warned": [w._asdict() for w in warned],
    }


def _copy(adapter: Adapter) -> Adapter:
    """The adapter as it stands."""
    return Adapter(
        {k: t.detach().clone() for k, t in adapter.a.items()}, {k: t.detach().clone() for k, t in adapter.b.items()},
        adapter.rank, adapter.alpha,
    )  # fmt: skip


def path_of(found: dict[str, Any], name: str) -> Array:
    """(T,) one figure along the steps of a climb."""
    return np.array([s[name] for s in found["steps"]])
