from collections import Counter
from itertools import pairwise

import pytest

from backflip.core.config import build
from backflip.core.errors import ConfigError
from backflip.core.protocols import SimulatedRater
from backflip.core.records import Judged, Pair
from backflip.raters.kinds import KINDS
from backflip.raters.personas import Crowd, Persona, PersonaRater, SimulatedCrowd
from backflip.tasks import TASKS

WEIGHTS = {"warmth": 1.0, "form": 2.0}
PAIRS = [f"r1/fit/p{i}/0-1" for i in range(4000)]


def judged(warmth: float, form: float) -> Judged:
    return Judged(value=warmth + 2 * form, attributes={"warmth": warmth, "form": form})


GOOD, BAD = judged(0.9, 1.0), judged(0.1, 0.0)


def rater(seed: int = 7, **persona) -> PersonaRater:
    return PersonaRater(Persona(**persona), 1, WEIGHTS, seed)


def pair(pair_id: str, raters_wanted: int = 1) -> Pair:
    return Pair(
        id=pair_id,
        round=1,
        stream="fit",
        prompt_id="p",
        sample_a="a",
        sample_b="b",
        policy="v1",
        raters_wanted=raters_wanted,
    )


def shares(who: PersonaRater, a: Judged, b: Judged, *, shown="ab") -> dict[str, float]:
    votes = Counter(who.choose(p, a, b, shown=shown) for p in PAIRS)
    return {c: votes[c] / len(PAIRS) for c in ("a", "b", "tie")}


def test_a_rater_without_error_prefers_the_better_answer_on_either_side():
    assert shares(rater(error=0.0), GOOD, BAD) == {"a": 1, "b": 0, "tie": 0}
    assert shares(rater(error=0.0), BAD, GOOD) == {"a": 0, "b": 1, "tie": 0}


@pytest.mark.parametrize("error", [0.15, 0.4])
def test_votes_are_flipped_at_the_stated_rate(error: float):
    # 4000 votes: standard deviation of the share sqrt(e (1 - e) / 4000) < 0.0078; 3.3 of them
    found = shares(rater(error=error), GOOD, BAD)

    assert found["b"] == pytest.approx(error, abs=0.026)
    assert found["tie"] == 0


def test_a_gap_up_to_the_tie_width_is_a_tie_and_a_wider_one_is_not():
    who = rater(error=0.0, tie_width=0.25)

    assert who.choose("x", judged(0.5, 0.0), judged(0.25, 0.0), shown="ab") == "tie"
    assert who.choose("x", judged(0.5, 0.0), judged(0.24, 0.0), shown="ab") == "a"
    assert who.choose("x", judged(0.24, 0.0), judged(0.5, 0.0), shown="ab") == "b"


def test_an_error_turns_a_tie_into_either_side_by_lot():
    found = shares(rater(error=0.2), GOOD, GOOD)

    assert found["tie"] == pytest.approx(0.8, abs=0.02)
    assert found["a"] == pytest.approx(0.1, abs=0.016)
    assert found["b"] == pytest.approx(0.1, abs=0.016)


def test_a_persona_is_blind_to_what_it_does_not_see():
    warm, formal = judged(0.9, 0.0), judged(0.1, 1.0)

    assert rater(error=0.0, sees=("warmth",)).choose("x", warm, formal, shown="ab") == "a"
    assert rater(error=0.0, sees=("form",)).choose("x", warm, formal, shown="ab") == "b"
    assert rater(error=0.0, sees=("warmth",)).choose("x", warm, judged(0.9, 1.0), shown="ab") == "tie"


def test_what_is_seen_is_weighted_as_the_task_weights_it():
    # 1 * 0.5 + 2 * 0.25
    assert rater(sees=("warmth", "form")).utility(judged(0.5, 0.25)) == 1.0
    assert rater(sees=("form",)).utility(judged(0.5, 0.25)) == 0.5
    assert rater().utility(Judged(value=4.2, attributes={})) == 4.2


def test_a_biased_rater_takes_the_answer_shown_first():
    always = rater(error=0.0, position_bias=1.0)

    assert shares(always, BAD, GOOD, shown="ab")["a"] == 1
    assert shares(always, BAD, GOOD, shown="ba")["b"] == 1
    assert shares(rater(error=0.0, position_bias=0.3), BAD, GOOD, shown="ab")["a"] == pytest.approx(0.3, abs=0.025)


