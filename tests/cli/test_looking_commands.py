"""`backflip init`, `status`, `report` and `chat`: what only looks or writes a plan."""

import json
import tomllib
from itertools import pairwise

import pytest
import torch

from backflip.core.config import build
from backflip.cycle.plan import Model, Plan, TaskPlan, plan_toml
from backflip.cycle.plan_docs import plan_docs
from backflip.cycle.talk import load_policy
from backflip.raters.personas import Crowd, Persona


def test_init_writes_the_default_plan_with_every_key_explained(backflip, tmp_path):
    said = backflip("init", "mine.toml")
    text = (tmp_path / "mine.toml").read_text()
    lines = text.splitlines()
    bare = [
        line
        for before, line in pairwise(lines)
        if " = " in line and not line.startswith("#") and not before.startswith("# ")
    ]

    assert said.code == 0
    assert build(Plan, tomllib.loads(text), "mine.toml") == Plan()
    assert bare == []
    assert f"# Sample-and-update steps a round.\nsteps = {Plan().ppo.steps}\n" in text
    assert 'when there is one.\n# One of: "auto", "cpu", "cuda".\ndevice = "auto"\n' in text
    assert "\n[[raters.personas]]\n" in text
    assert max(map(len, lines)) <= 120


def test_init_never_overwrites(backflip, tmp_path):
    (tmp_path / "plan.toml").write_text("rounds = 9\n")
    said = backflip("init")

    assert said.code == 2
    assert said.err.startswith("backflip: plan.toml exists and is left as it is.")
    assert (tmp_path / "plan.toml").read_text() == "rounds = 9\n"


def test_init_in_a_folder_that_does_not_exist_is_told_plainly(backflip):
    said = backflip("init", "nowhere/plan.toml")

    assert said.code == 2
    assert said.err.startswith("backflip: nowhere/plan.toml cannot be written: No such file")


def test_every_key_of_a_plan_has_words_of_its_own():
    assert {key: text for key, text in plan_docs().items() if len(text) < 8} == {}
    assert len(plan_docs()) > 50


def test_any_plan_survives_being_written():
    plan = Plan(
        model=Model(name='a "quoted"\\path\nwith\ttabs\x7f and ü'),
        task=TaskPlan(weights={"warmth": 2.0, "say it": 1e-07}),
        raters=Crowd(personas=(Persona(name="warm", sees=("warmth", "once"), count=2), Persona(name="all", error=0.0))),
    )

    assert build(Plan, tomllib.loads(plan_toml(plan)), "x") == plan
    assert build(Plan, tomllib.loads(plan_toml(plan, docs=plan_docs())), "x") == plan


def test_status_tells_a_finished_run_and_its_figures(finished):
    words = finished.call("status", finished.root).out
    seen = json.loads(finished.call("status", "--json").out)

    assert "finished: 1 round, " in words
    assert "final/win_rate" in words
    assert seen["finished"] is True
    assert seen["waiting"] == 0
    assert seen["rounds"][0]["next"] is None
    assert list(seen["rounds"][0]["done"]) == ["sample", "rate", "fit", "optimise", "measure"]
    won = seen["figures"]["final/win_rate"]
    assert won["low"] <= won["value"] <= won["high"]


def test_raters_are_told_in_a_table_and_in_json(finished):
    words = finished.call("raters", finished.root).out
    told = json.loads(finished.call("raters", "--json").out)

    assert " votes by 6 raters" in words
    assert "crowd-1" in words
    assert {"id", "reliability", "without", "gold", "consistent"} <= told["raters"][0].keys()
    trust = told["raters"][0]["reliability"]
    assert 0 <= trust["low"] <= trust["value"] <= trust["high"] <= 1
    assert finished.call("raters", "--gold", "nobody").code == 2


def test_the_budget_says_what_more_votes_would_buy_or_that_there_are_too_few(finished):
    said = finished.call("budget", finished.root, "--votes", "0")
    assert (said.code, said.err.splitlines()[0]) == (2, "backflip: 0 votes buy nothing.")
    said = finished.call("budget", finished.root, "--json")

    if said.code:
        assert "prompts are too few" in said.err
    else:
        told = json.loads(said.out)
        assert told["gain"]["low"] <= told["gain"]["value"] <= told["gain"]["high"]


