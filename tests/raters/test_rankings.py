"""Rankings: which pairs they give, what an order says about each, and how a simulated rater orders."""

from itertools import permutations

import pytest

from backflip.core.records import Judged, Pair, Sample
from backflip.raters.personas import Crowd, Persona, SimulatedCrowd
from backflip.raters.rankings import choices, ranking_pairs

WEIGHTS = {"warmth": 1.0, "form": 1.0}


def sample(prompt: str, index: int, text: str = "") -> Sample:
    return Sample(
        id=f"{prompt}-{index}", round=1, purpose="rate", prompt_id=prompt, policy="reference", index=index,
        text=text or f"answer {index}", ended=True, length=3, artefact="x", row=index,
    )  # fmt: skip


def opened(prompts: int, answers: int, **changes: float) -> list[Pair]:
    samples = [sample(f"p{n}", i) for n in range(prompts) for i in range(answers)]
    return ranking_pairs(samples, round=1, stream="fit", seed=0, **changes)  # type: ignore[arg-type]


def crowd(**changes: float) -> SimulatedCrowd:
    return SimulatedCrowd(Crowd(personas=(Persona(**changes),)), WEIGHTS, 0)  # type: ignore[arg-type]


def judged(values: list[float], prompt: str = "p0") -> dict[str, Judged]:
    return {f"{prompt}-{i}": Judged(value=v, attributes={"warmth": v, "form": 0.0}) for i, v in enumerate(values)}


def test_four_answers_give_the_six_pairs_of_one_ranking() -> None:
    pairs = opened(2, 4)

    assert len(pairs) == 12
    assert {p.ranking for p in pairs} == {"r1/fit/p0", "r1/fit/p1"}
    met = [frozenset((p.sample_a, p.sample_b)) for p in pairs if p.prompt_id == "p0"]
    assert sorted(map(sorted, met)) == [["p0-0", "p0-1"], ["p0-0", "p0-2"], ["p0-0", "p0-3"], ["p0-1", "p0-2"],
                                        ["p0-1", "p0-3"], ["p0-2", "p0-3"]]  # fmt: skip
    assert 0 < sum(p.sample_a < p.sample_b for p in pairs) < 12  # which answer is called a is drawn by lot


def test_equal_answers_are_ranked_once_and_one_answer_alone_not_at_all() -> None:
    samples = [sample("p", 0, "same"), sample("p", 1, "same "), sample("p", 2, "other"), sample("q", 0), sample("r", 0)]

    [pair] = ranking_pairs(samples, round=1, stream="fit", seed=0)

    assert {pair.sample_a, pair.sample_b} == {"p-0", "p-2"}


def test_the_share_of_doubles_counts_rankings_also_across_batches() -> None:
    at_once = opened(10, 3, double_share=0.3)
    first = [sample(f"p{n}", i) for n in range(4) for i in range(3)]
    later = [sample(f"p{n}", i) for n in range(4, 10) for i in range(3)]
    parts = ranking_pairs(first, round=1, stream="fit", seed=0, double_share=0.3)
    parts += ranking_pairs(later, round=1, stream="fit", seed=0, double_share=0.3, before=4)

    assert len({p.ranking for p in at_once if p.raters_wanted == 2}) == 3
    assert parts == at_once


def test_an_order_says_which_of_every_two_is_better() -> None:
    pairs = opened(1, 4)
    said = choices(pairs, [["p0-2"], ["p0-0", "p0-3"], ["p0-1"]])

    winner = {frozenset((p.sample_a, p.sample_b)): p.sample_a if said[p.id] == "a" else p.sample_b for p in pairs}
    tied = [{p.sample_a, p.sample_b} for p in pairs if said[p.id] == "tie"]
    assert tied == [{"p0-0", "p0-3"}]
    for better, worse in ((2, 0), (2, 3), (2, 1), (0, 1), (3, 1)):
        assert winner[frozenset((f"p0-{better}", f"p0-{worse}"))] == f"p0-{better}"


@pytest.mark.parametrize("order", [[["p0-0"], ["p0-1"]], [["p0-0"], ["p0-1", "p0-2", "p0-0"]], [["p0-0", "p0-1", "x"]]])
def test_an_order_that_leaves_out_or_repeats_an_answer_is_refused(order: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        choices(opened(1, 3), order)


def test_a_rater_who_never_errs_orders_by_utility_whatever_comes_first() -> None:
    [rater] = crowd(error=0.0, tie_width=0.2, count=1).raters_for("any")
    values = judged([0.1, 2.0, 1.0, 1.1, 3.0])

    for seen in permutations(values):
        order = rater.order("r", {s: values[s] for s in seen})
        assert [sorted(group) for group in order] == [["p0-4"], ["p0-1"], ["p0-2", "p0-3"], ["p0-0"]]


def test_a_rater_who_errs_never_contradicts_an_order() -> None:
    pairs = opened(1, 5)
    people, values = crowd(error=0.4, tie_width=0.0, count=9), judged([0.0, 1.0, 2.0, 3.0, 4.0])
    wrong = 0
    for rater in people.raters_for("all", 9):
        said = choices(pairs, rater.order("r", values))
        wins = dict.fromkeys(values, 0)
        for p in pairs:
            wins[p.sample_a if said[p.id] == "a" else p.sample_b] += 1
        assert sorted(wins.values()) == [0, 1, 2, 3, 4]  # so everybody wins over all that stand below
        wrong += wins["p0-4"] != 4
    assert wrong > 0


def test_a_ranking_is_voted_by_as_many_raters_as_it_wants_each_on_every_pair() -> None:
    pairs = opened(1, 4, double_share=1.0)
    votes = crowd().rank(pairs, judged([0.0, 1.0, 2.0, 3.0]), at=12.0)

    assert len({v.rater_id for v in votes}) == 2
    assert {v.key for v in votes} == {f"{p.id}/{r}" for p in pairs for r in {v.rater_id for v in votes}}
    assert {v.shown for v in votes} == {"ab", "ba"}


def test_errors_in_an_order_are_as_frequent_between_neighbours_as_in_a_pair() -> None:
    people, wrong = crowd(error=0.15, tie_width=0.0, count=1), 0
    [rater] = people.raters_for("any")
    for n in range(2000):
        order = rater.order(f"r{n}", judged([0.0, 1.0]))
        wrong += order[0] == ["p0-0"]

    assert 0.15 - 3 * (0.15 * 0.85 / 2000) ** 0.5 < wrong / 2000 < 0.15 + 3 * (0.15 * 0.85 / 2000) ** 0.5
