"""A run by each optimiser that a plan can name: it ends, resumes bitwise, and takes another between two rounds."""

from pathlib import Path
from typing import Any, get_args

import pytest
from kills import differences, fingerprint
from tiny_run import new_run

from backflip.core.config import build
from backflip.core.errors import ConfigError
from backflip.core.records import Pair, Vote
from backflip.cycle import optimise as step
from backflip.cycle.folder import PLAN
from backflip.cycle.plan import Plan, plan_toml, read_plan
from backflip.cycle.run import open_tools, run_rounds
from backflip.cycle.tools import Silent
from backflip.policies.plan import COMPARING, Optimise, Optimiser
from backflip.report import report_run, tables
from backflip.report.plots import figures
from backflip.report.words import key_figures
from backflip.store import open_store

NAMES = get_args(Optimiser)


class Crash(BaseException):
    """Stands for the end of the process: nothing catches it."""


def crash_in_the_second_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = step.save_checkpoint, []

    def save(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Crash
        real(*args)

    monkeypatch.setattr(step, "save_checkpoint", save)


@pytest.mark.parametrize("by", NAMES)
def test_a_run_by_each_optimiser_ends_and_one_that_is_cut_is_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Any
) -> None:
    whole = new_run(tmp_path / "whole", tiny_model, optimise=Optimise(by=by))
    run_rounds(whole)
    root = new_run(tmp_path / "cut", tiny_model, optimise=Optimise(by=by), prompts=whole / "prompts.jsonl")
    with monkeypatch.context() as m:
        crash_in_the_second_checkpoint(m)
        with pytest.raises(Crash):
            run_rounds(root)
    run_rounds(root)

    assert differences(fingerprint(root), fingerprint(whole)) == []
    with open_store(root / "run.db") as store:
        for number in (1, 2):
            assert store.steps_done(number) == {"sample", "rate", "fit", "optimise", "measure"}
            told = {m.name for m in store.metrics(round=number, step="optimise") if m.tick == 2}
            assert {"objective/kl", "objective/scores", "gold/utility", "length/mean", "grad/norm"} <= told
        assert {m.id for m in store.models()} >= {"policy-r1", "policy-r2"}


def test_another_optimiser_may_take_over_between_two_rounds(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, optimise=Optimise(by="dpo"))
    run_rounds(root)
    plan = read_plan(root / PLAN)
    edited = plan_toml(plan).replace('by = "dpo"', 'by = "ppo"').replace("rounds = 1", "rounds = 2")
    (root / PLAN).write_text(edited, encoding="utf-8")
    run_rounds(root)

    with open_store(root / "run.db") as store:
        names = {r: {m.name for m in store.metrics(round=r, step="optimise")} for r in (1, 2)}
    assert ("loss/dpo" in names[1], "loss/value_avg" in names[1]) == (True, False)
    assert ("loss/dpo" in names[2], "loss/value_avg" in names[2]) == (False, True)


HEADS = {
    "dpo": {"ratio, trainer to sampler (worst)", "gradient norm (largest)"},
    "rloo": {"ratio, first minibatch (worst)", "clipped (mean)"},
    "best_of_n": {"ratio, trainer to sampler (worst)", "gradient norm (largest)"},
}
PPO_ALONE = {"value loss, first → last"}


@pytest.mark.parametrize("by", HEADS)
def test_a_report_speaks_of_no_optimiser_that_did_not_run(tiny_model: Path, tmp_path: Path, by: Any) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, optimise=Optimise(by=by))
    run_rounds(root)
    data = report_run(root)
    page = (root / "report.html").read_text(encoding="utf-8").partition('<script type="application/json"')[0]
    health = tables.health(data.steps)
    words = [f.label for f in key_figures(data)] + [k.label for f in figures(data).values() for k in f.key]

    assert "PPO" not in page
    assert not [word for word in [*words, *(str(f.layout) for f in figures(data).values())] if "PPO" in word]
    assert health is not None
    assert set(health.heads) >= HEADS[by]
    assert not set(health.heads) & PPO_ALONE
    assert not [cell for row in health.rows for cell in row if "nan" in cell.lower() or "not a number" in cell]
    assert ("value loss" in page, "is clipped" in page) == (False, by == "rloo")
    assert ("the leash pulls it towards the target" in page) == (by == "rloo")


def test_dpo_learns_from_the_votes_of_the_fit_up_to_the_watermark_and_from_no_other(
    tiny_model: Path, tmp_path: Path
) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, optimise=Optimise(by="dpo"))
    run_rounds(root)
    with open_store(root / "run.db") as store:
        tools = open_tools(root, read_plan(root / PLAN), store, Silent())
        before = step.preferences(1, tools)
        pairs: dict[str, Pair] = {p.id: p for p in store.pairs(stream="fit")}
        first, rater = next(iter(pairs)), store.vote_log()[0].rater_id
        late = Vote(key="late", pair_id=first, rater_id=rater, choice="a", shown="ab", latency_s=1.0, at=0.0)
        with store.begin() as tx:
            tx.cast([late])
        after = step.preferences(1, tools)
        votes = [v for v in store.votes(stream="fit", upto=store.watermark(1)) if v.choice in ("a", "b", "tie")]
        by_key = sorted(votes, key=lambda v: v.key)
        texts = {s.id: s.text for s in store.samples(purpose="rate")}

    assert len(before) == len(after) == len(votes) > 10
    assert [v.wins for v in before] == [{"a": 1.0, "b": 0.0, "tie": 0.5}[v.choice] for v in by_key]
    assert [(v.a.text, v.b.text) for v in before] == [
        (texts[pairs[v.pair_id].sample_a], texts[pairs[v.pair_id].sample_b]) for v in by_key
    ]
    assert all(v.prompt.id == v.a.prompt_id == v.b.prompt_id and v.prompt.split == "train" for v in before)
    assert {v.weight for v in before} == {1.0}


@pytest.mark.parametrize("by", sorted(COMPARING))
def test_an_optimiser_that_compares_answers_needs_two(by: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)ppo\.answers = 1 does not fit.*2 or more: optimise\.by = \"{by}\""):
        build(Plan, {"ppo": {"answers": 1, "prompts": 8}, "optimise": {"by": by}}, "plan.toml")


def test_an_unknown_optimiser_is_refused_with_the_list_of_all() -> None:
    with pytest.raises(ConfigError, match=r'optimise\.by = "pp0" does not fit\.\nIt must be one of "ppo", "rloo"'):
        build(Plan, {"optimise": {"by": "pp0"}}, "plan.toml")
    with pytest.raises(ConfigError, match="optimise.beta = 0"):
        build(Plan, {"optimise": {"beta": 0.0}}, "plan.toml")
