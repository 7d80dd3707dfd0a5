"""Two rounds on a tiny model, watched from outside: what happens, in which order, on which prompts."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_run import new_run

from backflip.core.errors import DataError
from backflip.core.records import Pair, Sample, Vote
from backflip.cycle import fit
from backflip.cycle import round as cycle_round
from backflip.cycle.run import open_tools, run_rounds
from backflip.cycle.sample import judge_sample
from backflip.cycle.shown import load_shown
from backflip.cycle.tools import Silent, Tools
from backflip.policies.ppo import PPO
from backflip.rewards.model import features_of, load_reward
from backflip.sampling.engine import Engine
from backflip.sampling.score import middle_layer
from backflip.store import Store, open_store


@dataclass
class Seen:
    """What was seen of a run."""

    root: Path
    steps: list[tuple[int, str]] = field(default_factory=list)
    sampled: list[tuple[str, str, int, int]] = field(default_factory=list)
    """(step, split, votes there, samples there) for every prompt that was answered, before its answer."""
    fitted: list[list[tuple[str, str]]] = field(default_factory=list)
    """For each fit, (prompt, rater) of every vote it was given."""
    said: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def seen(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    watched = Seen(new_run(tmp_path_factory.mktemp("rounds") / "run", tiny_model))
    with pytest.MonkeyPatch.context() as m:
        for name, step in cycle_round.STEPS.items():
            m.setitem(cycle_round.STEPS, name, _step(watched, name, step))
        m.setattr(Engine, "sample", _sample(watched, Engine.sample))
        m.setattr(fit, "fit_votes", _fit(watched, fit.fit_votes))
        watcher = Silent()
        m.setattr(watcher, "say", watched.said.append)
        run_rounds(watched.root, watcher)
    return watched


def _step(seen: Seen, name: str, real: Any) -> Any:
    def step(number: int, tools: Tools) -> Any:
        seen.steps.append((number, name))
        return real(number, tools)

    return step


def _sample(seen: Seen, real: Any) -> Any:
    def sample(engine: Engine, prompts: Any, n: int, **keys: Any) -> Iterator[Any]:
        with open_store(seen.root / "run.db") as store:
            there = (len(store.votes()), len(store.samples()))
        seen.sampled += [(seen.steps[-1][1], p.split, *there) for p in prompts]
        return real(engine, prompts, n, **keys)  # type: ignore[no-any-return]

    return sample


def _fit(seen: Seen, real: Any) -> Any:
    def fit_votes(features: Any, feedback: Any, prompt: Any, *args: Any, **keys: Any) -> Any:
        assert all(prompt[f.a] == prompt[f.b] for f in feedback)
        seen.fitted.append([(prompt[f.a], f.rater_id) for f in feedback])
        return real(features, feedback, prompt, *args, **keys)

    return fit_votes


@pytest.fixture
def store(seen: Seen) -> Iterator[Store]:
    with open_store(seen.root / "run.db") as opened:
        yield opened


@pytest.fixture
def tools(seen: Seen, store: Store) -> Tools:
    from backflip.cycle.plan import read_plan

    return open_tools(seen.root, read_plan(seen.root / "plan.toml"), store, Silent())


def test_a_round_is_its_five_steps_in_order(seen: Seen, store: Store) -> None:
    five = ["sample", "rate", "fit", "optimise", "measure"]

    assert seen.steps == [(1, s) for s in five] + [(2, s) for s in five]
    assert store.steps_done(1) == store.steps_done(2) == set(five)


def test_every_artefact_is_there_and_nothing_half_written(seen: Seen, store: Store) -> None:
    names = sorted(p.name for p in (seen.root / "rounds" / "r2").iterdir())

    assert {"reward", "policy", "features-rate.safetensors", "samples-final-policy-r2.safetensors"} <= set(names)
    assert "checkpoints" not in names
    assert not list(seen.root.rglob("*.part"))
    for model in store.models():
        assert (seen.root / model.path).exists()
    assert [m.id for m in store.models()] == ["reference", "reward-r1", "policy-r1", "reward-r2", "policy-r2"]
    for name in {s.artefact for s in store.samples()}:
        rows = [s.row for s in store.samples() if s.artefact == name]
        assert sorted(rows) == list(range(len(load_file(seen.root / name)["lengths"])))


def test_a_few_answers_of_every_step_are_kept_to_be_looked_at(seen: Seen, store: Store) -> None:
    prompts = {p.id: p for p in store.prompts()}
    train = {p.id for p in store.prompts("train")}
    for number, tick in ((1, 1), (1, 2), (2, 1), (2, 2)):
        rows = load_shown(seen.root, number, tick, prompts)
        assert len({row.prompt_id for row in rows} & train) == len(rows) == 4
        assert sum(row.text != "" for row in rows) >= 2  # an answer may be empty


def test_the_second_round_samples_and_climbs_on_from_the_first_rounds_policy(seen: Seen, store: Store) -> None:
    assert {s.policy for s in store.samples(round=1, purpose="rate")} == {"reference"}
    assert {s.policy for s in store.samples(round=2, purpose="rate")} == {"policy-r1"}
    assert {p.policy for p in store.pairs(round=2, stream="fit")} == {"policy-r1"}
    ticks = [m.tick for m in store.metrics(round=2, step="optimise", name="objective/kl")]
    assert ticks == [1, 2]


def test_each_step_answers_the_prompts_it_may(seen: Seen) -> None:
    splits = {step: {s for name, s, *_ in seen.sampled if name == step} for step in ("sample", "optimise", "measure")}

    assert splits == {"sample": {"train", "monitor"}, "optimise": {"train"}, "measure": {"monitor", "final"}}


def test_fitting_pairs_have_train_prompts_and_the_held_out_streams_monitor_prompts(store: Store) -> None:
    split = {p.id: p.split for p in store.prompts()}
    for stream, expected in (("fit", "train"), ("random", "monitor"), ("reference", "monitor")):
        pairs = store.pairs(stream=stream)  # type: ignore[arg-type]
        assert pairs
        assert {split[p.prompt_id] for p in pairs} == {expected}


def test_a_fit_reads_every_vote_of_the_fit_stream_so_far_and_no_other(seen: Seen, store: Store) -> None:
    def expected(numbers: tuple[int, ...]) -> list[tuple[str, str]]:
        pair = {p.id: p for p in store.pairs()}
        votes = [v for n in numbers for v in store.votes(round=n, stream="fit")]
        return sorted((pair[v.pair_id].prompt_id, v.rater_id) for v in votes)

    assert [sorted(votes) for votes in seen.fitted] == [expected((1,)), expected((1, 2))]
    assert len(seen.fitted[0]) >= 14


def test_votes_stream_while_later_answers_do_not_exist_yet(seen: Seen, store: Store) -> None:
    first = [(votes, samples) for step, _, votes, samples in seen.sampled if step == "sample"]
    total = len(store.samples(round=1, purpose="rate"))

    assert first[0] == (0, 0)
    later = [(votes, samples) for votes, samples in first if 0 < samples < total]
    assert later
    assert all(votes > 0 for votes, _ in later)


def test_a_tenth_of_the_pairs_or_more_have_two_raters(store: Store) -> None:
    raters: dict[str, set[str]] = {}
    for vote in store.votes():
        raters.setdefault(vote.pair_id, set()).add(vote.rater_id)
    for number in (1, 2):
        pairs = [p for p in store.pairs(round=number) if p.stream != "reference"]
        assert len(pairs) == 20
        assert sum(len(raters[p.id]) == 2 for p in pairs) >= 2
        assert all(len(raters[p.id]) == p.raters_wanted for p in pairs)


def test_the_figures_of_a_later_round_pair_answers_to_the_same_prompt(store: Store, tools: Tools) -> None:
    # worked again from the stored texts: the reference's answers were stored in round 1, the policy's in round 2
    for number in (1, 2):
        shares, kept = [], {}
        for version in ("reference", f"policy-r{number}"):
            rows: dict[str, list[float]] = {}
            for s in store.samples(purpose="monitor", policy=version):
                value = tools.utility.judge(tools.prompts[s.prompt_id], s.text, s.ended).value  # type: ignore[union-attr]
                rows.setdefault(s.prompt_id, []).append(value)
            kept[version] = rows
        for prompt, mine in kept[f"policy-r{number}"].items():
            theirs = kept["reference"][prompt]
            shares.append(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in mine for b in theirs]))
        assert len(shares) == 4
        stored = store.metrics(round=number, step="measure", name="monitor/win_rate")[0]
        assert stored.value == pytest.approx(float(np.mean(shares)))


def _mean_score(tools: Tools, rows: list[Sample], reward_round: int) -> float:
    from backflip.cycle.artefacts import load_answers

    layer = middle_layer(tools.loaded.trunk.layers)
    answers = load_answers(tools.root, rows)
    prompts = [tools.prompts[s.prompt_id] for s in rows]
    reading = tools.reader.read(prompts, answers, layers=(layer,))
    reward = load_reward(tools.root / "rounds" / f"r{reward_round}" / "reward")
    return float(reward.score(features_of(reading, tools.chat, prompts, answers)).mean())


def test_the_newest_reward_scores_every_round_again(store: Store, tools: Tools) -> None:
    for number in (1, 2):
        stored = {m.tick: m.value for m in store.metrics(round=number, name="rescored/proxy")}
        expected = {}
        for k in range(number + 1):
            version = "reference" if k == 0 else f"policy-r{k}"
            expected[k] = _mean_score(tools, store.samples(purpose="monitor", policy=version), number)
        assert stored == pytest.approx(expected, abs=1e-6)


def test_every_reward_has_mean_0_and_std_1_on_the_untouched_models_answers(store: Store, tools: Tools) -> None:
    from backflip.cycle.artefacts import load_answers

    rows = store.samples(round=1, purpose="rate")
    layer = middle_layer(tools.loaded.trunk.layers)
    prompts, answers = [tools.prompts[s.prompt_id] for s in rows], load_answers(tools.root, rows)
    features = features_of(tools.reader.read(prompts, answers, layers=(layer,)), tools.chat, prompts, answers)
    for number in (1, 2):
        score = load_reward(tools.root / "rounds" / f"r{number}" / "reward").score(features)
        assert (float(score.mean()), float(score.std())) == pytest.approx((0.0, 1.0), abs=1e-4)


def test_the_kl_of_a_policy_is_measured_against_the_untouched_model(store: Store, tools: Tools) -> None:
    from backflip.cycle.artefacts import load_answers

    rows = store.samples(purpose="final", policy="policy-r2")
    asked, answers = [tools.prompts[s.prompt_id] for s in rows], load_answers(tools.root, rows)
    policy = tools.reader.read(asked, answers, tools.policy("policy-r2").adapter)
    gap = (policy.logp - tools.reader.read(asked, answers).logp).sum(1)

    assert store.metrics(name="final/kl")[0].value == pytest.approx(float(gap.mean()), abs=1e-5)
    sampled = np.concatenate([a.logp for a in answers])
    assert np.abs(sampled - policy.logp[policy.mask].numpy()).max() < 1e-4  # sampled by the policy that was saved


def test_the_final_prompts_are_answered_once_after_the_last_round(store: Store) -> None:
    assert {s.round for s in store.samples(purpose="final")} == {2}
    assert len(store.samples(purpose="final")) == 2 * 4 * 2
    assert not [m for m in store.metrics(round=1) if m.name.startswith("final/")]


def test_a_round_leaves_one_line_that_a_person_can_read(seen: Seen) -> None:
    lines = [line for line in seen.said if line.startswith("round ") and "true utility" in line]

    assert [line.split(":")[0] for line in lines] == ["round 1", "round 2"]
    assert not [line for line in seen.said if "chat template" in line]


def test_the_reference_duels_are_counted_from_the_policys_side(store: Store) -> None:
    for number in (1, 2):
        samples = {s.id: s for s in store.samples(purpose="monitor")}
        pair: dict[str, Pair] = {p.id: p for p in store.pairs(round=number, stream="reference")}
        won: dict[str, list[float]] = {}
        for v in store.votes(round=number, stream="reference"):
            won.setdefault(pair[v.pair_id].prompt_id, []).append(_worth(v, pair[v.pair_id], samples))
        stored = store.metrics(round=number, name="people/win_rate")[0]
        assert stored.value == pytest.approx(float(np.mean([np.mean(w) for w in won.values()])))


def _worth(vote: Vote, pair: Pair, samples: dict[str, Sample]) -> float:
    if vote.choice == "tie":
        return 0.5
    chosen = pair.sample_a if vote.choice == "a" else pair.sample_b
    return float(samples[chosen].policy != "reference")


def test_a_run_with_full_fine_tuning_ends_in_a_merged_model_and_no_adapter(tiny_model: Path, tmp_path: Path) -> None:
    ppo = PPO(steps=2, prompts=4, answers=4, rank=0, learning_rate=1e-3, micro=6)
    root = new_run(tmp_path / "run", tiny_model, rounds=1, ppo=ppo)
    run_rounds(root)

    assert sorted(p.name for p in (root / "models").iterdir()) == ["policy", "reward"]
    with open_store(root / "run.db") as store:
        [kl] = store.metrics(round=1, name="monitor/kl")
    assert kl.value > 0.001  # it has moved


def test_answers_read_by_another_model_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    root = new_run(tmp_path / "run", folder, rounds=1)
    run_rounds(root)
    run_rounds(root)  # the same model goes on
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"] + 0.01
    save_file(weights, file, metadata={"format": "pt"})

    with pytest.raises(DataError, match=r"not the model this run began with(.|\n)*--dir"):
        run_rounds(root)


def test_the_unread_end_of_an_answer_is_judged_as_cut_off(tools: Tools) -> None:
    rated = tools.store.samples(round=1, purpose="rate")[0]
    whole = replace(rated, text="one two three . four", ended=True)
    half = replace(rated, text="one two three", ended=False)

    assert judge_sample(tools, whole, 0.5) == judge_sample(tools, half)
    assert judge_sample(tools, whole) != judge_sample(tools, half)
