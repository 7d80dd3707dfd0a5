import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from backflip.core.records import Pair, Sample
from backflip.raters.pairs import chosen_pairs, random_pairs, reference_pairs
from backflip.stats.selection import Chosen


def sample(prompt: str, index: int, text: str | None = None, policy: str = "v1") -> Sample:
    return Sample(
        id=f"{policy}/{prompt}/{index}",
        round=1,
        purpose="rate",
        prompt_id=prompt,
        policy=policy,
        index=index,
        text=f"{policy} {prompt} {index}" if text is None else text,
        ended=True,
        length=5,
        artefact="x",
        row=0,
    )


def answers(prompts: int, each: int, policy: str = "v1") -> list[Sample]:
    return [sample(f"p{i:03d}", j, policy=policy) for i in range(prompts) for j in range(each)]


def pick(samples: list[Sample], count: int, **changes) -> list[Pair]:
    return random_pairs(samples, **{"round": 2, "stream": "fit", "count": count, "seed": 5, **changes})


def test_pairs_join_two_answers_to_one_prompt_and_none_comes_twice():
    samples = {s.id: s for s in answers(10, 4)}

    pairs = pick(list(samples.values()), 30)

    assert len(pairs) == len({p.id for p in pairs}) == len({frozenset((p.sample_a, p.sample_b)) for p in pairs}) == 30
    assert all(samples[p.sample_a].prompt_id == samples[p.sample_b].prompt_id == p.prompt_id for p in pairs)
    assert {(p.round, p.stream, p.policy) for p in pairs} == {(2, "fit", "v1")}


def test_an_id_names_round_stream_prompt_and_both_answers():
    [pair] = pick([sample("p7", 3), sample("p7", 11)], 1)

    assert pair.id == "r2/fit/p7/3-11"


def test_pairs_are_spread_evenly_over_the_prompts():
    counts = Counter(p.prompt_id for p in pick(answers(10, 4), 25))

    assert sorted(counts.values()) == [2] * 5 + [3] * 5


def test_answers_with_the_same_text_count_as_one():
    same = [sample("p", 0, "hello"), sample("p", 1, " hello\n"), sample("p", 2, "other")]

    assert [p.id for p in pick(same, 9)] == ["r2/fit/p/0-2"]
    assert pick(same[:2], 9) == []
    assert pick([sample("p", 0)], 9) == []
    assert pick([], 9) == []


def test_the_draw_does_not_depend_on_the_order_of_the_samples():
    samples = answers(10, 4)
    mixed = samples.copy()
    random.Random(1).shuffle(mixed)

    assert pick(samples, 20) == pick(mixed, 20)
    assert pick(samples, 20) != pick(samples, 20, seed=6)


def test_every_round_and_stream_draws_anew():
    def drawn(**place) -> set[str]:
        return {p.id.split("/", 2)[2] for p in pick(answers(10, 4), 20, **place)}

    assert drawn() != drawn(round=3)
    assert drawn() != drawn(stream="random")


def test_the_probability_is_the_share_of_a_prompts_pairs_that_is_picked():
    # 3 answers -> 3 pairs, 2 answers -> 1 pair; 3 picks: one sure for each, then one more where there is room
    samples = [*answers(1, 3), sample("q", 0), sample("q", 1)]

    found = {p.prompt_id: p.probability for p in pick(samples, 3)}

    assert found == {"p000": pytest.approx(2 / 3), "q": 1.0}


def test_every_pair_is_picked_as_often_as_its_probability_says():
    # two prompts with 3 pairs each, 3 picks: one sure for each and one by lot, so 1.5 / 3 for every pair
    samples = answers(2, 3)
    counts: Counter[str] = Counter()
    for seed in range(800):
        pairs = pick(samples, 3, seed=seed)
        assert {p.probability for p in pairs} == {0.5}
        counts.update(p.id for p in pairs)

    # 400 each, standard deviation 14
    assert len(counts) == 6
    assert all(n == pytest.approx(400, abs=50) for n in counts.values())


def test_all_pairs_are_taken_when_more_are_asked_for():
    pairs = pick(answers(3, 3), 100)

    assert len(pairs) == 9
    assert {p.probability for p in pairs} == {1.0}


def test_either_answer_may_be_a():
    pairs = pick(answers(300, 2), 300)

    # 150, standard deviation 8.7
    assert sum(p.sample_a < p.sample_b for p in pairs) == pytest.approx(150, abs=29)


@pytest.mark.parametrize(
    ("count", "share", "doubles"), [(30, 0.1, 3), (31, 0.1, 4), (1, 0.1, 1), (20, 0.25, 5), (9, 0, 0)]
)
def test_the_promised_share_of_pairs_wants_two_raters(count: int, share: float, doubles: int):
    pairs = pick(answers(50, 2), count, double_share=share)

    assert len(pairs) == count
    assert sum(p.raters_wanted == 2 for p in pairs) == doubles
    assert {p.raters_wanted for p in pairs} <= {1, 2}