def test_status_and_report_of_a_run_that_has_not_begun(backflip, tmp_path):
    (tmp_path / "runs" / "new").mkdir(parents=True)
    (tmp_path / "runs" / "new" / "plan.toml").write_text(plan_toml(Plan()))
    seen = json.loads(backflip("status", "--json").out)
    report = backflip("report")

    assert seen["rounds"] == []
    assert not (tmp_path / "runs" / "new" / "run.db").exists()
    assert report.code == 2
    assert "has not begun" in report.err


def test_report_is_written_anew_and_its_json_is_what_the_page_shows(finished):
    page = finished.root / "report.html"
    page.unlink()
    path = finished.call("report").out
    told = json.loads(finished.call("report", finished.root, "--json").out)

    assert path == f"runs/{finished.root.name}/report.html\n"
    assert page.exists()
    assert told["report"] == str(page)
    assert told["counts"]["votes"] == sum(r["votes"] for r in told["raters"])
    assert told["kl_target"] == Plan().ppo.kl_target
    shown = told["side_by_side"][0]["policy"]
    assert shown["utility"] is not None
    assert set(shown["attributes"]) == {"warmth", "subject", "form", "once", "finished", "length"}


def test_chat_answers_once_with_the_trained_policy_or_the_untouched_model(finished):
    request = ("--prompt", "Say something kind about tea.", "--max-tokens", 8)
    trained, base = (json.loads(finished.call("chat", *request, "--json", *more).out) for more in ((), ("--base",)))

    assert trained["policy"] == "policy-r1"
    assert base["policy"] == "reference"
    assert 1 <= trained["tokens"] <= 8
    assert finished.call("chat", *request).out == trained["answer"] + "\n"


def test_chat_talks_with_the_weights_that_were_trained(finished):
    trained, base = (load_policy(finished.root, v).engine.trunk for v in (None, "reference"))
    assert trained is not None
    assert base is not None
    untouched = base.state()
    changed = [name for name, w in trained.state().items() if not torch.equal(w, untouched[name])]

    assert changed  # PPO changes linear layers of the blocks only
    assert [name for name in changed if "_proj" not in name] == []


def test_chat_answers_line_after_line_until_the_input_ends(finished):
    said = finished.call("chat", finished.root, stdin="Hello\n\nAnd you?\n" + "long " * 400 + "\n")

    assert said.code == 0
    assert "Each request stands alone" in said.err
    assert said.out.count("\n\n") == 2
    assert "exceeds the model's context" in said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--prompt", " "), "--prompt is empty"),
        (("--json",), "--json needs a request"),
        (("--prompt", "Hello", "--temperature", "inf"), "temperature = inf does not fit"),
    ],
)
def test_chat_refuses_what_it_cannot_answer(finished, words: tuple[str, ...], says: str):
    said = finished.call("chat", *words)

    assert said.code == 2
    assert said.err.startswith(f"backflip: {says}")


def test_a_folder_without_a_run_is_refused(finished):
    said = finished.call("status", finished.cwd)

    assert said.code == 2
    assert said.err.startswith(f"backflip: {finished.cwd} holds no run: it has no plan.toml.")


def test_a_plan_for_another_task_takes_what_fits_it(backflip, tmp_path):
    said = backflip("init", "short.toml", "--task", "tldr")
    plan = build(Plan, tomllib.loads((tmp_path / "short.toml").read_text()), "x")

    assert said.code == 0
    assert (plan.task.name, plan.sampling.max_tokens) == ("tldr", 30)


def test_a_task_that_is_not_built_in_is_refused_with_those_that_are(backflip, tmp_path):
    for command in ("init", "demo"):
        said = backflip(command, "--task", "haiku")
        assert said.code == 2
        assert said.err.splitlines()[-2:] == [
            'backflip: There is no task "haiku".',
            "It must be one of: requests, tldr.",
        ]
    assert list(tmp_path.iterdir()) == []