def test_without_bias_the_order_on_the_screen_changes_no_vote():
    who = rater(error=0.3)

    assert [who.choose(p, GOOD, BAD, shown="ab") for p in PAIRS[:200]] == [
        who.choose(p, GOOD, BAD, shown="ba") for p in PAIRS[:200]
    ]


def test_a_vote_depends_on_seed_pair_and_rater_and_not_on_the_order_of_calls():
    who, other, again = rater(error=0.5), PersonaRater(Persona(error=0.5), 2, WEIGHTS, 7), rater(seed=8, error=0.5)
    forth = {p: who.choose(p, GOOD, BAD, shown="ab") for p in PAIRS[:200]}
    back = {p: rater(error=0.5).choose(p, GOOD, BAD, shown="ab") for p in reversed(PAIRS[:200])}

    assert forth == back
    assert forth != {p: other.choose(p, GOOD, BAD, shown="ab") for p in PAIRS[:200]}
    assert forth != {p: again.choose(p, GOOD, BAD, shown="ab") for p in PAIRS[:200]}


def test_two_raters_err_independently():
    crowd = SimulatedCrowd(Crowd(), WEIGHTS, seed=3)
    both = sum(all(r.choose(p, GOOD, BAD, shown="ab") == "b" for r in crowd.raters_for(p, 2)) for p in PAIRS)

    # 4000 * 0.15^2 = 90, standard deviation 9.4
    assert both == pytest.approx(90, abs=31)


def test_the_default_crowd_is_six_raters_who_see_everything_and_err_in_15_percent():
    raters = SimulatedCrowd(Crowd(), WEIGHTS, seed=3).raters()

    assert [r.id for r in raters] == [f"crowd-{n}" for n in range(1, 7)]
    assert {r.kind for r in raters} == {"persona"}
    assert (Persona().error, Persona().sees) == (0.15, ())


def test_every_rater_gets_a_share_of_the_pairs():
    crowd = SimulatedCrowd(Crowd(), WEIGHTS, seed=3)
    counts = Counter(crowd.raters_for(p)[0].id for p in PAIRS)

    # 4000 / 6 = 667, standard deviation 24
    assert all(counts[r.id] == pytest.approx(667, abs=78) for r in crowd.raters())


def test_a_second_rater_is_somebody_else_and_the_first_stays():
    crowd = SimulatedCrowd(Crowd(), WEIGHTS, seed=3)

    for p in PAIRS[:100]:
        [one] = crowd.raters_for(p)
        first, second = crowd.raters_for(p, 2)
        assert one.id == first.id != second.id


def test_a_crowd_of_one_rates_every_pair_once():
    crowd = SimulatedCrowd(Crowd(personas=(Persona(count=1),)), WEIGHTS, seed=3)

    assert len(crowd.raters_for("x", 2)) == 1
    with pytest.raises(ValueError, match="at least one rater"):
        crowd.raters_for("x", 0)


def test_votes_are_complete_records_and_the_same_each_time():
    crowd = SimulatedCrowd(Crowd(personas=(Persona(error=0.0),)), WEIGHTS, seed=3)

    votes = crowd.votes(pair("r1/fit/p/0-1", raters_wanted=2), GOOD, BAD, at=12.0)

    assert [v.choice for v in votes] == ["a", "a"]
    assert [v.key for v in votes] == [f"r1/fit/p/0-1/{v.rater_id}" for v in votes]
    assert {(v.pair_id, v.at, v.latency_s) for v in votes} == {("r1/fit/p/0-1", 12.0, 0.0)}
    assert votes == crowd.votes(pair("r1/fit/p/0-1", raters_wanted=2), GOOD, BAD, at=12.0)


def test_the_order_on_the_screen_is_drawn_by_lot():
    crowd = SimulatedCrowd(Crowd(), WEIGHTS, seed=3)
    shown = Counter(crowd.votes(pair(p), GOOD, BAD, at=0.0)[0].shown for p in PAIRS[:1000])

    assert shown["ab"] == pytest.approx(500, abs=52)


def test_a_plan_describes_the_crowd():
    table = {"personas": [{"name": "expert", "sees": ["form"], "error": 0.05, "count": 2}, {"name": "lay"}]}

    crowd = SimulatedCrowd(build(Crowd, table, "plan.toml", "raters."), WEIGHTS, seed=3)

    names = [f"expert-{n}" for n in (1, 2)] + [f"lay-{n}" for n in range(1, 7)]
    assert [r.id for r in crowd.raters()] == names


