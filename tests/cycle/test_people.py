"""A run that people rate: it waits for them, goes on by itself, and late votes serve the next fit."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_run import new_run

from backflip.core.errors import Paused
from backflip.core.records import Rater, Vote
from backflip.cycle import people
from backflip.cycle.folder import DATABASE, only_server
from backflip.cycle.opened import open_run
from backflip.cycle.overview import overview
from backflip.cycle.plan import Rate
from backflip.cycle.run import run_rounds
from backflip.raters.personas import Crowd
from backflip.report import gather
from backflip.store import Store, open_store

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def people_run(root: Path, model: Path, **rate: object) -> Path:
    keys = {"pairs": 12, "held_out": 4, "double_share": 0.0} | rate
    return new_run(root, model, rounds=1, rate=Rate(**keys), raters=Crowd(by="people"))  # type: ignore[arg-type]


@contextmanager
def run_beside(root: Path) -> Iterator[threading.Thread]:
    """The run in a thread of its own, its pages said to be served."""
    failed: list[Exception] = []

    def work() -> None:
        try:
            run_rounds(root)
        except Exception as e:  # noqa: BLE001
            failed.append(e)

    thread = threading.Thread(target=work)
    with only_server(root):
        thread.start()
        yield thread
        thread.join(60)
    assert not failed, failed
    assert not thread.is_alive()


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def vote(store: Store, most: int | None = None, rater: str = "ann") -> int:
    """`rater` judges open pairs, the longer prompt id's answer a; how many."""
    wanting = [p for p, _ in store.wanting()][:most]
    with store.begin() as tx:
        tx.add_raters([Rater(id=rater, kind="person", name=rater)])
        tx.cast(
            [
                Vote(
                    key=f"{p.id}/{rater}", pair_id=p.id, rater_id=rater, choice="b" if n % 3 else "a", shown="ab",
                    latency_s=1, at=0,
                )
                for n, p in enumerate(wanting)
            ]
        )  # fmt: skip
    return len(wanting)


def judge_the_last_round(store: Store, number: int) -> int:
    """Judge its pairs against the untouched model, once they are open; how many."""
    wait_until(lambda: store.pairs(round=number, stream="reference"))
    return vote(store)


def waits(root: Path) -> bool:
    """Whether the round's pairs are open and it waits."""
    if not (root / DATABASE).exists():
        return False
    with open_store(root / DATABASE) as store:
        return "sample" in (store.steps_done(1) if store.rounds() else set())


def test_no_crowd_votes_and_without_a_server_the_run_pauses(tiny_model: Path, tmp_path: Path) -> None:
    root = people_run(tmp_path / "run", tiny_model)
    with pytest.raises(Paused, match=r"12 pairs are still to be judged(.|\n)*backflip rate"):
        run_rounds(root)
    with open_store(root / DATABASE) as store:
        assert store.votes() == []
        assert store.raters() == []


def test_the_run_goes_on_by_itself_once_the_last_vote_is_in(tiny_model: Path, tmp_path: Path) -> None:
    root = people_run(tmp_path / "run", tiny_model)
    with run_beside(root):
        wait_until(lambda: waits(root))
        with open_store(root / DATABASE) as store:
            assert vote(store, 11) == 11
            time.sleep(3 * people.POLL_S)
            assert "rate" not in store.steps_done(1)
            assert vote(store) == 1
            judge_the_last_round(store, 1)
            wait_until(lambda: "measure" in store.steps_done(1))


def test_a_budget_of_votes_is_enough_and_later_ones_lie_above_the_watermark(tiny_model: Path, tmp_path: Path) -> None:
    root = people_run(tmp_path / "run", tiny_model, votes=9)
    with run_beside(root):
        wait_until(lambda: waits(root))
        with open_store(root / DATABASE) as store:
            vote(store, 9)
            wait_until(lambda: store.watermark(1) is not None)
            assert vote(store, 2) == 2
            compared = judge_the_last_round(store, 1)
    with open_store(root / DATABASE) as store:
        assert (store.watermark(1), len(store.vote_log())) == (9, 11 + compared)
        assert "measure" in store.steps_done(1)


