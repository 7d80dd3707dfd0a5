"""Votes and pairs over the API: what is stored, who is asked what, and what is refused."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from person import Person
from voters import open_pairs, run_with_pairs

from backflip.core.records import Pair
from backflip.web.serving import REPEAT_AFTER

LetIn = Callable[..., Person]
Serve = Callable[..., FastAPI]


def judge_all(person: Person, most: int = 100) -> list[tuple[str, int]]:
    """Judge whatever comes, one at a time; (pair, repeat) in order."""
    judged = []
    while len(judged) < most and (pairs := person.pairs(1)):
        assert person.vote(pairs[0]).status_code == 201
        judged.append((pairs[0]["pair"], pairs[0]["repeat"]))
    return judged


@pytest.mark.parametrize(("said", "meant"), [("left", "ab"), ("right", "ba")])
def test_left_and_right_are_stored_as_what_stood_there(ann: Person, said: str, meant: str) -> None:
    asked = ann.pairs(12)
    for pair in asked:
        ann.vote(pair, said)

    assert {p["shown"] for p in asked} == {"ab", "ba"}
    for pair, vote in zip(asked, ann.store.votes(), strict=True):
        stored = ann.store.pair(pair["pair"])
        assert stored is not None
        on_the_left = stored.sample_a if pair["shown"] == "ab" else stored.sample_b
        assert pair["left"]["sample"] == on_the_left
        assert vote.shown == pair["shown"]
        assert vote.choice == meant[0 if pair["shown"] == "ab" else 1]


def test_a_vote_is_stored_with_all_that_was_said(ann: Person, olga: Person) -> None:
    olga.post("/api/owner/guidelines", text="Be kind.")
    [pair] = ann.pairs(1)
    key = ann.key()
    told = ann.post(
        "/api/votes", key=key, pair=pair["pair"], choice="bad", strength=3, reason="both rude", latency_s=2.25,
        guidelines=1,
    )  # fmt: skip

    [vote] = ann.store.votes()
    assert (told.status_code, told.json()) == (201, {"key": key})
    assert (vote.key, vote.pair_id, vote.rater_id, vote.choice) == (key, pair["pair"], ann.id, "bad")
    assert (vote.strength, vote.reason, vote.latency_s, vote.guidelines) == (3, "both rude", 2.25, 1)
    assert vote.verdict == "tie"


def test_a_vote_sent_again_is_stored_once_and_another_one_is_refused(ann: Person, bob: Person) -> None:
    [pair, other] = ann.pairs(2)
    first = ann.vote(pair, key="a-key-of-mine")
    again = ann.vote(pair, key="a-key-of-mine")
    taken = ann.vote(other, key="a-key-of-mine")
    twice = ann.vote(pair)
    stolen = bob.vote(pair, key="a-key-of-mine")

    assert [a.status_code for a in (first, again, taken, twice, stolen)] == [201, 200, 409, 409, 409]
    assert len(ann.store.vote_log()) == 1


def test_a_vote_is_taken_back_by_its_rater_alone_and_the_pair_comes_back(ann: Person, bob: Person) -> None:
    [pair] = ann.pairs(1)
    ann.vote(pair, key="wrong-one")
    assert bob.post("/api/votes/wrong-one/retract", key="bobs-undo").status_code == 404
    assert ann.post("/api/votes/no-such-key/retract", key="no-such-undo").status_code == 404

    undone = [ann.post("/api/votes/wrong-one/retract", key="the-undo").status_code for _ in range(2)]
    assert undone == [201, 200]
    assert ann.store.votes() == []
    assert pair["pair"] in {p["pair"] for p in ann.pairs(1)}
    assert ann.vote(pair, "right").status_code == 201
    assert ann.post("/api/votes/the-undo/retract", key="undo-undo").status_code == 404


def test_each_pair_goes_to_as_many_people_as_it_wants_and_to_nobody_twice(let_in: LetIn, root: Path) -> None:
    people = [let_in(name) for name in ("Ann", "Bob", "Cy")]
    judged: list[tuple[str, str]] = []
    for turn in range(30):
        person = people[turn % 3]
        if pairs := person.pairs(1):
            person.vote(pairs[0])
            judged.append((pairs[0]["pair"], person.id))

    wanted = {p.id: p.raters_wanted for p in people[0].store.pairs()}
    assert Counter(pair for pair, _ in judged) == wanted
    assert len(set(judged)) == len(judged) == 13  # 12 pairs, one of them wants two
    assert people[0].get("/api/pairs").json()["waiting"].startswith("Everything is judged for now")


def test_a_pair_is_kept_for_whom_it_was_handed_to_and_offered_anew_when_they_are_gone(
    serve: Serve, tmp_path: Path
) -> None:
    app = serve(run_with_pairs(tmp_path / "run", 6), lease_s=0.4)
    ann, bob = Person(app, "rater", "Ann"), Person(app, "rater", "Bob")
    hers = {p["pair"] for p in ann.pairs(4)}
    his = {p["pair"] for p in bob.pairs(6)}
    assert (len(hers), len(his)) == (4, 2)
    assert not hers & his
    assert {p["pair"] for p in ann.pairs(4)} == hers  # she has loaded the page again

    time.sleep(0.5)
    assert len(hers & {p["pair"] for p in bob.pairs(6, after=",".join(his))}) == 4


def test_a_pair_that_was_taken_back_is_kept_for_whom_looks_at_it_again(ann: Person, bob: Person) -> None:
    pair = next(p for p in ann.pairs(12) if ann.store.pair(p["pair"]).raters_wanted == 1)  # type: ignore[union-attr]
    ann.vote(pair, key="wrong-one")
    ann.post("/api/votes/wrong-one/retract", key="the-undo")

    assert pair["pair"] not in {p["pair"] for p in bob.pairs(12)}
    assert pair["pair"] in {p["pair"] for p in ann.pairs(12)}


def test_a_pair_in_somebodys_hands_is_none_of_those_that_are_handed_out_next(ann: Person) -> None:
    hers = {p["pair"] for p in ann.pairs(4)}
    run = ann.client.app.state.run  # type: ignore[attr-defined]
    twice = {p.id for p in ann.store.pairs() if p.raters_wanted == 2}

    assert {p.id for p in run.desk.soon(12)} == {p.id for p in ann.store.pairs()} - hers | twice


def test_pairs_at_hand_are_not_told_again(ann: Person) -> None:
    first = ann.pairs(4)
    more = ann.pairs(4, after=",".join(p["pair"] for p in first))

    assert len({p["pair"] for p in first + more}) == 8


def test_pairs_come_back_to_the_same_person_after_others(serve: Serve, tmp_path: Path) -> None:
    app = serve(run_with_pairs(tmp_path / "run", 40, repeat_share=0.5))
    ann = Person(app, "rater", "Ann")
    judged = judge_all(ann)
    places = {entry: n for n, entry in enumerate(judged)}
    again = [pair for pair, repeat in judged if repeat]

    assert len(judged) == len(set(judged))
    assert 5 <= len(again) <= 25
    for pair in again:
        assert places[pair, 1] - places[pair, 0] > REPEAT_AFTER
    assert len(ann.store.votes()) == 40
    assert len(ann.store.votes(repeats=True)) == 40 + len(again)
    assert ann.vote({"pair": judged[0][0], "repeat": 1}).status_code == 409  # judged again, or never planned


def test_held_out_pairs_are_asked_too_and_the_newest_round_first(serve: Serve, tmp_path: Path) -> None:
    app = serve(run_with_pairs(tmp_path / "run", 4))
    ann = Person(app, "rater", "Ann")
    assert len(ann.pairs(1)) == 1
    open_pairs(ann.store, 3, stream="random")
    open_pairs(ann.store, 3, stream="reference")
    open_pairs(ann.store, 2, round=2)
    app.state.run._at = float("-inf")  # as if a second had passed

    judged = [pair for pair, _ in judge_all(ann)]
    assert len(judged) == 12
    assert {name.split("/")[0] for name in judged[1:3]} == {"r2"}  # the first was handed out before
    assert {name.split("/")[1] for name in judged} == {"fit", "random", "reference"}


def test_a_server_that_is_started_anew_knows_what_was_judged(serve: Serve, root: Path) -> None:
    app = serve(root)
    ann = Person(app, "rater", "Ann")
    judged = {p["pair"] for p in ann.pairs(5)}
    for pair in ann.pairs(5):
        ann.vote(pair)
    app.state.run.close()
    ann.client.app = serve(root)
    ann.client._transport.app = ann.client.app  # type: ignore[attr-defined]

    assert not judged & {p["pair"] for p in ann.pairs(12)}
    assert ann.get("/api/pairs").json()["progress"]["mine"] == 5


def test_a_pair_of_the_chat_takes_a_vote_from_anybody(ann: Person) -> None:
    one = ann.store.pairs()[0]
    with ann.store.begin() as tx:
        tx.add_pairs([Pair(**{**vars(one), "id": "chat/ab12", "raters_wanted": 0})])

    assert "chat/ab12" not in {p["pair"] for p in ann.pairs(12)}
    assert ann.vote("chat/ab12", "right").status_code == 201
    assert [(v.pair_id, v.choice, v.shown) for v in ann.store.votes()] == [("chat/ab12", "b", "ab")]


def test_an_answer_may_be_called_harmful_once(ann: Person) -> None:
    [pair] = ann.pairs(1)
    sample = pair["left"]["sample"]
    said = [ann.post("/api/flags", key="flag-it-1", sample=sample, reason="rude").status_code for _ in range(2)]

    assert said == [201, 200]
    assert [(f.sample_id, f.reason) for f in ann.store.people.flags()] == [(sample, "rude")]
    assert ann.post("/api/flags", key="flag-it-2", sample="none").status_code == 404


def test_a_half_of_a_character_is_told_as_an_escape(serve: Serve, tmp_path: Path) -> None:
    ann = Person(serve(run_with_pairs(tmp_path / "run", 2, text="half \ud83d")), "rater", "Ann")
    told = ann.get("/api/pairs?count=1")

    assert told.status_code == 200
    assert rb"half \ud83d" in told.content


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"pair": "none"}, 404),
        ({"choice": "a"}, 422),
        ({"choice": "retract"}, 422),
        ({"strength": 4}, 422),
        ({"latency_s": -1}, 422),
        ({"key": "short"}, 422),
        ({"key": "r1/fit/x/ann"}, 422),
        ({"repeat": 1}, 409),
        ({"reason": "x" * 2001}, 422),
        ({"rater": "bob"}, 422),
        ({"guidelines": 2**40}, 422),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(ann: Person, change: dict[str, object], status: int) -> None:
    [pair] = ann.pairs(1)
    told = ann.post(
        "/api/votes", **({"key": "a-good-key", "pair": pair["pair"], "choice": "left", "latency_s": 1} | change)
    )

    assert told.status_code == status, told.text
    assert set(told.json()) == {"error"}
    assert told.json()["error"].endswith(".")
    assert "\n" not in told.json()["error"]
    assert ann.store.vote_log() == []
