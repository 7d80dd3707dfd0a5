"""Rankings: one rater puts K answers to a prompt in order, and that says which of every two is better.

Knows nothing about who ranks or how answers are scored. Source: Ouyang et al. 2022 (arXiv:2203.02155), section 3.4.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

from backflip.core.records import Pair, Sample, Stream
from backflip.core.rng import generator
from backflip.raters.pairs import by_prompt, different, doubles, one_policy


def ranking_pairs(
    samples: Sequence[Sample], *, round: int, stream: Stream, seed: int, double_share: float = 0.1, before: int = 0
) -> list[Pair]:
    """The C(K, 2) pairs of each prompt's K different answers, as one ranking a prompt.

    Answers with the same text count as one; a prompt with fewer than two different ones has no ranking. At least
    `double_share` of the rankings (rounded up) want two raters; `before` counts the rankings opened before in this
    round and stream. Raises: ValueError when the samples come from more than one policy.
    """
    one_policy(samples)
    pairs: list[Pair] = []
    for prompt_id, answers in by_prompt(samples).items():
        ranking = f"r{round}/{stream}/{prompt_id}"
        kept = different(answers)
        if len(kept) < 2:
            continue
        wanted = 1 + doubles(before + 1, double_share) - doubles(before, double_share)
        before += 1
        for one, other in combinations(kept, 2):
            pair_id = f"{ranking}/{one.index}-{other.index}"
            a, b = (other, one) if generator(seed, "side", pair_id).random() < 0.5 else (one, other)
            pairs.append(
                Pair(
                    id=pair_id,
                    round=round,
                    stream=stream,
                    prompt_id=prompt_id,
                    sample_a=a.id,
                    sample_b=b.id,
                    policy=one.policy,
                    raters_wanted=wanted,
                    ranking=ranking,
                )
            )
    return pairs


def choices(pairs: Sequence[Pair], order: Sequence[Sequence[str]]) -> Mapping[str, Literal["a", "b", "tie"]]:
    """What an order of answers says about each pair, by the pair's id.

    `order` lists sample ids from best to worst; those that stand together are equally good.
    Raises: ValueError when it does not hold every answer of the pairs exactly once.
    """
    place = {sample: n for n, group in enumerate(order) for sample in group}
    asked = {sample for p in pairs for sample in (p.sample_a, p.sample_b)}
    if set(place) != asked or sum(map(len, order)) != len(asked):
        raise ValueError("an order holds every answer of its ranking exactly once")
    out: dict[str, Literal["a", "b", "tie"]] = {}
    for p in pairs:
        a, b = place[p.sample_a], place[p.sample_b]
        out[p.id] = "tie" if a == b else "a" if a < b else "b"
    return out
