"""Preferences from elsewhere as votes of a run, and the way back: nothing is lost, nothing stands twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import new_run, requests

from backflip.core.errors import BusyError, ConfigError, DataError
from backflip.core.records import Rater, Vote
from backflip.cycle import intake
from backflip.cycle.export import export_data
from backflip.cycle.folder import only_process
from backflip.cycle.intake import import_preferences
from backflip.cycle.plan import Rate
from backflip.cycle.run import run_rounds
from backflip.data.records import Preference
from backflip.data.table import read_table
from backflip.store import Store, open_store

GOOD, BAD = "the sun is good .", "a bad red dog"


def preference(n: int, **changes: Any) -> Preference:
    asked = f"we love tea {'and sea ' * (n % 7)}{'sun ' * (n // 7)}".strip()
    given = {"chosen": GOOD, "rejected": f"{BAD} {'dog ' * (n % 3)}".strip(), "rater": f"ann-{n % 2}"}
    return Preference(**{"where": f"row {n}", "prompt": (("user", asked),), **given, **changes})  # type: ignore[arg-type]


def many(count: int = 30) -> list[Preference]:
    return [preference(n) for n in range(count)]


def opened(root: Path) -> Store:
    return open_store(root / "run.db")


def test_preferences_become_votes_that_say_the_same(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    given = [
        preference(
            1,
            split="train",
            strength=2,
            shown_first="rejected",
            rater_kind="judge",
            reason="kinder",
            at=8.5,
            latency_s=3.0,
        ),
        preference(2, split="monitor", tie=True, rater=""),
        preference(
            3, split="train", rater="bob", rejected_ended=False, prompt=(("system", "be kind"), ("user", "the sun"))
        ),
    ]
    done = import_preferences(root, given, "hub set")

    assert (done.preferences, done.pairs, done.held_out, done.known, done.left_out) == (3, 3, 1, 0, [])
    with opened(root) as store:
        pairs, samples = {p.id: p for p in store.pairs()}, {s.id: s for s in store.samples()}
        by_rater = {v.rater_id: v for v in store.votes()}
        judged, tied, cut = by_rater["ann-1"], by_rater["hub set"], by_rater["bob"]
        kinds = {r.id: r.kind for r in store.raters()}
        prompts = {p.id: p for p in store.prompts()}
    pair = pairs[judged.pair_id]
    chosen, other = (pair.sample_a, pair.sample_b) if judged.choice == "a" else (pair.sample_b, pair.sample_a)
    assert (samples[chosen].text, samples[other].text) == (GOOD, "a bad red dog dog")
    first = pair.sample_a if judged.shown == "ab" else pair.sample_b
    assert first == other
    assert (judged.strength, judged.reason, judged.at, judged.latency_s) == (2, "kinder", 8.5, 3.0)
    assert tied.choice == "tie"
    assert [pairs[v.pair_id].stream for v in (judged, tied, cut)] == ["fit", "random", "fit"]
    assert kinds == {"ann-1": "judge", "hub set": "person", "bob": "person"}
    assert prompts[pairs[cut.pair_id].prompt_id].history == (("system", "be kind"),)
    ends = {s.text: s.ended for s in samples.values() if s.prompt_id == pairs[cut.pair_id].prompt_id}
    assert ends == {GOOD: True, "a bad red dog": False}


def test_the_same_import_twice_changes_nothing_and_a_larger_one_adds_what_is_new(
    tiny_model: Path, tmp_path: Path
) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    first = import_preferences(root, many(10), "set")
    with opened(root) as store:
        before = (store.votes(), store.pairs(), store.samples())
    again = import_preferences(root, many(10), "set")
    with opened(root) as store:
        assert (store.votes(), store.pairs(), store.samples()) == before
    more = import_preferences(root, many(12), "set")

    assert (first.preferences, again.preferences, more.preferences) == (10, 0, 2)
    assert (first.known, again.known, more.known) == (0, 10, 10)


def test_two_raters_of_one_pair_are_one_pair_whichever_they_chose(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    swapped = preference(0, rater="bob", chosen=preference(0).rejected, rejected=GOOD)
    done = import_preferences(root, [preference(0), swapped], "set")

    assert (done.pairs, done.preferences) == (1, 2)
    with opened(root) as store:
        assert {v.choice for v in store.votes()} == {"a", "b"}


def test_a_run_learns_from_imported_preferences_alone(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=2, rate=Rate(pairs=0, held_out=0))
    import_preferences(root, many(), "set")
    run_rounds(root)

    with opened(root) as store:
        figures = {m.name: m.value for m in store.metrics(round=2, step="fit")}
        asked = {s.prompt_id for s in store.samples() if s.policy != "imported"}
        imported = {s.prompt_id for s in store.samples(policy="imported")}
        own = [p for p in store.pairs() if p.round > 0 and p.stream != "reference"]
    assert figures["votes/count"] >= 30
    assert figures["reward/train_accuracy"] > 0.9  # one answer always won
    assert own == []
    assert imported
    assert not asked & imported  # imported prompts are learned from, never asked


def test_imported_preferences_are_fitted_beside_the_runs_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backflip.cycle import fit

    root, seen = new_run(tmp_path / "run", tiny_model, rounds=1), []
    real = fit.fit_votes

    def watched(features: np.ndarray, feedback: list[Any], *rest: Any, **more: Any) -> Any:  # type: ignore[type-arg]
        seen.append([f.rater_id for f in feedback])
        return real(features, feedback, *rest, **more)

    monkeypatch.setattr(fit, "fit_votes", watched)
    import_preferences(root, [preference(n, split="train") for n in range(6)], "set")
    run_rounds(root)

    [raters] = seen
    assert sum(r.startswith("ann-") for r in raters) == 6
    assert sum(r.startswith("crowd-") for r in raters) >= 14


def test_answers_to_the_runs_final_prompts_are_refused_or_left_out(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    final = preference(0, prompt=(("user", requests("final", 5)[0].text),))

    with pytest.raises(DataError, match="row 0: its prompt is one of the run's final ones"):
        import_preferences(root, [preference(1), final], "set")
    with opened(root) as store:
        assert store.votes() == []  # nothing of it was stored
    done = import_preferences(root, [preference(1), final], "set", skip_bad=True)
    assert (done.preferences, len(done.left_out)) == (1, 1)


def test_a_prompt_of_the_run_is_known_again_and_held_out_if_it_is_a_monitor_prompt(
    tiny_model: Path, tmp_path: Path
) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    monitor = requests("monitor", 6)[0]
    done = import_preferences(root, [preference(0, prompt=(("user", monitor.text),), split="train")], "set")

    assert done.held_out == 1
    with opened(root) as store:
        assert [p.prompt_id for p in store.pairs()] == [monitor.id]


def test_an_answer_beyond_the_context_is_told_with_its_row(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model)

    with pytest.raises(DataError, match=r"row 0: .*context of 64"):
        import_preferences(root, [preference(0, chosen="sea " * 80)], "set")


def test_a_run_that_is_under_way_takes_no_import(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    with only_process(root), pytest.raises(BusyError):
        import_preferences(root, many(2), "set")


def test_an_import_that_is_cut_short_leaves_no_votes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    with monkeypatch.context() as m:
        m.setattr("backflip.store.writes.Tx.cast", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_preferences(root, many(3), "set")
    with opened(root) as store:
        assert (store.pairs(), store.samples(), store.prompts()) == ([], [], [])

    assert import_preferences(root, many(3), "set").preferences == 3


@pytest.fixture(scope="module")
def done(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its own votes, imported ones, one taken back and one skipped."""
    root = new_run(tmp_path_factory.mktemp("export") / "run", tiny_model, rounds=1)
    import_preferences(
        root, [*many(4), preference(9, strength=3, prompt=(("system", "be kind"), ("user", "sun")))], "set"
    )
    run_rounds(root)
    with opened(root) as store:
        one, two = store.votes()[-2:]
        with store.begin() as tx:
            tx.add_raters([Rater(id="eve", kind="person", name="Eve")])
            vote = Vote(key="gone", pair_id=one.pair_id, rater_id="eve", choice="a", shown="ab", latency_s=2.5, at=9.0)
            tx.cast([vote])
            tx.cast([Vote(key="undo", pair_id=one.pair_id, rater_id="eve", choice="retract", shown="ab", latency_s=0.0,
                          at=10.0, retracts="gone")])  # fmt: skip
            tx.cast(
                [
                    Vote(
                        key="skip",
                        pair_id=two.pair_id,
                        rater_id="eve",
                        choice="skip",
                        shown="ab",
                        latency_s=0.0,
                        at=11.0,
                    )
                ]
            )
    return root


