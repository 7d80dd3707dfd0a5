import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from backflip.core.errors import DataError
from backflip.core.records import Metric, ModelVersion, Pair, Prompt, Rater, Sample, Vote
from backflip.store import Store

Ballot = Callable[..., Vote]


def sample(name: str, **changes: object) -> Sample:
    plain = Sample(
        id=name, round=1, purpose="rate", prompt_id="q", policy="v0", index=0, text="Hi.", ended=True, length=2,
        artefact="a", row=0,
    )  # fmt: skip
    return replace(plain, **changes)


def test_every_record_comes_back_as_it_went_in(store: Store):
    prompt = Prompt(id="q", split="monitor", text="Grüße, 世界 🙂\n", topic="greeting", form="one sentence")
    person, persona = Rater(id="ann", kind="person", name="Ann"), Rater(id="p0", kind="persona", name="Strict")
    one = sample("s1", prompt_id="q", round=3, purpose="final", policy="v7", index=2, text="", ended=False, length=0)
    two = sample("s2", artefact="rounds/3/final.safetensors", row=17)
    pair = Pair(
        id="p", round=3, stream="reference", prompt_id="q", sample_a="s1", sample_b="s2", policy="v7",
        probability=0.1 + 0.2, raters_wanted=2,
    )  # fmt: skip
    vote = Vote(
        key="k", pair_id="p", rater_id="ann", choice="tie", shown="ba", latency_s=0.1, at=1763899200.123456,
        strength=3, reason="both are kind",
    )  # fmt: skip
    undo = replace(vote, key="u", choice="retract", retracts="k", strength=None, reason="")
    base = ModelVersion(id="v0", kind="base", round=0, parent=None, path="/models/small")
    tuned = ModelVersion(id="v7", kind="policy", round=3, parent="v0", path="rounds/3/policy")
    metric = Metric(round=3, step="optimise", tick=4, name="objective/kl", value=1e-300, low=-0.5, high=math.inf)
    with store.begin() as tx:
        tx.start_round(3, "v0", 1763899200.5)
        tx.add_prompts([prompt])
        tx.add_raters([person, persona])
        tx.add_samples([one, two])
        tx.add_pairs([pair])
        assert tx.cast([vote, undo]) == 2
        tx.add_model(base)
        tx.add_model(tuned)
        tx.add_metrics([metric])
        tx.mark_done(3, "sample", 61.25)
        tx.set_note("seed", "7")

    assert store.prompts() == [prompt]
    assert store.raters() == [person, persona]
    assert store.samples() == [two, one]  # round 1 before round 3
    assert store.pairs() == [pair]
    assert store.vote_log() == [replace(vote, seq=1), replace(undo, seq=2)]
    assert store.models() == [base, tuned]
    assert store.metrics() == [metric]
    assert store.rounds() == [3]
    assert store.round_policy(3) == "v0"
    assert store.seconds(3) == {"sample": 61.25}
    assert store.steps_done(3) == {"sample"}
    assert store.note("seed") == "7"
    assert store.note("another") is None


def test_what_was_said_before_a_prompt_is_kept(store: Store):
    said = (("system", "Be brief."), ("user", "Salut \u2028 \x00!"), ("assistant", "Hi."))
    with store.begin() as tx:
        tx.add_prompts([Prompt(id="long", split="train", text="Again.", history=said)])

    assert [p.history for p in store.prompts() if p.id == "long"] == [said]


def test_prompts_keep_the_order_of_their_file(store: Store):
    records = [Prompt(id=i, split=s, text="?") for i, s in (("b", "train"), ("a", "final"), ("c", "train"))]
    with store.begin() as tx:
        tx.add_prompts(records[:2])
    with store.begin() as tx:
        tx.add_prompts(records)

    assert store.prompts() == records
    assert [p.id for p in store.prompts("train")] == ["b", "c"]
    assert store.prompts("monitor") == []


def test_samples_are_filtered_and_sorted_by_code_point_whatever_order_they_came_in(store: Store):
    with store.begin() as tx:
        tx.add_prompts([Prompt(id=i, split="train", text="?") for i in ("q", "Q", "é")])
        tx.add_samples([
            sample("s1", prompt_id="é"),
            sample("s2", prompt_id="q", index=10),
            sample("s3", prompt_id="q", index=9),
            sample("s4", prompt_id="Q", index=11),
            sample("s5", round=0, policy="v9"),
            sample("s6", purpose="final"),
        ])  # fmt: skip

    assert [s.id for s in store.samples()] == ["s5", "s6", "s4", "s3", "s2", "s1"]
    assert [s.id for s in store.samples(round=1, purpose="rate")] == ["s4", "s3", "s2", "s1"]
    assert [s.id for s in store.samples(policy="v9")] == ["s5"]