@pytest.mark.parametrize("size", [1, 4, 7])
def test_batches_give_no_pair_twice_and_the_same_share_of_doubles(size: int):
    samples = answers(48, 4)
    union: list[Pair] = []
    for start in range(0, 48, size):
        batch = [s for s in samples if start <= int(s.prompt_id[1:]) < start + size]
        prompts = len({s.prompt_id for s in batch})
        union += pick(batch, 4 * prompts, before=len(union))

    assert len(union) == len({p.id for p in union}) == 192
    assert sum(p.raters_wanted == 2 for p in union) == 20  # 19.2 rounded up


def test_a_batch_picked_again_is_the_same():
    batch = answers(4, 4)

    assert pick(batch, 6, before=12) == pick(batch, 6, before=12)


def test_which_pairs_want_two_raters_has_nothing_to_do_with_the_prompt():
    firsts = Counter(
        p.prompt_id for seed in range(300) for p in pick(answers(10, 2), 10, seed=seed) if p.raters_wanted == 2
    )

    # one double in ten pairs, 300 draws: 30 for each prompt, standard deviation 5.2
    assert all(firsts[f"p{i:03d}"] == pytest.approx(30, abs=18) for i in range(10))


@pytest.mark.parametrize("changes", [{"count": -1}, {"before": -1}, {"double_share": 1.5}])
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, float]):
    with pytest.raises(ValueError, match="does not fit"):
        random_pairs(answers(2, 2), **{"round": 1, "stream": "fit", "count": 1, "seed": 1, **changes})


def test_answers_of_two_policies_are_refused():
    with pytest.raises(ValueError, match="more than one policy: v1, v2"):
        pick([sample("p", 0), sample("p", 1, policy="v2")], 1)


def test_reference_pairs_set_the_policy_against_the_reference_prompt_by_prompt():
    mine, theirs = answers(20, 2, "v3"), answers(20, 2, "base")
    samples = {s.id: s for s in mine + theirs}

    pairs = reference_pairs(mine, theirs, round=4, count=40, seed=5)

    assert len(pairs) == 40
    for p in pairs:
        a, b = samples[p.sample_a], samples[p.sample_b]
        assert {a.policy, b.policy} == {"v3", "base"}
        assert (a.prompt_id, a.index) == (b.prompt_id, b.index)
        assert (p.stream, p.policy, p.id) == ("reference", "v3", f"r4/reference/{a.prompt_id}/{a.index}-{a.index}")
    assert 8 <= sum(samples[p.sample_a].policy == "v3" for p in pairs) <= 32  # 20, standard deviation 3.2
    assert sum(p.raters_wanted == 2 for p in pairs) == 4


def test_reference_pairs_skip_equal_texts_and_prompts_without_a_reference():
    mine = [sample("p", 0, "same", "v3"), sample("p", 1, "new", "v3"), sample("q", 0, "alone", "v3")]
    theirs = [replace(s, id=f"base/{s.index}", policy="base", text="same") for s in mine[:2]]

    assert [p.id for p in reference_pairs(mine, theirs, round=1, count=9, seed=5)] == ["r1/reference/p/1-1"]


def first_ones(candidates, count, luck) -> Chosen:
    return Chosen(np.arange(count), np.linspace(0.1, 0.9, count))


def chosen(samples: list[Sample], count: int, **changes) -> list[Pair]:
    where = {"round": 2, "stream": "fit", "count": count, "seed": 5, **changes}
    return chosen_pairs(samples, first_ones, **where)


def test_chosen_pairs_are_those_picked_with_the_chance_stated():
    samples = answers(3, 3)
    pairs = chosen(samples, 4)

    assert {p.id for p in pairs} == {f"r2/fit/{n}" for n in ("p000/0-1", "p000/0-2", "p000/1-2", "p001/0-1")}
    by_id = {p.id: p.probability for p in pairs}
    assert by_id["r2/fit/p000/0-1"] == pytest.approx(0.1)
    assert by_id["r2/fit/p001/0-1"] == pytest.approx(0.9)
    assert len(chosen(samples, 50)) == 9
    assert chosen([], 5) == []
    assert sum(p.raters_wanted - 1 for p in chosen(samples, 9, double_share=0.3)) == 3
    assert chosen(samples, 4) == chosen(samples[::-1], 4)


def test_no_question_comes_twice_in_other_words():
    text = "the sun is warm and the sea is cold and wide today"
    near = [
        sample("p", 0, text),
        sample("p", 1, f"{text.upper()}!"),
        sample("p", 2, "snow"),
        sample("p", 3, f"{text} my"),
    ]

    assert [p.id for p in chosen(near, 9)] == ["r2/fit/p/0-2"]
    assert len(pick(near, 9)) == 6  # by lot all stay, as before
    far = [sample("p", 0, "a b c d"), sample("p", 1, "a b c x")]  # 3 of 5 words in common
    assert len(chosen(far, 9)) == 1
