"""A language model's votes on a round's pairs, cast once everybody else has been asked."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from backflip.core.records import Pair, Prompt, Rater, Vote
from backflip.core.rng import generator
from backflip.cycle.tools import Tools, torch_dtype
from backflip.models.chat import open_chat
from backflip.models.load import load_model, pick_device
from backflip.raters.judge import Ask, Endpoint, NoReply, judge_pair
from backflip.sampling.engine import Engine

GIVE_UP = 3
"""Pairs in a row without a reply, after which a round goes on without the judge."""
WORDS = 8
"""Tokens of a reply by a model on this machine."""
COLD = 0.05
"""Its temperature: nearly the likeliest word."""


def ask_judge(number: int, tools: Tools) -> None:
    """Let the plan's judge vote on the pairs of this round that serve the fit and that it has not judged.

    A pair without a reply is left out; after `GIVE_UP` in a row the rest of the round is. What it answers in no sense
    is a "cannot tell". Raises: ConfigError when an endpoint refuses what it is asked.
    """
    plan, store = tools.plan.judge, tools.store
    if not plan.model:
        return
    rater = Rater(id=f"judge/{plan.model}", kind="judge", name=plan.model)
    mine = [v for v in store.votes() if v.rater_id == rater.id]
    done = {v.pair_id for v in mine}
    wanted = [p for p in store.pairs(round=number, stream="fit") if p.id not in done and _drawn(p, tools)]
    wanted = wanted[: max(0, plan.pairs - len(mine))]
    if not wanted:
        return
    with store.begin() as tx:
        tx.add_raters([rater])
    tools.watcher.begin(f"round {number}: {plan.model} judges", len(wanted))
    missed = silent = unclear = 0
    with opened(tools) as ask:
        for pair in wanted:
            try:
                vote = _vote(pair, rater, ask, tools)
            except NoReply as e:
                missed, silent = missed + 1, silent + 1
                if silent >= GIVE_UP:
                    tools.watcher.say(f"round {number} goes on without its judge. {str(e).splitlines()[0]}")
                    return
                continue
            silent, unclear = 0, unclear + (vote.choice == "skip")
            with store.begin() as tx:
                tx.cast([vote])
            tools.watcher.advance()
    if missed or unclear:
        tools.watcher.say(f"round {number}: the judge left out {missed} pairs, and made no sense on {unclear}")


@contextmanager
def opened(tools: Tools) -> Iterator[Ask]:
    """The plan's judge, ready to be asked."""
    plan = tools.plan.judge
    if plan.url:
        endpoint = Endpoint(plan)
        try:
            yield endpoint
        finally:
            endpoint.close()
    else:
        yield local_judge(tools)


def local_judge(tools: Tools) -> Ask:
    """A model on this machine. Raises: DataError when it cannot be loaded."""
    model = tools.plan.model
    loaded = load_model(tools.plan.judge.model, device=pick_device(model.device), dtype=torch_dtype(model.dtype))
    engine = Engine(lambda _: loaded.trunk, open_chat(loaded), batch=1, temperature=COLD)
    engine.load("judge")

    def ask(question: str) -> str:
        prompt = Prompt(id="judge", split="train", text=question)
        [[answer]] = engine.sample([prompt], 1, seed=tools.plan.seed, max_tokens=WORDS)
        return answer.text

    return ask


def _drawn(pair: Pair, tools: Tools) -> bool:
    """Whether the judge is to judge this pair: by lot, by the pair alone; never one of a ranking or of a chat."""
    plan, asked = tools.plan, not pair.ranking and pair.raters_wanted > 0
    return asked and generator(plan.seed, "judge", pair.id).random() < plan.judge.share


def _vote(pair: Pair, rater: Rater, ask: Ask, tools: Tools) -> Vote:
    samples = tools.store.samples_by_id([pair.sample_a, pair.sample_b])
    prompt = tools.prompts[pair.prompt_id]
    began = time.monotonic()
    a, b = (samples[i].text for i in (pair.sample_a, pair.sample_b))
    choice = judge_pair(ask, tools.plan.judge.instructions, prompt, a, b)
    first = generator(tools.plan.seed, "judge", "shown", pair.id).random() < 0.5  # both orders were: neither was first
    return Vote(
        key=f"{pair.id}/{rater.id}", pair_id=pair.id, rater_id=rater.id, choice=choice, shown="ab" if first else "ba",
        latency_s=time.monotonic() - began, at=time.time(),
    )  # fmt: skip
