import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from backflip.core.errors import DataError
from backflip.core.records import Prompt, Vote
from backflip.store import Store

Ballot = Callable[..., Vote]
Spawn = Callable[..., subprocess.Popen[str]]

CAST = """
import sys
from backflip.core.records import Vote
from backflip.store import open_store

where, me = sys.argv[1:]
with open_store(where) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for pair in store.pairs(stream="fit"):
        def vote(rater):
            return Vote(key=f"{pair.id}-{rater}", pair_id=pair.id, rater_id=rater, choice="a", shown="ab",
                        latency_s=1.0, at=5.0)
        with store.begin() as tx:
            new = tx.cast([vote("both"), vote(me)])
"""

DIE = """
import sys
from backflip.core.records import Prompt, Vote
from backflip.store import open_store

with open_store(sys.argv[1]) as store:
    vote = dict(pair_id="p1", rater_id="ann", choice="a", shown="ab", latency_s=1.0, at=5.0)
    with store.begin() as tx:
        tx.add_prompts([Prompt(id="whole", split="train", text="?")])
    with store.begin() as tx:
        tx.add_prompts([Prompt(id=f"half{i}", split="train", text="x" * 5000) for i in range(300)])
        tx.cast([Vote(key="half", **vote)])
        print("midway", flush=True)
        sys.stdin.readline()
"""


def wait(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() != ""


def test_two_processes_cast_at_once_and_every_vote_is_there_once(voted: Store, made: str, spawn: Spawn):
    template = voted.pairs()[0]
    names = [f"n{i:02}" for i in range(30)]
    with voted.begin() as tx:
        tx.add_raters([replace(voted.raters()[0], id=name) for name in ("one", "two", "both")])
        tx.add_pairs([replace(template, id=name) for name in names])
    children = [spawn(CAST, made, name) for name in ("one", "two")]
    for child in children:
        wait(child)
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()

    moments = 0
    while any(child.poll() is None for child in children):
        # whenever one looks, the log is 1, 2, ... n: nothing appears later below what was seen
        seen = [vote.seq for vote in voted.vote_log()]
        assert seen == list(range(1, len(seen) + 1))
        moments += 0 < len(seen) < 96
    assert [child.returncode for child in children] == [0, 0]
    assert moments > 0

    keys = [vote.key for vote in voted.vote_log()]
    fit = ["p1", "p2", *names]
    assert sorted(keys) == sorted(f"{pair}-{rater}" for pair in fit for rater in ("one", "two", "both"))


def test_a_vote_in_flight_lands_above_a_watermark_set_meanwhile(voted: Store, ballot: Ballot):
    marks: list[int] = []

    def mark() -> None:
        with voted.begin() as tx:
            marks.append(tx.set_watermark(1))

    with voted.begin() as tx:
        tx.cast([ballot("k1", "p1", "ann")])
    thread = threading.Thread(target=mark)
    with voted.begin() as tx:
        tx.cast([ballot("k2", "p2", "ann")])
        thread.start()
        thread.join(timeout=0.3)
        visible = voted.votes(upto=marks[0]) if marks else None
    thread.join()

    # PostgreSQL sets the mark before k2 is committed, SQLite after it; both hold for good
    assert len(voted.votes(upto=marks[0])) == marks[0]
    assert visible is None or voted.votes(upto=marks[0]) == visible


def test_two_transactions_number_their_votes_in_the_order_of_their_commits(voted: Store, ballot: Ballot):
    started = threading.Event()

    def second() -> None:
        started.wait()
        with voted.begin() as tx:
            tx.cast([ballot("late", "p1", "bob")])

    thread = threading.Thread(target=second)
    thread.start()
    with voted.begin() as tx:
        tx.cast([ballot("early", "p1", "ann")])
        started.set()
        thread.join(timeout=0.3)
        tx.cast([ballot("early too", "p2", "ann")])
    thread.join()

    assert [v.key for v in voted.vote_log()] == ["early", "early too", "late"]


def test_a_rater_cannot_vote_twice_from_two_windows(voted: Store, ballot: Ballot):
    outcome: list[str] = []
    started = threading.Event()

    def second() -> None:
        started.wait()
        try:
            with voted.begin() as tx:
                tx.cast([ballot("k2", "p1", "ann", "b")])
            outcome.append("stored")
        except DataError:
            outcome.append("refused")

    thread = threading.Thread(target=second)
    thread.start()
    with voted.begin() as tx:
        tx.cast([ballot("k1", "p1", "ann")])
        started.set()
        thread.join(timeout=0.3)
    thread.join()

    assert outcome == ["refused"]
    assert [v.key for v in voted.votes()] == ["k1"]


@pytest.mark.parametrize("hold", [True, False], ids=["midway", "after the commit"])
def test_a_killed_transaction_leaves_all_or_nothing(voted: Store, made: str, spawn: Spawn, ballot: Ballot, hold: bool):
    child = spawn(DIE, made)
    wait(child)
    if hold:
        child.kill()  # SIGKILL
    child.communicate("go\n" if not hold else None)

    prompts = [prompt.id for prompt in voted.prompts()]
    assert prompts[:2] == ["q", "whole"]
    assert len(prompts) == (2 if hold else 302)
    assert [v.key for v in voted.votes()] == ([] if hold else ["half"])
    with voted.begin() as tx:  # the dead process holds no lock, and its number is free
        tx.add_prompts([Prompt(id="half0", split="train", text="x" * 5000)])
        assert tx.cast([ballot("next", "p3", "ann")]) == 1
    assert [v.seq for v in voted.votes()] == ([1] if hold else [1, 2])
