"""Which pairs of answers are shown to raters. Knows nothing about who rates or how answers are scored."""

import math
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from backflip.core.records import Pair, Sample, Stream
from backflip.core.rng import generator
from backflip.stats.selection import Chosen

NEARLY = 0.8
"""Share of all their words that two answers have in common, from which they say nearly the same."""


class Candidate(NamedTuple):
    """Two answers to one prompt that could be shown, and the last part of the pair's id."""

    first: Sample
    second: Sample
    name: str


Chooser = Callable[[Sequence[Candidate], int, np.random.Generator], Chosen]
"""Picks so many of the candidates, each with the chance it states."""


def random_pairs(
    samples: Sequence[Sample],
    *,
    round: int,
    stream: Stream,
    count: int,
    seed: int,
    double_share: float = 0.1,
    before: int = 0,
) -> list[Pair]:
    """Up to `count` pairs of different answers to the same prompt, spread evenly over the prompts, by lot.

    Answers with the same text count as one, so nobody is asked the same question twice. `probability`
    is the exact chance with which each pair was picked. At least `double_share` of the pairs (rounded
    up) want two raters. The draw depends on the samples, not on their order; there are fewer than
    `count` pairs only if the answers do not allow more.

    Streaming: call once for each batch, all samples of a prompt in the same batch, with the batch's
    `count` and the number of pairs picked `before` in this round and stream; the union then holds no
    pair twice and exactly the share of doubles that one big call would have given.
    Raises: ValueError when the samples come from more than one policy, `count` or `before` is negative
    or `double_share` is not in [0, 1].
    """
    one_policy(samples)
    candidates: dict[str, list[Candidate]] = {}
    for prompt_id, answers in by_prompt(samples).items():
        candidates[prompt_id] = [
            Candidate(a, b, f"{a.index}-{b.index}") for a, b in combinations(different(answers), 2)
        ]
    where = _Place(round, stream, seed, double_share, before)
    return _pick(candidates, where, count)


def chosen_pairs(
    samples: Sequence[Sample],
    choose: Chooser,
    *,
    round: int,
    stream: Stream,
    count: int,
    seed: int,
    double_share: float = 0.1,
    before: int = 0,
) -> list[Pair]:
    """Up to `count` pairs of different answers to the same prompt, as `choose` picks them from all there are.

    Answers that say nearly the same count as one, so that no question comes twice in other words. All prompts'
    candidates compete. `probability`, `double_share`, `before` and errors as in `random_pairs`.
    """
    one_policy(samples)
    open_to = [
        (prompt_id, Candidate(a, b, f"{a.index}-{b.index}"))
        for prompt_id, answers in sorted(by_prompt(samples).items())
        for a, b in combinations(apart(different(answers)), 2)
    ]
    where = _Place(round, stream, seed, double_share, before)
    luck = generator(seed, "choose", round, stream, *(p for p, _ in open_to))
    chosen = choose([c for _, c in open_to], min(count, len(open_to)), luck)
    drawn = [(*open_to[int(i)], float(p)) for i, p in zip(chosen.place, chosen.probability, strict=True)]
    return _in_order(where, drawn, luck)


def reference_pairs(
    policy_samples: Sequence[Sample],
    reference_samples: Sequence[Sample],
    *,
    round: int,
    count: int,
    seed: int,
    double_share: float = 0.1,
    before: int = 0,
) -> list[Pair]:
    """Up to `count` pairs of the policy's answer and the reference's answer to the same prompt, by lot.

    The n-th answer of one meets the n-th answer of the other; equal texts make no pair (count them as
    ties). Which side the policy is on is drawn by lot: look at the samples' policies. Everything else
    as in `random_pairs`; `Pair.policy` is the policy's version, the stream is "reference".
    Raises: ValueError as `random_pairs`.
    """
    one_policy(policy_samples)
    one_policy(reference_samples)
    theirs = by_prompt(reference_samples)
    candidates: dict[str, list[Candidate]] = {}
    for prompt_id, answers in by_prompt(policy_samples).items():
        met: dict[tuple[str, str], Candidate] = {}
        for p, r in zip(answers, theirs.get(prompt_id, []), strict=False):
            if p.text.strip() != r.text.strip():
                met.setdefault((p.text.strip(), r.text.strip()), Candidate(p, r, f"{p.index}-{r.index}"))
        candidates[prompt_id] = list(met.values())
    return _pick(candidates, _Place(round, "reference", seed, double_share, before), count)


