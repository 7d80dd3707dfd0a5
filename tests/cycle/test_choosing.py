"""Pairs chosen by what a vote on them would teach."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.special import expit
from tiny_run import new_run, plan_of

from backflip.core.config import Unfit
from backflip.core.records import Sample
from backflip.cycle.choosing import Known, pick, scene_of
from backflip.cycle.plan import Plan, Rate
from backflip.cycle.run import run_rounds
from backflip.cycle.tools import Outcome
from backflip.raters.pairs import Candidate
from backflip.rewards.ensemble import Ensemble
from backflip.rewards.fit import Fit, Reward
from backflip.sampling.engine import Engine
from backflip.store import open_store

Array = NDArray[np.float64]
STRATEGIES = ["uncertain", "disagreement", "information", "variance", "best", "thompson"]
F = 6
LOAD = Engine.load


def known(told: int = 40, prior: float = 2.0, spread: float = 0.3) -> Known:
    draw = np.random.default_rng(0)
    weight = np.array([1.0, -1.0, 0.5, 0.0, 0.0, 0.0])
    members = weight + spread * draw.normal(size=(5, F)) * np.array([0, 0, 0, 1, 1, 1])
    gaps = draw.normal(size=(told, F)) * np.array([1.0, 1.0, 1.0, 1.0, 0.1, 0.0])  # nothing is known of the last
    reward = Reward(np.zeros(F), np.ones(F), weight, 0.0, 0.0, 2.0, prior)
    return Known(reward, Ensemble(np.zeros(F), np.ones(F), members, np.zeros(5)), gaps)


def answers(prompts: int, each: int, seed: int = 1) -> tuple[list[Candidate], Array, dict[str, int]]:
    """Every pair of `each` answers to each prompt, and the answers' features."""
    samples = [
        Sample(
            id=f"p{p}/{k}", round=2, purpose="rate", prompt_id=f"p{p}", policy="v", index=k, text=f"{p} {k}",
            ended=True, length=1, artefact="", row=0,
        )
        for p in range(prompts)
        for k in range(each)
    ]  # fmt: skip
    candidates = [
        Candidate(samples[p * each + i], samples[p * each + j], f"{i}-{j}")
        for p in range(prompts)
        for i in range(each)
        for j in range(i + 1, each)
    ]
    z = np.random.default_rng(seed).normal(size=(len(samples), F))
    return candidates, z, {s.id: i for i, s in enumerate(samples)}


@pytest.mark.parametrize("told", [3, 40], ids=["fewer votes than features", "more"])
@pytest.mark.parametrize("pairs", [2, 30], ids=["fewer candidates than features", "more"])
def test_the_posterior_of_a_gap_is_that_of_the_whole_curvature(told: int, pairs: int):
    facts = known(told)
    apart = np.random.default_rng(2).normal(size=(pairs, F))
    p = expit(facts.told @ facts.reward.weight * 2.0)
    whole = np.linalg.inv(facts.told.T @ (facts.told * (p * (1 - p))[:, None]) + 2.0 * np.eye(F))
    scene = scene_of(apart, facts)

    assert_allclose(scene.apart @ scene.covariance @ scene.apart.T, apart @ whole @ apart.T, atol=1e-9)
    assert_allclose(scene.apart @ scene.weight, apart @ facts.reward.weight * 2.0, atol=1e-9)
    assert_allclose(scene.apart @ scene.members.T, apart @ facts.ensemble.weight.T * 2.0, atol=1e-9)  # type: ignore[union-attr]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_asks_as_many_as_wanted_and_says_how_likely_each_was(strategy: str):
    candidates, z, place = answers(6, 5)
    times = np.zeros(len(candidates))
    stated = np.zeros(len(candidates))
    for seed in range(300):
        chosen = pick(strategy, candidates, z, place, known(), 12, np.random.default_rng(seed))
        assert len(set(chosen.place.tolist())) == 12
        assert ((chosen.probability > 0) & (chosen.probability <= 1)).all()
        times[chosen.place] += 1
        stated[chosen.place] = chosen.probability
    if strategy != "thompson":  # whose chances depend on the rewards drawn
        assert_allclose(times / 300, stated, atol=0.12)
    assert (times > 0).all()  # none is beyond reach


def mean_of(strategy: str, figure: Array) -> float:
    """The mean of a figure of each candidate over those that a strategy picks, less that over all."""
    candidates, z, place = answers(8, 6)
    picked = [pick(strategy, candidates, z, place, known(), 15, np.random.default_rng(s)).place for s in range(40)]
    return float(np.mean([figure[p].mean() for p in picked]) - figure.mean())


def test_each_strategy_asks_about_what_it_is_named_for():
    candidates, z, place = answers(8, 6)
    apart = np.array([z[place[c.first.id]] - z[place[c.second.id]] for c in candidates])
    facts = known()
    logit = apart @ facts.reward.weight * 2.0
    unsure = expit(logit) * (1 - expit(logit))
    differ = expit(2.0 * apart @ facts.ensemble.weight.T).std(1)  # type: ignore[union-attr]
    scene = scene_of(apart, facts)
    variance = ((scene.apart @ scene.covariance) * scene.apart).sum(1)
    reward = z @ facts.reward.weight
    high = np.array([min(reward[place[c.first.id]], reward[place[c.second.id]]) for c in candidates])

    assert mean_of("uncertain", unsure) > 0.03
    assert mean_of("disagreement", differ) > 0.01
    assert mean_of("information", unsure * variance) > 0.02
    assert mean_of("variance", unsure * variance) > 0.05
    assert mean_of("best", high) > 0.5
    assert mean_of("thompson", high) > 0.2
    assert mean_of("best", high) > mean_of("variance", high)


def test_a_run_chooses_its_fits_pairs_from_round_2_on_and_leaves_the_held_out_ones_to_the_lot(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backflip.cycle import round as cycle_round

    for name in ("optimise", "measure"):
        monkeypatch.setitem(cycle_round.STEPS, name, lambda *_: Outcome())
    monkeypatch.setattr("backflip.cycle.run.publish", lambda *_: None)
    monkeypatch.setattr(Engine, "load", lambda self, _: LOAD(self, "reference"))  # no round leaves a policy here
    runs = {}
    for choose in ("random", "best"):
        root = new_run(tmp_path / choose, tiny_model, rate=Rate(pairs=20, held_out=6, choose=choose))  # type: ignore[arg-type]
        run_rounds(root)
        with open_store(root / "run.db") as store:
            runs[choose] = {(r, s): store.pairs(round=r, stream=s) for r in (1, 2) for s in ("fit", "random")}

    lot, best = runs["random"], runs["best"]
    assert lot[1, "fit"] == best[1, "fit"]  # nothing is known yet
    assert [p.id for p in lot[2, "random"]] == [p.id for p in best[2, "random"]]
    assert {p.id for p in lot[2, "fit"]} != {p.id for p in best[2, "fit"]}
    assert len(best[2, "fit"]) == 14
    assert {p.probability for p in best[2, "fit"]} > {1.0}
    assert len({p.id for p in best[2, "fit"]}) == 14


def test_what_cannot_be_chosen_by_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Unfit, match="choose"):
        Rate(choose="best", rank=True)
    plan = plan_of(tiny_model, tmp_path)
    with pytest.raises(Unfit, match=r"fit.members"):
        replace(plan, rate=Rate(pairs=20, held_out=6, choose="disagreement"), fit=Fit(members=1))
    assert Plan().rate.choose == "random"
