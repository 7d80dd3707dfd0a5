from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa

from backflip.core.errors import DataError
from backflip.core.records import Metric, ModelVersion, Pair, Prompt, Rater, Sample, Vote
from backflip.store import Store, Tx

Ballot = Callable[..., Vote]


def resend(tx: Tx, voted: Store) -> None:
    tx.add_prompts(voted.prompts())
    tx.add_raters(voted.raters())
    tx.add_samples(voted.samples())
    tx.add_pairs(voted.pairs())
    tx.start_round(1, "v0", 2000.0)


def test_what_a_resumed_step_sends_again_is_stored_once(voted: Store):
    before = (voted.prompts(), voted.raters(), voted.samples(), voted.pairs(), voted.rounds())
    with voted.begin() as tx:
        resend(tx, voted)
        tx.add_model(ModelVersion(id="v0", kind="base", round=0, parent=None, path="p"))
        tx.add_model(ModelVersion(id="v0", kind="base", round=0, parent=None, path="p"))
        tx.mark_done(1, "sample", 10.0)
        tx.mark_done(1, "sample", 99.0)

    assert (voted.prompts(), voted.raters(), voted.samples(), voted.pairs(), voted.rounds()) == before
    assert [m.id for m in voted.models()] == ["v0"]
    assert voted.seconds(1) == {"sample": 10.0}


@pytest.mark.parametrize(
    ("send", "told"),
    [
        (lambda tx, s: tx.add_prompts([replace(s.prompts()[0], text="?")]), "prompt 'q' with another text"),
        (lambda tx, s: tx.add_raters([replace(s.raters()[0], name="Eve")]), "rater 'ann' with another name"),
        (lambda tx, s: tx.add_samples([replace(s.samples()[0], ended=False)]), "sample 's1' with another ended"),
        (lambda tx, s: tx.add_pairs([replace(s.pairs()[0], probability=0.5)]), "pair 'p1' with another probability"),
        (lambda tx, s: tx.start_round(1, "v1", 1.0), "Round 1 has started with policy v0; it cannot start with v1"),
    ],
    ids=["prompt", "rater", "sample", "pair", "round"],
)
def test_what_is_stored_never_changes(voted: Store, send: Callable[[Tx, Store], None], told: str):
    with pytest.raises(DataError, match=told), voted.begin() as tx:
        send(tx, voted)


def test_two_contents_for_one_id_in_one_call_are_refused(store: Store):
    with pytest.raises(DataError, match="another text"), store.begin() as tx:
        tx.add_prompts([Prompt(id="q", split="train", text="a"), Prompt(id="q", split="train", text="b")])

    assert store.prompts() == []


def test_a_refused_call_leaves_the_rest_of_its_transaction_whole(voted: Store, ballot: Ballot):
    new = Prompt(id="new", split="train", text="?")
    with voted.begin() as tx:
        tx.set_note("before", "kept")
        with pytest.raises(DataError, match="another text"):
            tx.add_prompts([new, replace(voted.prompts()[0], text="changed")])
        with pytest.raises(DataError, match="no pair"):
            tx.cast([ballot("k1", "p1", "ann"), ballot("k2", "p9", "ann")])
        tx.set_note("after", "kept")

    assert [p.id for p in voted.prompts()] == ["q"]
    assert voted.vote_log() == []
    assert [voted.note("before"), voted.note("after")] == ["kept", "kept"]


