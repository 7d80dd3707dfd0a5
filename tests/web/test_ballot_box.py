"""Votes that are cast together: one that breaks a rule is told so, and takes no other with it."""

from dataclasses import replace

import pytest
from person import Person

from backflip.core.errors import DataError
from backflip.core.records import Vote
from backflip.web.box import BallotBox


def test_a_bad_vote_leaves_those_beside_it_whole(ann: Person) -> None:
    box = BallotBox(ann.store)
    pairs = [p.id for p in ann.store.pairs()][:3]
    good = [Vote(key=f"k{p}", pair_id=p, rater_id=ann.id, choice="a", shown="ab", latency_s=1.0, at=1.0) for p in pairs]
    bad = replace(good[0], key="bad", pair_id="none")
    outcomes = box._together([([v], None) for v in (good[0], bad, good[1])])  # type: ignore[list-item]

    assert (outcomes[0], outcomes[2]) == (True, True)
    assert isinstance(outcomes[1], DataError)
    assert [box.cast([good[0]]).result(10), box.cast([good[2]]).result(10)] == [False, True]
    with pytest.raises(DataError, match="no pair 'none'"):
        box.cast([bad]).result(10)
    box.close()
    assert [v.pair_id for v in ann.store.votes()] == pairs
