"""A climb is watched by a second reward on votes kept apart, and its figures' warnings are told."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import differences, fingerprint
from test_resume import Crash, crash_once
from tiny_run import new_run
from typer.testing import CliRunner

from backflip.cli.main import app
from backflip.core.errors import DataError
from backflip.core.records import Metric
from backflip.cycle import fit, optimise
from backflip.cycle.artefacts import load_answers
from backflip.cycle.overview import overview
from backflip.cycle.plan import Plan, Rate, read_plan
from backflip.cycle.run import open_tools, run_rounds
from backflip.cycle.tools import Silent
from backflip.cycle.votes import kept_apart
from backflip.cycle.watch import warnings_of
from backflip.measure.alarm import JUDGED, WINS
from backflip.measure.plan import Alarm
from backflip.measure.warnings import CHECK, FORETOLD, KL, LENGTH, PROXY, REPETITION, SPREAD
from backflip.report.of_run import report_run
from backflip.rewards.fit import Fit
from backflip.rewards.model import load_reward
from backflip.store import open_store

APART = Fit(prior=(10.0, 100.0), folds=2, apart=0.5)


def climb(figures: dict[str, list[float]]) -> list[Metric]:
    return [
        Metric(round=2, step="optimise", tick=t, name=name, value=v)
        for name, values in figures.items()
        for t, v in enumerate(values, start=1)
        if math.isfinite(v)
    ]


def test_votes_kept_apart_fit_a_check_that_the_reward_never_sees(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, fit=APART, alarm=Alarm(gold="people", every=1, votes=6))
    real, seen = fit.fit_votes, []

    def spied(features: Any, feedback: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({prompt[f.a] for f in feedback})
        return real(features, feedback, prompt, *args, **kwargs)

    monkeypatch.setattr(fit, "fit_votes", spied)
    monkeypatch.setattr(optimise, "save_checkpoint", crash_once(optimise.save_checkpoint, late=False, calls=2))
    with pytest.raises(Crash):
        run_rounds(root)
    run_rounds(root)

    ours, apart = seen
    assert ours
    assert apart
    assert not ours & apart
    reward, check = (load_reward(root / "rounds" / "r1" / "reward" / name) for name in ("", "check"))
    assert (reward.weight != check.weight).any()
    with open_store(root / "run.db") as store:
        told = {(m.name, m.tick): m.value for m in store.metrics(round=1, step="optimise")}
        pairs = {p.id: p for p in store.pairs()}
        fitted = {pairs[v.pair_id].prompt_id for v in store.votes(stream="fit")}
    assert ours | apart == fitted
    with open_store(root / "run.db") as store:
        tools = open_tools(root, read_plan(root / "plan.toml"), store, Silent())
        assert {p.prompt.id for p in optimise.preferences(1, tools)} == ours  # what DPO would learn from
    for tick in (1, 2):
        assert told[PROXY, tick] == told["objective/scores", tick]
        assert told[KL, tick] == told["objective/kl", tick]
        assert told[LENGTH, tick] == told["length/mean", tick]
        assert told[SPREAD, tick] > 0
        assert 0 <= told[REPETITION, tick] < 1
        assert told[CHECK, tick] != told[PROXY, tick]
        assert 0 < told[FORETOLD, tick] < 6

    whole = new_run(
        tmp_path / "whole", tiny_model, rounds=1, fit=APART, alarm=Alarm(gold="people", every=1, votes=6),
        prompts=root / "prompts.jsonl",
    )  # fmt: skip
    run_rounds(whole)
    assert differences(fingerprint(root), fingerprint(whole)) == []


def test_a_cautious_plan_pays_the_climb_by_its_members_and_not_for_length(tiny_model: Path, tmp_path: Path) -> None:
    wary = replace(APART, apart=0.0, conservative="worst", length_free=True)
    root = new_run(tmp_path / "run", tiny_model, rounds=1, fit=wary)
    run_rounds(root)
    plain = new_run(
        tmp_path / "plain", tiny_model, rounds=1, fit=replace(APART, apart=0.0), prompts=root / "prompts.jsonl"
    )
    run_rounds(plain)

    with open_store(root / "run.db") as store, open_store(plain / "run.db") as other:
        tools = open_tools(root, read_plan(root / "plan.toml"), store, Silent())
        model = fit.scorer_of_round(1, tools)
        paid = fit.paid_by(1, tools, model)
        samples = store.samples(round=1, purpose="rate")
        asked, answers = [tools.prompts[s.prompt_id] for s in samples], load_answers(root, samples)
        first = [s.metrics(round=1, name=PROXY)[0] for s in (store, other)]
    score, length = paid.score(asked, answers), np.array([len(a.tokens) for a in answers])
    worst = model.members(asked, answers).min(0)
    assert np.ptp(length) > 0
    assert abs(np.corrcoef(score, length)[0, 1]) < 1e-6
    assert abs(score.mean()) < 1e-6
    slope = np.polyfit(length, worst, 1)[0]
    assert np.allclose(score - score.mean(), worst - slope * length - (worst - slope * length).mean(), atol=1e-6)
    assert [m.tick for m in first] == [1, 1]
    assert first[0].value != first[1].value  # the same answers, paid otherwise


def test_too_few_votes_to_keep_some_apart_are_refused_before_the_watermark(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(
        tmp_path / "run", tiny_model, rounds=1, rate=Rate(pairs=2, held_out=1),
        fit=Fit(prior=(10.0,), folds=2, apart=0.999),
    )  # fmt: skip
    with pytest.raises(DataError, match="keeps 2 of 2 apart") as e:
        run_rounds(root)

    assert len(str(e.value).splitlines()) == 3
    with open_store(root / "run.db") as store:
        assert store.watermark(1) is None


def test_about_the_planned_share_of_prompts_is_kept_apart() -> None:
    for share in (0.0, 0.25, 0.5):
        kept = [kept_apart(Plan(fit=Fit(apart=share)), f"p{n}") for n in range(400)]
        assert sum(kept) / 400 == pytest.approx(share, abs=0.06)


def test_warnings_are_told_by_the_step_of_the_round_even_where_steps_were_refused() -> None:
    figures = {KL: [1.0] * 12, PROXY: [1.0] * 12, LENGTH: [20.0] * 8 + [80.0] * 4}
    figures = {name: [math.nan, *values] for name, values in figures.items()}  # step 1 was refused
    figures |= {JUDGED: [24.0] * 13, WINS: [10.0] * 13, FORETOLD: [10.0] * 4 + [22.0] * 9}
    found = warnings_of(climb(figures))

    assert [(w.name, w.tick) for w in found[2]] == [("miscalibrated", 6), ("length", 10)]


def test_warnings_are_shown_by_status_and_in_the_report(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    run_rounds(root)
    with open_store(root / "run.db") as store, store.begin() as tx:
        tx.add_metrics([Metric(round=1, step="optimise", tick=2, name=LENGTH, value=900.0)])

    [seen] = overview(root).warnings
    assert (seen.round, seen.tick, seen.name) == (1, 2, "length")
    shown = CliRunner().invoke(app, ["status", str(root)]).stdout
    assert f"round 1, step 2: {seen.told} (length)" in shown
    assert '"name": "length"' in CliRunner().invoke(app, ["status", str(root), "--json"]).stdout
    assert report_run(root).warnings == (seen,)
    assert f"<li>Round 1, step 2: {seen.told}.</li>" in (root / "report.html").read_text()
