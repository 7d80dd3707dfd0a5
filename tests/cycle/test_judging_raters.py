"""What a run's votes say about those who cast them."""

from pathlib import Path

import pytest
from voting import World, against, blind, honest

from backflip.core.errors import DataError
from backflip.core.records import Rater
from backflip.cycle.budget import budget_of
from backflip.cycle.raters import RaterFigures, Raters, judge_raters

CROWD = {"ann": honest, "bob": honest, "cy": honest, "eve": against, "zed": blind}


def by_id(found: Raters) -> dict[str, RaterFigures]:
    return {r.id: r for r in found.raters}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("raters") / "run", CROWD, fit=300, held_out=60, doubles=60)


def test_honest_raters_stand_out_from_those_who_guess_and_those_who_lie(world: World) -> None:
    who = by_id(judge_raters(world.root))

    assert all(who[name].reliability.low > 0.6 for name in ("ann", "bob", "cy"))  # type: ignore[union-attr]
    assert who["eve"].reliability.high < 0.5  # type: ignore[union-attr]
    zed = who["zed"].reliability
    assert zed is not None
    assert zed.low < 0.6
    assert zed.value < min(who[n].reliability.value for n in ("ann", "bob", "cy"))  # type: ignore[union-attr]
    assert sum(r.votes for r in who.values()) == 420


def test_the_reward_without_a_rater_is_nearly_the_same_where_they_say_nothing(world: World) -> None:
    found = judge_raters(world.root)
    who = by_id(found)

    assert found.accuracy is not None
    assert found.accuracy.value > 0.5
    likeness = {name: r.without.correlation for name, r in who.items() if r.without}
    assert len(likeness) == 5
    assert likeness["zed"] > max(likeness["ann"], likeness["bob"], likeness["cy"])
    assert max(likeness.values()) < 1.0
    assert all(r.without.accuracy_change is not None for r in who.values() if r.without)


def test_a_rater_who_knows_more_makes_a_worse_reward_by_leaving(tmp_path: Path) -> None:
    world = World(tmp_path / "run", {"ann": honest, "y": blind, "z": blind}, fit=150, held_out=400, seed=1)
    who = by_id(judge_raters(world.root))

    assert who["ann"].without is not None
    change = {name: r.without.accuracy_change for name, r in who.items() if r.without}
    assert change["ann"] is not None
    assert change["ann"].high < 0
    assert all(c is not None and c.low < 0 < c.high for name, c in change.items() if name != "ann")


def test_agreement_is_counted_over_pairs_that_two_judged(world: World, tmp_path: Path) -> None:
    alpha = judge_raters(world.root).alpha

    assert alpha is not None
    assert -0.3 < alpha.value < 0.5
    assert judge_raters(World(tmp_path / "run", CROWD).root).alpha is None  # nobody judged what another had


def test_repeats_tell_how_consistent_a_rater_is_and_count_for_nothing_else(tmp_path: Path) -> None:
    world = World(tmp_path / "run", CROWD)
    before = by_id(judge_raters(world.root))
    with world.open() as store:
        pairs = {p.id: p for p in store.pairs()}
        said = [v for v in store.votes() if v.rater_id == "ann"][:10]
        other = {"a": "b", "b": "a"}
        again = [
            world.vote(
                pairs[v.pair_id], "ann", key=f"{v.key}/again", repeat=1,
                choice=v.choice if i < 7 else other[v.choice],
            )
            for i, v in enumerate(said)
        ]  # fmt: skip
        with store.begin() as tx:
            tx.cast(again)
    after = by_id(judge_raters(world.root))

    assert before["ann"].consistent is None
    assert after["ann"].consistent is not None
    assert (after["ann"].consistent.share.value, after["ann"].consistent.judged) == (0.7, 10)
    assert after["ann"].votes == before["ann"].votes
    assert after["ann"].reliability == before["ann"].reliability


def test_a_trusted_rater_is_the_measure_of_the_others(tmp_path: Path) -> None:
    world = World(tmp_path / "run", CROWD, doubles=60)
    who = by_id(judge_raters(world.root, gold="Ann"))

    assert who["ann"].gold is not None
    assert who["ann"].gold.share.value == 1.0
    judged = {name: r.gold.judged for name, r in who.items() if r.gold}
    assert judged.keys() == {"ann", "bob", "zed"}  # those who stand beside ann in the order of raters
    with pytest.raises(DataError, match='"Nobody" has not voted'):
        judge_raters(world.root, gold="Nobody")


def test_ties_and_the_side_of_the_screen_are_counted(tmp_path: Path) -> None:
    world = World(tmp_path / "run", {"ann": honest, "tia": lambda *_: 0.0})
    with world.open() as store, store.begin() as tx:
        tx.add_raters([Rater(id="idle", kind="person", name="Idle")])
    who = by_id(judge_raters(world.root))

    assert who["tia"].ties is not None
    assert who["tia"].ties.share.value == 1.0
    assert who["tia"].first is None
    assert who["ann"].ties is not None
    assert who["ann"].ties.share.value == 0.0
    assert who["ann"].first is not None
    assert 0.2 < who["ann"].first.share.value < 0.8
    assert "idle" not in who  # nothing is said of who said nothing


def test_one_rater_alone_is_told_without_a_reward_without_him(tmp_path: Path) -> None:
    [ann] = judge_raters(World(tmp_path / "run", {"ann": honest}).root).raters

    assert ann.without is None
    assert ann.reliability is not None


def test_a_runs_votes_tell_what_more_of_them_would_buy(world: World) -> None:
    found = budget_of(world.root, 100)
    half = budget_of(world.root, 50)

    assert (found.more, found.votes) == (100, 360)
    assert 0.5 < found.now < 1.0
    assert 0 <= found.gain.low <= found.gain.value <= found.gain.high < 0.3
    assert half.gain.value <= found.gain.value
    assert [n for n, _ in found.curve] == sorted(n for n, _ in found.curve)


def test_a_run_without_votes_is_told_so(tmp_path: Path) -> None:
    world = World(tmp_path / "run", {"ann": honest})
    world.root.joinpath("rounds", "r1", "features-rate.safetensors").unlink()

    with pytest.raises(DataError, match="no votes to judge raters by"):
        judge_raters(world.root)
