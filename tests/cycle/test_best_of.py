"""Best of n beside the climb: drawn once, scored by every round's reward, worked again from the files."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from tiny_run import new_run

from backflip.core.records import Answer, Metric, Prompt
from backflip.cycle import shown
from backflip.cycle.best_of import ANSWERS
from backflip.cycle.plan import Measure
from backflip.cycle.run import run_rounds
from backflip.policies.rollout import Step
from backflip.rewards.model import load_reward
from backflip.store import open_store
from backflip.tasks import TASKS

MEASURE = Measure(monitor_prompts=4, monitor_answers=2, final_prompts=4, final_answers=2, best_of=6)


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = new_run(tmp_path_factory.mktemp("best-of") / "run", tiny_model, measure=MEASURE)
    run_rounds(root)
    return root


def measured(root: Path, number: int) -> dict[tuple[str, int], Metric]:
    with open_store(root / "run.db") as store:
        return {(m.name, m.tick): m for m in store.metrics(round=number, step="measure")}


def test_the_curves_are_the_means_over_every_choice_of_n(run: Path) -> None:
    said = [json.loads(x) for x in (run / ANSWERS).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    features = np.load((run / ANSWERS).with_suffix(".readings.npz"))["features"]
    assert [sum(s["prompt"] == p for s in said) for p in dict.fromkeys(s["prompt"] for s in said)] == [6] * 4
    judge = TASKS["requests"].utility(None).judge
    with open_store(run / "run.db") as store:
        prompts = {p.id: p for p in store.prompts()}
    utility = [judge(prompts[s["prompt"]], s["text"], s["ended"]).value for s in said]
    gold = np.reshape(utility, (4, 6))
    for number in (1, 2):
        proxy = load_reward(run / "rounds" / f"r{number}" / "reward").score(features).reshape(4, 6)
        found = measured(run, number)
        for n in (2, 3, 6):
            best = [
                [g[max(c, key=lambda i: p[i])] for c in combinations(range(6), n)]
                for p, g in zip(proxy, gold, strict=True)
            ]
            assert found["best_of/gold", n].value == pytest.approx(np.mean(best) - gold.mean())
            top = [[max(p[list(c)]) for c in combinations(range(6), n)] for p in proxy]
            assert found["best_of/proxy", n].value == pytest.approx(np.mean(top) - proxy.mean())
        assert found["best_of/gold_sd", 0].value == pytest.approx(gold.std(ddof=1))
        assert found["best_of/gold_gain", 0] == Metric(
            **(vars(found["best_of/gold", 6]) | {"name": "best_of/gold_gain", "tick": 0})
        )


def test_both_laws_are_kept_and_none_is_judged_on_too_few_answers(run: Path) -> None:
    names = {name for name, tick in measured(run, 1) if not tick}

    assert {"best_of/best_of_n/alpha", "best_of/rl/beta"} <= names
    assert not any("foretold" in name for name in names)  # 6 answers: n <= 6 / 4 is no curve


def test_the_answers_are_drawn_once_and_drawn_anew_when_damaged(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    before = (run / ANSWERS).read_bytes()
    root = new_run(tmp_path / "run", tiny_model, rounds=1, measure=MEASURE)
    (root / ANSWERS).parent.mkdir()
    (root / ANSWERS).write_bytes(b"torn")
    (root / ANSWERS).with_suffix(".jsonl").write_bytes(before)
    run_rounds(root)

    assert (root / ANSWERS).read_bytes() == before
    told = [measured(r, 1)["best_of/gold", 6].value for r in (run, root)]
    assert told[0] == told[1]


def test_a_plan_without_best_of_n_draws_nothing(tiny_model: Path, tmp_path: Path) -> None:
    few = Measure(monitor_prompts=4, monitor_answers=1, final_prompts=2, final_answers=1, best_of=0)
    root = new_run(tmp_path / "run", tiny_model, rounds=1, measure=few)
    run_rounds(root)

    assert not (root / ANSWERS).exists()
    assert not any(name.startswith("best_of/") for name, _ in measured(root, 1))


def test_some_answers_of_every_step_are_kept(run: Path) -> None:
    with open_store(run / "run.db") as store:
        prompts = {p.id: p for p in store.prompts()}
    for tick in (1, 2):
        kept = shown.load_shown(run, 2, tick, prompts)
        assert len({s.prompt_id for s in kept}) == len(kept) == 4
        assert {prompts[s.prompt_id].split for s in kept} == {"train"}
        assert all(np.isfinite(s.score) and s.length > 0 for s in kept)
    assert shown.load_shown(run, 2, 3, prompts) == []
    assert shown.load_shown(run, 2, 1, {}) == []


def test_the_first_answer_to_each_prompt_is_kept(tmp_path: Path) -> None:
    answers = [
        Answer(
            prompt_id=f"p{i // 2}", index=i % 2, policy="policy", tokens=np.array([i]), logp=np.zeros(1, np.float32),
            ended=True, text=f"said {i}",
        )
        for i in range(12)
    ]  # fmt: skip
    step = Step(None, answers, np.arange(12.0), {})  # type: ignore[arg-type]
    shown.save_shown(tmp_path, 1, 5, step)
    prompts = {f"p{i}": Prompt(id=f"p{i}", split="train", text="ask") for i in range(6)}

    kept = shown.load_shown(tmp_path, 1, 5, prompts)
    assert [(s.prompt_id, s.text, s.score) for s in kept] == [(f"p{i}", f"said {2 * i}", 2.0 * i) for i in range(4)]


def test_score_and_length_are_correlated_at_every_step_where_both_vary(run: Path) -> None:
    with open_store(run / "run.db") as store:
        lengths = {m.tick for m in store.metrics(round=1, step="optimise", name="length/mean") if m.value < 8}
        found = {m.tick: m.value for m in store.metrics(round=1, step="optimise", name="length/score_correlation")}

    assert set(found) == lengths != set()  # an answer ends after 8 tokens at most
    assert all(-1 <= r <= 1 for r in found.values())
