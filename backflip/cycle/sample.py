"""The steps `sample` and `rate`: the policy answers, pairs open as answers arrive, raters vote."""

import re
import time
from collections.abc import Sequence
from math import ceil, comb
from typing import NamedTuple

from backflip.core.records import Judged, Pair, Prompt, Sample, Stream, Vote
from backflip.core.rng import generator, seed_of
from backflip.cycle.artefacts import samples_of, save_answers
from backflip.cycle.choosing import Known, known_before, open_chosen
from backflip.cycle.fit import require_import
from backflip.cycle.judging import ask_judge
from backflip.cycle.people import wait_for_people
from backflip.cycle.plan import Plan
from backflip.cycle.tools import Outcome, Tools, policy_before
from backflip.raters.pairs import random_pairs
from backflip.raters.rankings import ranking_pairs

UNRATED = 32
"""Prompts answered in a round without pairs: the reward's scale and the critic begin from these answers."""


def sample(number: int, tools: Tools) -> Outcome:
    """Let the round's first policy answer, batch by batch; open each batch's pairs and ask machine raters.

    Raises: DataError when the plan asks for no votes and none were imported.
    """
    plan, store = tools.plan, tools.store
    require_import(tools)
    tools.engine.load(policy_before(number))
    work: dict[Stream, list[Prompt]] = {"fit": chosen(tools, number, "fit"), "random": chosen(tools, number, "random")}
    size = max(1, plan.sampling.batch // plan.sampling.answers)
    known = known_before(number, tools)
    have = {s.prompt_id for s in store.samples(round=number, purpose="rate")}
    tools.watcher.begin(f"round {number}: sample and rate", sum(map(len, work.values())))
    for stream, prompts in work.items():
        wanted = plan.rate.held_out if stream == "random" else plan.rate.pairs - plan.rate.held_out
        seen: set[str] = set()
        for at in range(0, len(prompts), size):
            batch = prompts[at : at + size]
            opened = sum(p.prompt_id in seen for p in store.pairs(round=number, stream=stream))
            until = round(wanted * (at + len(batch)) / len(prompts))
            if batch[0].id not in have:
                _one_batch(tools, batch, _Where(number, stream, until - opened, opened, known))
            seen |= {p.id for p in batch}
            tools.watcher.advance(len(batch), f"{len(store.votes(round=number))} votes")
        short = wanted - len(store.pairs(round=number, stream=stream))
        if short > 0:
            tools.watcher.say(f"round {number}: {short} fewer pairs than planned: too many answers were the same")
    return Outcome()


def _one_batch(tools: Tools, prompts: Sequence[Prompt], where: "_Where") -> None:
    """Sample one batch; artefact first, then its rows and pairs in one transaction, then the votes."""
    plan, number = tools.plan, where.round
    seed = seed_of(plan.seed, "rate", number)
    drawn = tools.engine.sample(prompts, plan.sampling.answers, seed=seed, max_tokens=plan.sampling.max_tokens)
    answers = [a for batch in drawn for a in batch]
    path = tools.round_dir(number) / f"samples-{where.stream}-{prompts[0].id.replace('/', '-')}.safetensors"
    save_answers(path, answers)
    samples = samples_of(answers, round=number, purpose="rate", artefact=str(path.relative_to(tools.root)))
    pairs = _open_pairs(samples, where, tools)
    with tools.store.begin() as tx:
        tx.add_samples(samples)
        tx.add_pairs(pairs)
    ask_machines(tools, pairs, {s.id: s for s in samples})


class _Where(NamedTuple):
    round: int
    stream: Stream
    pairs: int
    """How many to open."""
    before: int
    """Pairs opened before in this round and stream."""
    known: Known | None
    """What pairs that serve the fit are chosen by; None where they are drawn by lot."""


def _open_pairs(samples: Sequence[Sample], where: _Where, tools: Tools) -> list[Pair]:
    """The pairs of one batch of answers: all of a prompt's as one ranking, or some by lot, or by what they teach."""
    seed, share = tools.plan.seed, tools.double_share
    if ranks(tools.plan, where.stream):
        opened = {p.ranking for p in tools.store.pairs(round=where.round, stream=where.stream)}
        return ranking_pairs(
            samples, round=where.round, stream=where.stream, seed=seed, double_share=share, before=len(opened)
        )
    if where.known is not None and where.stream == "fit":
        return open_chosen(
            samples, where.known, tools, round=where.round, count=where.pairs, before=where.before
        )  # fmt: skip
    return random_pairs(
        samples, round=where.round, stream=where.stream, count=where.pairs, seed=seed, double_share=share,
        before=where.before,
    )  # fmt: skip


def ranks(plan: Plan, stream: str) -> bool:
    """Whether the pairs of a stream are judged as rankings."""
    return plan.rate.rank and plan.rate.pairs > 0 and stream == "fit"


def chosen(tools: Tools, number: int, stream: str) -> list[Prompt]:
    """The prompts of a round: as many as its pairs need, drawn from reshuffled passes over the split."""
    pool = tools.split("monitor" if stream == "random" else "train")
    count = prompts_asked(tools.plan, len(pool), stream)
    picked: dict[str, Prompt] = {}
    place = (number - 1) * count
    while len(picked) < count:
        epoch, offset = divmod(place, len(pool))
        p = pool[int(generator(tools.plan.seed, stream, epoch).permutation(len(pool))[offset])]
        picked[p.id] = p
        place += 1
    return list(picked.values())


def prompts_asked(plan: Plan, pool: int, stream: str) -> int:
    """How many of the `pool` prompts of a stream's split a round asks: as many as its pairs need."""
    rate = plan.rate
    if not rate.pairs and stream == "fit":
        return min(pool, UNRATED)
    wanted = rate.held_out if stream == "random" else rate.pairs - rate.held_out
    each = comb(plan.sampling.answers, 2) if ranks(plan, stream) else rate.pairs_per_prompt
    return min(pool, -(-wanted // each))


def rate(number: int, tools: Tools) -> Outcome:
    """Ask machine raters about every pair still open; wait for people where they rate. Raises: Paused."""
    waiting = [pair for pair, _ in tools.store.wanting(number)]
    if waiting and tools.crowd is not None:
        begun = {p.ranking for p in waiting if p.ranking}
        waiting = [p for p in tools.store.pairs(round=number) if p.ranking in begun or p in waiting]
        ids = [i for p in waiting for i in (p.sample_a, p.sample_b)]
        ask_machines(tools, waiting, tools.store.samples_by_id(ids))
    wait_for_people(number, tools)
    ask_judge(number, tools)
    return Outcome()


def ask_machines(tools: Tools, pairs: Sequence[Pair], samples: dict[str, Sample]) -> None:
    """Simulated raters vote on `pairs`; nobody votes when there is no crowd. Casting again changes nothing."""
    if tools.crowd is None or tools.utility is None or not pairs:
        return
    votes: list[Vote] = []

    def skim(sample: str, unread: float) -> Judged:
        return judge_sample(tools, samples[sample], unread)

    questions: dict[str, list[Pair]] = {}
    for pair in pairs:
        questions.setdefault(pair.ranking or pair.id, []).append(pair)
    for together in questions.values():
        judged = {i: judge_sample(tools, samples[i]) for p in together for i in (p.sample_a, p.sample_b)}
        if together[0].ranking:
            votes += tools.crowd.rank(together, judged, at=time.time(), skim=skim)
        else:
            [pair] = together
            a, b = judged[pair.sample_a], judged[pair.sample_b]
            votes += tools.crowd.votes(pair, a, b, at=time.time(), skim=skim)
    with tools.store.begin() as tx:
        tx.cast(votes)


def judge_sample(tools: Tools, sample: Sample, unread: float = 0.0) -> Judged:
    """The true utility of an answer, or of what somebody sees who leaves the last words, this share of them, unread."""
    assert tools.utility is not None
    text, ended = sample.text, sample.ended
    words = list(re.finditer(r"\S+", text))
    read = ceil((1 - unread) * len(words))
    if read < len(words):
        text, ended = text[: words[read].start()].rstrip(), False
    return tools.utility.judge(tools.prompts[sample.prompt_id], text, ended)