def test_a_deadline_ends_the_wait_but_not_before_there_is_something_to_fit(tiny_model: Path, tmp_path: Path) -> None:
    root = people_run(tmp_path / "run", tiny_model, deadline_minutes=0.01)
    with run_beside(root):
        wait_until(lambda: waits(root))
        with open_store(root / DATABASE) as store:
            time.sleep(0.6 + 2 * people.POLL_S)
            assert "rate" not in store.steps_done(1)
            vote(store, 6)
            wait_until(lambda: "rate" in store.steps_done(1))
    with open_store(root / DATABASE) as store:  # nobody compared the policy with the untouched model by the deadline
        assert "measure" in store.steps_done(1)
        assert [p.stream for p, _ in store.wanting()].count("reference") > 0


def test_the_last_round_waits_for_votes_on_its_policy_against_the_untouched_model(
    tiny_model: Path, tmp_path: Path
) -> None:
    root = people_run(tmp_path / "run", tiny_model)
    with run_beside(root), open_store(root / DATABASE) as store:
        wait_until(lambda: waits(root))
        vote(store)
        wait_until(lambda: people.waits_since(store, people.round_named(1, reference=True)))
        shown = {m.name for m in store.metrics(round=1, step="measure")}
        assert "final/kl" in shown
        assert "people/win_rate" not in shown
        count = len([p for p, _ in store.wanting() if p.stream == "reference"])
        assert count > 2
        vote(store, count - 1)
        time.sleep(3 * people.POLL_S)
        assert "measure" not in store.steps_done(1)
        vote(store)
        wait_until(lambda: "measure" in store.steps_done(1))
        [rate] = store.metrics(round=1, name="people/win_rate")
    assert overview(root).figures["people/win_rate"] == rate


def test_votes_that_come_after_the_end_change_the_win_rate_that_is_told(tiny_model: Path, tmp_path: Path) -> None:
    root = people_run(tmp_path / "run", tiny_model, deadline_minutes=0.01)
    with run_beside(root):
        wait_until(lambda: waits(root))
        with open_store(root / DATABASE) as store:
            vote(store, 12)
    assert overview(root).finished
    before = overview(root).figures.get("people/win_rate")
    with open_store(root / DATABASE) as store:
        for pair, _ in store.wanting():
            ours = "a" if pair.sample_a.split("/")[2] != "reference" else "b"
            late = Vote(key=pair.id, pair_id=pair.id, rater_id="ann", choice=ours, shown="ab", latency_s=1, at=0)  # type: ignore[arg-type]
            with store.begin() as tx:
                tx.cast([late])
        told = gather(store).people
    [metric] = open_run(root).metrics(name="people/win_rate")

    assert before is None or before.value < metric.value
    assert overview(root).figures["people/win_rate"] == metric
    assert [t.win_rate.value for t in told] == [metric.value]
    assert metric.value > 0.7  # all that was judged; the same answer on both sides counts half


def test_nobody_is_waited_for_who_could_give_a_second_judgement(tiny_model: Path, tmp_path: Path) -> None:
    root = people_run(tmp_path / "run", tiny_model, double_share=0.5)
    with pytest.raises(Paused):
        run_rounds(root)
    with open_store(root / DATABASE) as store:
        rate = Rate(pairs=12, held_out=4, double_share=0.5)
        assert people.waiting(store, 1, rate).wanted == 18
        for name in ("ann", "bob"):
            store.people.invite(f"link of {name}", "rater", name, 1.0)
            store.people.join(f"link of {name}", Rater(id=name, kind="person", name=name), f"login of {name}", 1.0)
            if name == "ann":
                assert people.waiting(store, 1, rate) == (0, 12, 12)
                vote(store, rater="ann")
                assert people.waiting(store, 1, rate).enough
        assert people.waiting(store, 1, rate) == (12, 18, 6)  # bob could give the others


def test_what_people_said_of_an_earlier_round_is_counted_when_the_next_is_measured(
    tiny_model: Path, tmp_path: Path
) -> None:
    root = new_run(
        tmp_path / "run", tiny_model, rounds=2, raters=Crowd(by="people"),
        rate=Rate(pairs=12, held_out=4, double_share=0.0),
    )  # fmt: skip
    with run_beside(root), open_store(root / DATABASE) as store:
        wait_until(lambda: "sample" in (store.steps_done(1) if store.rounds() else set()))
        vote(store)
        wait_until(lambda: "sample" in (store.steps_done(2) if 2 in store.rounds() else set()))
        assert store.metrics(round=1, name="people/win_rate") == []
        assert vote(store) > 12  # round 2's pairs, and round 1's against the reference
        judge_the_last_round(store, 2)
    with open_store(root / DATABASE) as store:
        assert len(store.metrics(round=1, name="people/win_rate")) == 1