@pytest.mark.parametrize(
    "send",
    [
        lambda tx, s: tx.add_samples([replace(s.samples()[0], id="new", prompt_id="none")]),
        lambda tx, s: tx.add_pairs([replace(s.pairs()[0], id="new", sample_a="none")]),
        lambda tx, s: tx.add_pairs([replace(s.pairs()[0], id="new", sample_b="s1")]),
        lambda tx, s: tx.add_pairs([replace(s.pairs()[0], id="new", probability=0.0)]),
        lambda tx, s: tx.add_pairs([replace(s.pairs()[0], id="new", raters_wanted=-1)]),
        lambda tx, s: tx.add_prompts([replace(s.prompts()[0], id="new", split="test")]),
        lambda tx, s: tx.mark_done(2, "fit", 1.0),
        lambda tx, s: tx.set_watermark(2),
    ],
    ids=["prompt", "sample", "one sample twice", "probability", "nobody", "split", "step of no round", "no round"],
)
def test_what_does_not_fit_is_refused_in_plain_words(voted: Store, send: Callable[[Tx, Store], None]):
    with pytest.raises(DataError, match=r"The store refused a|has not started"), voted.begin() as tx:
        send(tx, voted)


def test_the_newest_metric_and_note_count(store: Store):
    metric = Metric(round=1, step="fit", tick=0, name="accuracy", value=0.5)
    with store.begin() as tx:
        tx.add_metrics([metric, replace(metric, tick=1)])
        tx.add_metrics([replace(metric, value=0.75, low=0.7, high=0.8)])
        tx.set_note("k", "old")
        tx.set_note("k", "new")

    assert store.metrics() == [replace(metric, value=0.75, low=0.7, high=0.8), replace(metric, tick=1)]
    assert store.note("k") == "new"


def test_nothing_to_add_is_fine(store: Store):
    with store.begin() as tx:
        tx.add_prompts([])
        tx.add_metrics([])
        assert tx.cast([]) == 0


def test_a_key_cast_again_is_stored_once(voted: Store, ballot: Ballot):
    first = ballot("k1", "p1", "ann")
    with voted.begin() as tx:
        assert tx.cast([first, first]) == 1
    with voted.begin() as tx:  # the browser sent it again: another time, the same vote
        assert tx.cast([replace(first, at=9.0), ballot("k2", "p2", "ann")]) == 1

    assert [(v.key, v.seq, v.at) for v in voted.vote_log()] == [("k1", 1, 5.0), ("k2", 2, 5.0)]