def test_more_samples_can_be_asked_for_than_sql_takes_in_a_list(store: Store):
    with store.begin() as tx:
        tx.add_prompts([Prompt(id="q", split="train", text="?")])
        tx.add_samples([sample(f"s{i}") for i in range(3)])
    ids = ["s2", "s0", "s2"]

    assert list(store.samples_by_id(ids)) == ["s2", "s0"]
    assert store.samples_by_id([]) == {}
    with pytest.raises(DataError, match=r"no sample 'x0' \(70000 of 70002"):
        store.samples_by_id([f"x{i}" for i in range(70_000)] + ids)


def test_pairs_are_filtered_by_round_and_stream(voted: Store):
    assert [p.id for p in voted.pairs()] == ["p1", "p2", "p3"]
    assert [p.id for p in voted.pairs(round=1, stream="random")] == ["p3"]
    assert voted.pairs(round=2) == []


def test_a_retracted_vote_and_its_retraction_are_not_in_force(voted: Store, ballot: Ballot):
    with voted.begin() as tx:
        tx.cast([
            ballot("k1", "p1", "ann"),
            ballot("k2", "p2", "bob", "b"),
            ballot("u1", "p1", "ann", "retract", retracts="k1"),
            ballot("k3", "p1", "ann", "tie"),
            ballot("k4", "p3", "ann", "skip"),
        ])  # fmt: skip

    assert [(v.key, v.seq) for v in voted.votes()] == [("k2", 2), ("k3", 4), ("k4", 5)]
    assert [v.key for v in voted.votes(round=1, stream="fit")] == ["k2", "k3"]
    assert [v.key for v in voted.votes(stream="random")] == ["k4"]
    assert voted.votes(round=2) == []
    assert [v.key for v in voted.vote_log()] == ["k1", "k2", "u1", "k3", "k4"]


def test_a_watermark_shows_the_votes_as_they_were(voted: Store, ballot: Ballot):
    with voted.begin() as tx:
        tx.cast([ballot("k1", "p1", "ann"), ballot("k2", "p2", "bob")])
        assert tx.set_watermark(1) == 2
    with voted.begin() as tx:
        tx.cast([ballot("u1", "p1", "ann", "retract", retracts="k1"), ballot("k3", "p1", "ann", "b")])

    # the later retraction (seq 3) does not reach back; at 3 it does
    assert [v.key for v in voted.votes(upto=2)] == ["k1", "k2"]
    assert [v.key for v in voted.votes(upto=3)] == ["k2"]
    assert [v.key for v in voted.votes(upto=4)] == ["k2", "k3"]
    assert voted.votes(upto=0) == []


def test_a_pair_wants_as_many_raters_as_asked_less_those_who_voted(voted: Store, ballot: Ballot):
    def wanting() -> dict[str, int]:
        return {pair.id: missing for pair, missing in voted.wanting()}

    assert wanting() == {"p1": 1, "p2": 2, "p3": 1}
    with voted.begin() as tx:
        tx.cast([ballot("k1", "p1", "ann"), ballot("k2", "p2", "ann"), ballot("k3", "p1", "bob")])
    assert wanting() == {"p2": 1, "p3": 1}
    with voted.begin() as tx:
        tx.cast([ballot("u2", "p2", "ann", "retract", retracts="k2")])
    assert wanting() == {"p2": 2, "p3": 1}
    with voted.begin() as tx:
        tx.cast([ballot("k4", "p2", "ann"), ballot("k5", "p2", "bob")])
    assert wanting() == {"p3": 1}
    assert [pair.id for pair, _ in voted.wanting(1)] == ["p3"]
    assert voted.wanting(2) == []


def test_a_round_that_has_not_started_has_no_policy_and_no_watermark(voted: Store):
    assert voted.watermark(1) is None
    assert voted.watermark(2) is None
    assert voted.steps_done(2) == set()
    with pytest.raises(DataError, match=r"Round 2 has not started.\nStarted so far: \[1\]"):
        voted.round_policy(2)


def test_models_come_oldest_first_by_kind(store: Store):
    with store.begin() as tx:
        for name, kind in (("v9", "policy"), ("r0", "reward"), ("v10", "policy")):
            tx.add_model(ModelVersion(id=name, kind=kind, round=1, parent=None, path="p"))

    assert [m.id for m in store.models()] == ["v9", "r0", "v10"]
    assert [m.id for m in store.models("policy")] == ["v9", "v10"]


def test_metrics_are_filtered_and_come_by_round_step_tick_and_name(store: Store):
    places = [
        (2, "fit", 0, "b"),
        (1, "optimise", 10, "a"),
        (1, "optimise", 9, "b"),
        (1, "fit", 0, "z"),
        (2, "fit", 0, "a"),
    ]
    with store.begin() as tx:
        tx.add_metrics([Metric(round=r, step=s, tick=t, name=n, value=1.0) for r, s, t, n in places])

    def found(**filters: object) -> list[tuple[int, str, int, str]]:
        return [(m.round, m.step, m.tick, m.name) for m in store.metrics(**filters)]

    assert found() == [places[3], places[2], places[1], places[4], places[0]]
    assert found(round=1, step="optimise") == [places[2], places[1]]
    assert found(name="b") == [places[2], places[0]]