@pytest.mark.parametrize(
    ("persona", "message"),
    [
        (
            {"error": 0.6},
            r"plan.toml: raters.personas\[0\].error = 0.6 does not fit.\nIt must be a number from 0",
        ),
        ({"error": -0.1}, r"personas\[0\].error = -0.1 does not fit"),
        ({"count": 0}, r"personas\[0\].count = 0 does not fit"),
        ({"tie_width": -1}, r"personas\[0\].tie_width = -1.0 does not fit"),
        ({"position_bias": 2}, r"personas\[0\].position_bias = 2.0 does not fit"),
        ({"sees": ["form", "form"]}, r"personas\[0\].sees = .* does not fit"),
        ({"name": " "}, r'personas\[0\].name = " " does not fit'),
        ({"erorr": 0.1}, r"unknown key raters.personas\[0\].erorr.\nDid you mean raters.personas\[0\].error"),
    ],
)
def test_a_persona_that_does_not_fit_is_refused(persona: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        build(Crowd, {"personas": [persona]}, "plan.toml", "raters.")


@pytest.mark.parametrize("personas", [[], [{"name": "x"}, {"name": "x"}]])
def test_a_crowd_of_nobody_or_of_namesakes_is_refused(personas: list[dict[str, str]]):
    with pytest.raises(ConfigError, match=r"raters.personas = .* does not fit"):
        build(Crowd, {"personas": personas}, "plan.toml", "raters.")


def test_an_attribute_the_task_does_not_have_is_refused():
    crowd = Crowd(personas=(Persona(), Persona(name="expert", sees=("form", "charm"))))

    with pytest.raises(ConfigError, match=r'personas\[1\].sees = "charm" does not fit.\nIt must be one of warm'):
        SimulatedCrowd(crowd, WEIGHTS, seed=3)


def test_a_doubtful_rater_errs_more_on_near_answers_and_one_below_0_prefers_the_worse():
    # odds exp(beta x gap): beta 2 and gap 0.5 give s(1) = 0.731, gap 1.5 s(3) = 0.953
    near, far = (judged(0.5, 0.0), judged(0.0, 0.0)), (judged(0.5, 0.5), judged(0.0, 0.0))
    doubtful = {"error": 0.0, "beta": 2.0, "tie_width": 0.0}

    assert shares(rater(**doubtful), *near)["a"] == pytest.approx(0.731, abs=0.023)
    assert shares(rater(**doubtful), *far)["a"] == pytest.approx(0.953, abs=0.012)
    assert shares(rater(**doubtful | {"beta": -2.0}), *near)["b"] == pytest.approx(0.731, abs=0.023)
    assert shares(rater(**doubtful | {"beta": 1e6}), *near)["a"] == 1


def test_a_lapse_is_a_vote_by_lot_also_on_a_tie_and_grows_with_fatigue():
    tired = {"error": 0.0, "lapse": 0.2, "fatigue": 0.3}

    assert shares(rater(**tired), GOOD, BAD)["b"] == pytest.approx(0.1, abs=0.016)
    assert shares(rater(**tired), GOOD, GOOD)["tie"] == pytest.approx(0.8, abs=0.021)
    in_round_3 = Counter(rater(**tired).choose(p, GOOD, BAD, shown="ab", round=3) for p in PAIRS)
    assert in_round_3["b"] / len(PAIRS) == pytest.approx(0.4, abs=0.026)  # half of 0.2 + 2 x 0.3


def test_a_persona_may_be_blind_to_an_attribute_and_like_another_more_than_it_is_worth():
    assert rater(blind=("form",)).utility(judged(0.5, 1.0)) == 0.5
    assert rater(likes={"warmth": 3.0}).utility(judged(0.5, 1.0)) == 4 * 0.5 + 2
    assert rater(sees=("form",), likes={"warmth": -1.0}).utility(judged(0.5, 1.0)) == -0.5 + 2
    assert rater(sees=("form", "warmth"), blind=("form",)).utility(judged(0.5, 1.0)) == 0.5


def test_a_short_sighted_rater_judges_what_is_left_of_an_answer():
    crowd = SimulatedCrowd(Crowd(personas=(Persona(error=0.0, myopia=0.5), Persona(name="all", error=0.0))), WEIGHTS, 3)
    asked = []

    def skim(sample: str, unread: float) -> Judged:
        asked.append((sample, unread))
        return BAD if sample == "a" else GOOD

    by = {}
    for i in range(40):
        [vote] = crowd.votes(pair(f"p{i}"), GOOD, BAD, at=0.0, skim=skim)
        by[vote.rater_id.split("-")[0]] = vote.choice
    assert by == {"crowd": "b", "all": "a"}
    assert set(asked) == {("a", 0.5), ("b", 0.5)}
    with pytest.raises(ValueError, match="unread"):
        [crowd.votes(pair(f"p{i}"), GOOD, BAD, at=0.0) for i in range(40)]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", [k for k in KINDS if k])
def test_every_ready_made_kind_sees_something_of_every_task_and_differs_from_all(kind: str, task: str):
    weights = TASKS[task].utility(None).weights
    plain, own = (SimulatedCrowd(Crowd(personas=(Persona(kind=k),)), weights, 3) for k in ("", kind))
    luck = [[((i * 7 + j * 11) % 13) / 12 for i in range(len(weights))] for j in range(60)]
    answers = [
        Judged(
            value=sum(weights[n] * x for n, x in zip(weights, row, strict=True)),
            attributes=dict(zip(weights, row, strict=True)),
        )
        for row in luck
    ]

    def said(crowd: SimulatedCrowd) -> list[str]:
        return [
            crowd.votes(pair(f"p{i}"), a, b, at=0.0, skim=lambda s, _, a=a, b=b: a if s == "a" else b)[0].choice
            for i, (a, b) in enumerate(pairwise(answers))
        ]

    assert said(own) != said(plain)
    assert {"a", "b"} <= set(said(own))


def test_a_kind_sets_what_stands_at_its_default_and_leaves_what_was_chosen():
    assert Persona(kind="careless").settled().lapse == 0.5
    assert Persona(kind="careless", lapse=0.3).settled().lapse == 0.3
    assert shares(rater(kind="adversarial"), GOOD, BAD)["b"] > 0.95
    assert rater(kind="form-blind").utility(judged(0.5, 1.0)) == 0.5
    assert rater(kind="flattered").utility(judged(0.5, 1.0)) == 5 * 0.5 + 2


def test_a_crowd_may_be_a_mixture_of_shares():
    crowd = Crowd(size=10, personas=(Persona(share=0.65), Persona(name="b", share=0.3), Persona(name="c", share=0.05)))

    assert crowd.counts() == (6, 3, 1)
    assert len(SimulatedCrowd(crowd, WEIGHTS, 3).raters()) == 10
    assert Crowd(size=2, personas=(Persona(share=0.99), Persona(name="b", share=0.01))).counts() == (1, 1)
    assert Crowd(personas=(Persona(count=4), Persona(name="b", count=1))).counts() == (4, 1)


@pytest.mark.parametrize(
    ("crowd", "message"),
    [
        ({"size": 9, "personas": [{"share": 0.5}, {"name": "b", "share": 0.4}]}, "shares sum to 1 .they sum to 0.9"),
        ({"size": 9, "personas": [{"share": 1.0}, {"name": "b"}]}, "none of them 0"),
        ({"size": 9, "personas": [{"name": "b"}]}, "they sum to 0"),
        (
            {"size": 1, "personas": [{"share": 0.5}, {"name": "b", "share": 0.5}]},
            "size = 1 does not fit.\nIt must be a whole number of at least 2",
        ),
        ({"personas": [{"share": 1.0}]}, "size = 0 .the default. does not fit"),
        ({"personas": [{"kind": "lazy"}]}, 'kind = "lazy" does not fit.\nIt must be one of "", "expert", "careless"'),
        ({"personas": [{"lapse": 1.5}]}, "lapse = 1.5 does not fit"),
        ({"personas": [{"myopia": 0.95}]}, "myopia = 0.95 does not fit"),
    ],
)
def test_a_mixture_that_does_not_fit_is_refused(crowd: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        build(Crowd, crowd, "plan.toml", "raters.")


@pytest.mark.parametrize("key", ["blind", "likes"])
def test_an_attribute_that_the_task_does_not_have_is_refused_wherever_it_is_named(key: str):
    named = ("charm",) if key == "blind" else {"charm": 1.0}
    with pytest.raises(ConfigError, match=rf'personas\[0\].{key} = "charm" does not fit.\nIt must be one of warm'):
        SimulatedCrowd(Crowd(personas=(Persona(**{key: named}),)), WEIGHTS, seed=3)


def test_a_persona_rater_is_a_simulated_rater():
    who: SimulatedRater = rater()

    assert who.id == "crowd-1"