def test_a_retracted_vote_sent_again_stays_retracted(voted: Store, ballot: Ballot):
    first, undo = ballot("k1", "p1", "ann"), ballot("u1", "p1", "ann", "retract", retracts="k1")
    with voted.begin() as tx:
        tx.cast([first, undo])
    with voted.begin() as tx:
        assert tx.cast([first, undo]) == 0

    assert voted.votes() == []


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (("n", "p9", "ann"), "no pair 'p9'.\n.* another run's"),
        (("n", "p1", "eve"), "no rater 'eve'"),
        (("n", "p1", "ann", "b"), "'ann' has already voted on pair 'p1'"),
        (("k1", "p1", "ann", "b"), "key 'k1' is taken"),
        (("n", "p1", "bob", "retract", "k1"), "another rater"),
        (("n", "p1", "ann", "retract", "k9"), "retracts 'k9', which the store does not have"),
        (("n", "p3", "ann", "retract", "k1"), "names pair 'p3', but retracts a vote on 'p1'"),
        (("n", "p2", "ann", "retract", "u2"), "retracts a retraction"),
        (("n", "p2", "ann", "retract", "k2"), "retracted already"),
        (("n", "p3", "ann", "retract"), "goes with the choice"),
        (("n", "p3", "ann", "a", "k1"), "goes with the choice"),
        (("n", "p3", "ann", "c"), "refused a vote"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("together", [True, False], ids=["in one call", "later"])
def test_a_ballot_that_breaks_a_rule_is_refused_whole(
    voted: Store, ballot: Ballot, bad: tuple[str, ...], told: str, together: bool
):
    good = [ballot("k1", "p1", "ann"), ballot("k2", "p2", "ann"), ballot("u2", "p2", "ann", "retract", "k2")]
    if not together:
        with voted.begin() as tx:
            tx.cast(good)
    with pytest.raises(DataError, match=told), voted.begin() as tx:
        tx.cast([*good, ballot(*bad)])

    assert len(voted.vote_log()) == (0 if together else 3)


@pytest.mark.parametrize("change", [{"shown": "aa"}, {"strength": 4}, {"strength": 0}])
def test_values_out_of_range_are_refused(voted: Store, ballot: Ballot, change: dict[str, object]):
    with pytest.raises(DataError, match="refused a vote"), voted.begin() as tx:
        tx.cast([replace(ballot("k1", "p1", "ann"), **change)])


def test_after_a_retraction_the_rater_may_vote_again(voted: Store, ballot: Ballot):
    with voted.begin() as tx:
        tx.cast([ballot("k1", "p1", "ann"), ballot("u1", "p1", "ann", "retract", "k1")])
    with voted.begin() as tx:
        assert tx.cast([ballot("k2", "p1", "ann", "b"), ballot("u2", "p1", "ann", "retract", "k2")]) == 2
        assert tx.cast([ballot("k3", "p1", "ann", "tie")]) == 1

    assert [(v.key, v.choice) for v in voted.votes()] == [("k3", "tie")]


def test_a_watermark_is_set_once(voted: Store, ballot: Ballot):
    with voted.begin() as tx:
        assert tx.set_watermark(1) == 0  # no votes yet
        tx.start_round(2, "v1", 1.0)
        tx.cast([ballot("k1", "p1", "ann"), ballot("k2", "p2", "ann")])
        assert tx.set_watermark(2) == 2
    with voted.begin() as tx:
        tx.cast([ballot("k3", "p3", "ann")])
        assert [tx.set_watermark(1), tx.set_watermark(2)] == [0, 2]

    assert [voted.watermark(1), voted.watermark(2)] == [0, 2]


@pytest.mark.parametrize(
    "sql",
    ["UPDATE votes SET choice = 'b'", "UPDATE votes SET seq = 9", "DELETE FROM votes", "the whole table"],
)
def test_the_database_itself_refuses_to_change_votes(voted: Store, ballot: Ballot, sql: str):
    with voted.begin() as tx:
        tx.cast([ballot("k1", "p1", "ann")])
    engine = voted._database.engine
    if sql == "the whole table":
        lite = engine.dialect.name == "sqlite"
        sql = "INSERT OR REPLACE INTO votes SELECT * FROM votes" if lite else "TRUNCATE votes CASCADE"

    with pytest.raises(sa.exc.DBAPIError, match="votes are append-only"), engine.begin() as connection:
        connection.exec_driver_sql(sql)

    assert [(v.seq, v.choice) for v in voted.vote_log()] == [(1, "a")]


def test_the_store_offers_no_way_to_change_or_remove_a_vote():
    offered = {name for name in (*vars(Tx), *vars(Store)) if not name.startswith("_")}

    assert {name for name in offered if "vote" in name or "cast" in name} == {"cast", "vote", "votes", "vote_log"}
    assert not {name for name in offered if name.startswith(("update", "delete", "remove", "edit"))}


def test_many_votes_fit_in_one_call(voted: Store, ballot: Ballot):
    template = voted.pairs()[0]
    records = [replace(template, id=f"many{i:04}") for i in range(1200)]
    with voted.begin() as tx:
        tx.add_pairs(records)
        assert tx.cast([ballot(f"k{p.id}", p.id, "ann") for p in records]) == 1200

    assert [v.seq for v in voted.votes()] == list(range(1, 1201))


def test_records_are_accepted_by_their_own_method_only(store: Store):
    # each column bears the name of a field, so a record that grows without a migration is noticed here
    from dataclasses import fields

    from backflip.store import tables

    kinds = {"prompts": Prompt, "raters": Rater, "samples": Sample, "pairs": Pair, "votes": Vote}
    for name, kind in {**kinds, "models": ModelVersion, "metrics": Metric}.items():
        columns = {column.name for column in tables.metadata.tables[name].columns} - {"place"}
        assert columns == {f.name for f in fields(kind)}, name