def said(store: Store) -> set[tuple[Any, ...]]:
    """What every vote says: prompt, better and worse answer, rater, the one on the left, which ended, stream."""
    prompts, pairs = {p.id: p for p in store.prompts()}, {p.id: p for p in store.pairs()}
    samples, kinds = {s.id: s for s in store.samples()}, {r.id: r.kind for r in store.raters()}
    out = set()
    for v in store.votes():
        if v.choice == "skip":
            continue
        pair = pairs[v.pair_id]
        a, b = samples[pair.sample_a], samples[pair.sample_b]
        left = (a if v.shown == "ab" else b).text
        won = (
            tuple(sorted((a.text, b.text)))
            if v.choice == "tie"
            else (a.text, b.text)
            if v.choice == "a"
            else (b.text, a.text)
        )
        prompt = prompts[pair.prompt_id]
        ends = frozenset(((a.text, a.ended), (b.text, b.ended)))
        who = (v.rater_id, kinds[v.rater_id], v.strength, v.reason, v.at, v.latency_s, bool(pair.ranking))
        out.add((prompt.text, prompt.history, won, v.choice == "tie", who, left, ends, pair.stream == "fit"))
    return out


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_is_exported_comes_back_as_the_same_votes(done: Path, tiny_model: Path, tmp_path: Path, kind: Any) -> None:
    out = export_data(done, tmp_path / "data", kind)
    rows = read_table(str(tmp_path / "data" / f"preferences.{kind}")).records
    other = new_run(tmp_path / "other", tiny_model)
    back = import_preferences(other, [r for r in rows if isinstance(r, Preference)], "back")

    with opened(done) as before, opened(other) as after:
        assert said(after) == said(before)
        assert back.preferences == out.preferences == len(before.votes()) - 1
    assert (out.skipped, out.retracted) == (1, 1)