class _Place(NamedTuple):
    round: int
    stream: Stream
    seed: int
    double_share: float
    before: int


def _pick(candidates: dict[str, list[Candidate]], place: _Place, count: int) -> list[Pair]:
    """Draw `count` of the candidates: an equal number for each prompt, the rest by lot."""
    if count < 0 or place.before < 0 or not 0 <= place.double_share <= 1:
        raise ValueError(f"count {count}, before {place.before} or double_share {place.double_share} does not fit")
    prompts = sorted(p for p, c in candidates.items() if c)
    if not prompts or count == 0:
        return []
    luck = generator(place.seed, "pairs", place.round, place.stream, *prompts)
    base, still_open, left = _shares({p: len(candidates[p]) for p in prompts}, count)
    extra = {still_open[i] for i in luck.permutation(len(still_open))[:left]}
    drawn: list[tuple[str, Candidate, float]] = []
    for p in prompts:
        mine = candidates[p]
        expected = base[p] + (left / len(still_open) if p in still_open else 0.0)
        chosen = luck.permutation(len(mine))[: base[p] + (p in extra)]
        drawn.extend((p, mine[i], expected / len(mine)) for i in chosen)
    return _in_order(place, drawn, luck)


def _in_order(place: _Place, drawn: Sequence[tuple[str, Candidate, float]], luck: np.random.Generator) -> list[Pair]:
    """The pairs drawn, in an order by lot, so that doubles fall on any of them."""
    pairs: list[Pair] = []
    for n, i in enumerate(luck.permutation(len(drawn)), place.before):
        wanted = 1 + doubles(n + 1, place.double_share) - doubles(n, place.double_share)
        prompt_id, candidate, probability = drawn[int(i)]
        pairs.append(_pair(place, prompt_id, candidate, probability, wanted))
    return pairs


def _shares(room: dict[str, int], count: int) -> tuple[dict[str, int], list[str], int]:
    """(sure picks by prompt, prompts with room for one more, how many of those get one by lot)."""
    base = dict.fromkeys(room, 0)
    left = min(count, sum(room.values()))
    still_open = [p for p in room if base[p] < room[p]]
    while still_open and left >= len(still_open):
        for p in still_open:
            base[p] += 1
        left -= len(still_open)
        still_open = [p for p in still_open if base[p] < room[p]]
    return base, still_open, left


def doubles(n: int, share: float) -> int:
    """How many of the first `n` questions of a round and stream want two raters."""
    return math.ceil(share * n - 1e-9)


def _pair(place: _Place, prompt_id: str, candidate: Candidate, probability: float, raters_wanted: int) -> Pair:
    pair_id = f"r{place.round}/{place.stream}/{prompt_id}/{candidate.name}"
    a, b = candidate.first, candidate.second
    if generator(place.seed, "side", pair_id).random() < 0.5:
        a, b = b, a
    return Pair(
        id=pair_id,
        round=place.round,
        stream=place.stream,
        prompt_id=prompt_id,
        sample_a=a.id,
        sample_b=b.id,
        policy=candidate.first.policy,
        probability=probability,
        raters_wanted=raters_wanted,
    )


def by_prompt(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The answers of each prompt, ordered by index, so that the order of arrival does not matter."""
    found: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: (s.prompt_id, s.index, s.id)):
        found.setdefault(sample.prompt_id, []).append(sample)
    return found


def different(answers: Sequence[Sample]) -> list[Sample]:
    """The answers whose texts differ; of equal ones the first."""
    return list({a.text.strip(): a for a in reversed(answers)}.values())[::-1]


def apart(answers: Sequence[Sample]) -> list[Sample]:
    """The answers that differ in more than a few words; of those that nearly say the same the first."""
    kept: list[tuple[Sample, set[str]]] = []
    for answer in answers:
        said = set(re.findall(r"\w+", answer.text.lower()))
        if all(len(said & other) < NEARLY * len(said | other) for _, other in kept if said | other):
            kept.append((answer, said))
    return [a for a, _ in kept]


def one_policy(samples: Sequence[Sample]) -> None:
    """Raises: ValueError when the samples come from more than one policy."""
    policies = {s.policy for s in samples}
    if len(policies) > 1:
        raise ValueError(f"the samples come from more than one policy: {', '.join(sorted(policies))}")
