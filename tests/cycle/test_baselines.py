"""The task's baselines in a run: answered once, measured beside policy and untouched model, shown in the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import all_prompts, new_run, save_prompts

from backflip.core.errors import ConfigError
from backflip.core.records import Metric
from backflip.cycle import baselines
from backflip.cycle.folder import PLAN, run_store
from backflip.cycle.plan import TaskPlan, plan_for, read_plan
from backflip.cycle.run import run_rounds
from backflip.report import report_run, tables
from backflip.tasks import TASKS


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one round on the task tldr, with posts of its own."""
    root = tmp_path_factory.mktemp("tldr") / "run"
    root.mkdir()
    posts = save_prompts(root / "posts.jsonl", all_prompts())
    run_rounds(new_run(root, tiny_model, prompts=posts, rounds=1, task=TaskPlan(name="tldr", prompts=str(posts))))
    return root


def measured(root: Path) -> dict[str, Metric]:
    with run_store(root, read_plan(root / PLAN)) as store:
        return {m.name: m for m in store.metrics(step="measure") if not m.tick}


def answers(root: Path) -> dict[str, list[tuple[str, bool]]]:
    out: dict[str, list[tuple[str, bool]]] = {}
    for line in (root / "baselines" / "final-zero-shot.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        out.setdefault(row["prompt"], []).append((row["text"], row["ended"]))
    return out


def test_policy_and_untouched_model_are_measured_against_the_baseline(run: Path):
    utility, found = TASKS["tldr"].utility(None), measured(run)
    with run_store(run, read_plan(run / PLAN)) as store:
        prompts = {p.id: p for p in store.prompts()}
        sides = {v: store.samples(purpose="final", policy=v) for v in ("policy-r1", "reference")}
    theirs = {i: [utility.judge(prompts[i], *a).value for a in rows] for i, rows in answers(run).items()}
    assert len(theirs) == 4
    assert {len(rows) for rows in theirs.values()} == {2}

    for version, name in (("policy-r1", "win_rate"), ("reference", "win_rate_reference")):
        shares = []
        for i, others in theirs.items():
            mine = [utility.judge(prompts[i], s.text, s.ended).value for s in sides[version] if s.prompt_id == i]
            shares.append(np.mean([(x > y) + 0.5 * (x == y) for x in mine for y in others]))
        assert found[f"final/against/zero-shot/{name}"].value == pytest.approx(np.mean(shares))
    worth = np.mean([np.mean(rows) for rows in theirs.values()])
    assert found["final/against/zero-shot/utility"].value == pytest.approx(worth)
    assert "monitor/against/zero-shot/win_rate" in found


def test_the_baseline_is_given_the_bare_post_and_no_chat_template(run: Path, tiny_model: Path, tmp_path: Path):
    asked: list[str] = []
    real = baselines.Engine

    class Listening:
        def __init__(self, trunk_of, chat, **keys):
            assert not chat.templated
            self._engine = real(trunk_of, chat, **keys)

        def load(self, version):
            return self._engine.load(version)

        def sample(self, prompts, *rest, **keys):
            asked.extend(p.text for p in prompts)
            return self._engine.sample(prompts, *rest, **keys)

    posts = save_prompts(tmp_path / "posts.jsonl", all_prompts())
    task = TaskPlan(name="tldr", prompts=str(posts))
    root = new_run(tmp_path / "run", tiny_model, prompts=posts, rounds=1, task=task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "Engine", Listening)
        run_rounds(root)

    assert len(asked) == 8  # four monitor and four final posts, each once
    assert all(text.endswith("\n\nTL;DR:") and "Sum up" not in text for text in asked)
    assert (root / "baselines" / "final-zero-shot.jsonl").read_bytes() == (
        run / "baselines" / "final-zero-shot.jsonl"
    ).read_bytes()


def test_the_report_shows_the_baseline_beside_the_models(run: Path):
    data = report_run(run)
    table = tables.stages(data)

    assert table is not None
    assert [row[0] for row in table.rows] == ["zero-shot “TL;DR:”", "untouched model", "policy after round 1 (RLHF)"]
    assert "zero-shot “TL;DR:”" in (run / "report.html").read_text(encoding="utf-8")


def test_a_task_brings_the_length_that_fits_it():
    plan = plan_for("tldr")

    assert (plan.task.name, plan.sampling.max_tokens) == ("tldr", 30)
    assert (plan_for("requests").sampling.max_tokens, plan_for("requests").task.name) == (40, "requests")
    with pytest.raises(ConfigError, match='no task "haiku"'):
        plan_for("haiku")