def test_the_samples_and_the_card_tell_how_the_data_came_about(done: Path, tmp_path: Path) -> None:
    out = export_data(done, tmp_path / "data")
    samples = [json.loads(line) for line in (tmp_path / "data" / "samples.jsonl").read_text().splitlines()]
    card = (tmp_path / "data" / "README.md").read_text()

    with opened(done) as store:
        assert len(samples) == out.samples == len(store.samples())
        pairs = len(store.votes(stream="fit"))
    assert {s["policy"] for s in samples} == {"reference", "policy-r1", "imported"}
    assert f"- Stream `fit`: {pairs} votes a reward was fitted on." in card
    assert "Raters: 2 people, 6 simulated personas." in card
    assert "1 skipped votes and 1 that were taken back" in card
    assert str(tmp_path) not in card


def test_an_export_never_writes_over_anything(done: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match="exists and is left as it is"):
        export_data(done, tmp_path / "data")


def test_a_run_that_has_not_begun_has_nothing_to_export(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    with pytest.raises(ConfigError, match="nothing to export yet"):
        export_data(root, tmp_path / "data")


def test_one_prompt_in_ten_is_held_out_by_its_text() -> None:
    splits = [intake._split_of((("user", f"request {n}"),)) for n in range(3000)]

    assert 0.08 < splits.count("monitor") / 3000 < 0.12
    assert splits[:50] == [intake._split_of((("user", f"request {n}"),)) for n in range(50)]
