"""What a notebook asks of a run: figures, votes and answers as rows, its policies, and its reward on plain texts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import new_run, plan_of

import backflip
from backflip.core.errors import BackflipError, ConfigError, DataError
from backflip.core.records import Prompt
from backflip.cycle.artefacts import load_answers
from backflip.cycle.plan import Plan, Rate
from backflip.cycle.talk import load_policy
from backflip.cycle.texts import load_reward
from backflip.policies.plan import PPO
from backflip.raters.personas import Crowd, Persona
from backflip.store import open_store


@pytest.fixture(scope="module")
def root(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = new_run(tmp_path_factory.mktemp("notebook") / "run", tiny_model)
    backflip.run_rounds(folder)
    return folder


def test_a_run_may_stand_wherever_a_folder_may(root: Path) -> None:
    for run in (root, str(root), backflip.open_run(root), backflip.open_run(str(root))):
        assert load_policy(run).version == "policy-r2"
        assert backflip.report_run(run).rounds_done == 2


def test_keys_of_a_plan_are_those_of_its_file_and_a_table_keeps_what_is_not_named(tmp_path: Path) -> None:
    crowd = Crowd(personas=(Persona(name="kind", sees=("warmth",), count=2),))
    keys: dict[str, Any] = {"task": {"prompts": tmp_path}, "ppo": PPO(steps=2), "rate": {"pairs": 40}, "raters": crowd}
    plan = backflip.plan_for("tldr", **keys)

    assert plan == replace(
        backflip.plan_for("tldr"),
        task=replace(backflip.plan_for("tldr").task, prompts=str(tmp_path)),
        ppo=PPO(steps=2),
        rate=Rate(pairs=40),
        raters=crowd,
    )
    assert (plan.task.name, plan.sampling.max_tokens) == ("tldr", 30)
    assert backflip.plan_for() == Plan()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"round": 1}, "unknown key round.\nDid you mean rounds?"),
        ({"ppo": {"step": 4}}, "unknown key ppo.step.\nDid you mean ppo.steps?"),
        ({"rate": {"pairs": -1}}, "rate.pairs = -1 does not fit."),
        ({"sampling": 3}, "sampling = 3 does not fit.\nIt must be a table"),
    ],
)
def test_a_key_that_does_not_fit_is_refused_by_name(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as e:
        backflip.plan_for(**keys)

    assert says in str(e.value)


def test_the_run_that_is_meant_is_the_one_named_the_unfinished_one_or_the_newest(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="There is no run below"):
        backflip.open_run()
    plan = plan_of(tiny_model, tmp_path / "prompts.jsonl")
    first = backflip.open_run(plan=plan)

    assert first.folder.parent == Path("runs")
    assert backflip.open_run() == backflip.open_run(plan=plan) == first
    assert backflip.open_run(plan=replace(plan, seed=9)).folder != first.folder
    with pytest.raises(ConfigError, match="already holds a run with another plan"):
        backflip.open_run(first, replace(plan, seed=9))
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="cannot be a run's folder"):
        backflip.open_run("taken", plan)


def test_a_run_that_has_not_begun_has_no_figures_votes_or_answers_and_is_not_begun_by_asking(
    tiny_model: Path, tmp_path: Path
) -> None:
    run = backflip.open_run(tmp_path / "run", plan_of(tiny_model, tmp_path / "prompts.jsonl"))

    assert (run.metrics(), run.votes(), run.answers()) == ([], [], [])
    assert [p.name for p in run.folder.iterdir()] == ["plan.toml"]


def test_rows_are_those_that_an_export_writes(root: Path, tmp_path: Path) -> None:
    run = backflip.open_run(root)
    backflip.export_data(run, str(tmp_path / "data"))
    written = {
        name: [json.loads(line) for line in (tmp_path / "data" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("preferences", "samples")
    }

    assert run.votes() == written["preferences"]
    assert run.answers() == written["samples"]
    with open_store(root / "run.db") as store:
        assert run.metrics(round=2, step="fit") == store.metrics(round=2, step="fit") != []


def test_votes_given_as_rows_are_imported_as_a_file_of_them_would_be(tiny_model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "the sun", "chosen": "good", "rejected": "bad", "rater": "ann"},
        {"prompt": "the sea", "chosen": "good", "rejected": "good", "rater": "ann"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = new_run(tmp_path / "run", tiny_model)
    with pytest.raises(DataError, match="row 2: chosen is equal to rejected"):
        backflip.import_votes(root, rows)
    done = backflip.import_votes(root, iter(rows), skip_bad=True)
    again = backflip.import_votes(root, file, skip_bad=True)

    assert (done.preferences, done.known, done.left_out) == (1, 0, ["row 2: chosen is equal to rejected."])
    assert (again.preferences, again.known) == (0, 1)
    assert [(v["chosen"], v["rater"]) for v in backflip.open_run(root).votes()] == [("good", "ann")]


def test_rows_that_are_no_votes_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rows holds prompts, and a run takes votes"):
        backflip.import_votes(new_run(tmp_path / "run", tiny_model), [{"prompt": "the sun"}])


def test_an_earlier_policy_and_the_untouched_model_can_be_loaded_by_name(root: Path) -> None:
    said = {v: load_policy(root, v, seed=5) for v in ("reference", "policy-r1", "policy-r2")}

    assert [policy.version for policy in said.values()] == list(said)
    texts = {v: [a.text for a in policy.answers(["we love tea"], each=12)[0]] for v, policy in said.items()}
    assert len({tuple(t) for t in texts.values()}) == 3
    with pytest.raises(BackflipError, match=r'no policy "policy-r3"(.|\n)*policy-r1, policy-r2'):
        load_policy(root, "policy-r3")


def test_many_requests_at_once_are_answered_as_one_by_one(root: Path) -> None:
    texts = ["we love tea", "is the sea blue", "one cake for my dog"]
    one, many = load_policy(root), load_policy(root)
    apart = [one.answer(text).text for text in texts]

    assert [[a.text for a in row] for row in many.answers(texts)] == [[text] for text in apart]
    assert many.turn == one.turn == 3
    assert [[a.index for a in row] for row in many.answers(texts, each=2)] == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (0.0, float("nan"), float("inf"), "1", True)),
        *(("max_tokens", v) for v in (0, -1, 2.5, float("inf"), "8", True)),
    ],
)
def test_a_number_no_policy_can_answer_with_is_refused(root: Path, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"(?s){name} = .* does not fit.*take the plan's"):
        load_policy(root, **{name: value})


def test_numbers_of_numpy_are_numbers(root: Path) -> None:
    policy = load_policy(root, temperature=np.float32(0.5), max_tokens=np.int64(3))  # type: ignore[arg-type]

    assert [len(row) for row in policy.answers(["we love tea"], each=np.int64(2))] == [2]  # type: ignore[arg-type]


@pytest.mark.parametrize("each", [0, -1, 1.5, "2", True])
def test_fewer_answers_than_one_cannot_be_asked_for(root: Path, each: Any) -> None:
    with pytest.raises(ConfigError, match="each = .* does not fit.\nIt must be a whole number of 1 or more"):
        load_policy(root).answers(["we love tea"], each=each)


@pytest.mark.parametrize("texts", ["we love tea", ["we love tea", 3], [None]])
def test_anything_but_a_list_of_texts_is_no_request(root: Path, texts: Any) -> None:
    with pytest.raises(
        ConfigError, match="texts = .* does not fit.\nIt must be a list of texts; one text alone goes to"
    ):
        load_policy(root).answers(texts)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_request_is_refused_and_uses_up_no_luck(root: Path, text: str) -> None:
    policy = load_policy(root)
    with pytest.raises(DataError, match="Request 2 is empty"):
        policy.answers(["we love tea", text])
    with pytest.raises(DataError, match="Request 1 is empty"):
        policy.answer(text)

    assert policy.turn == 0
    assert policy.answers([]) == []


@pytest.mark.parametrize("pair", [("we love tea", 3), ("we love tea", None), ("one", "two", "three"), "ab", 7])
def test_anything_but_a_request_and_an_answer_has_no_score(root: Path, pair: Any) -> None:
    with pytest.raises(ConfigError, match=r"pairs\[1\] = .* does not fit.\nIt must be \(request, answer\)"):
        load_reward(root).score([("we love tea", "good"), pair])


def test_a_loaded_reward_has_mean_0_and_std_1_on_the_untouched_models_answers(root: Path) -> None:
    with open_store(root / "run.db") as store:
        rows = store.samples(round=1, purpose="rate")
        asked: dict[str, Prompt] = {p.id: p for p in store.prompts()}
    pairs = [(asked[s.prompt_id].text, a) for s, a in zip(rows, load_answers(root, rows), strict=True)]
    for version in ("reward-r1", "reward-r2"):
        scores = load_reward(root, version).score(pairs)
        assert (scores.mean(), scores.std()) == pytest.approx((0.0, 1.0), abs=1e-4)


def test_a_text_scores_as_the_answer_that_says_it(root: Path) -> None:
    reward, policy = load_reward(root), load_policy(root, max_tokens=40)
    asked = "we love tea"
    ended = [a for a in policy.answers([asked], each=24)[0] if a.ended and a.text]
    chat = reward.model.reader.chat
    same = [a for a in ended if chat.encode_answer(a.text) == a.tokens.tolist()]  # what decoding drops stays dropped
    cut = replace(same[0], tokens=same[0].tokens[:-1], logp=same[0].logp[:-1], ended=False)

    assert len(same) >= 2
    assert reward.score([(asked, a.text) for a in same]) == pytest.approx(reward.score([(asked, a) for a in same]))
    assert reward.score([(asked, cut)])[0] != pytest.approx(reward.score([(asked, same[0])])[0])


def test_each_pair_scores_the_same_whatever_stands_beside_it(root: Path) -> None:
    reward = load_reward(root)
    pairs = [("we love tea", "good"), ("the sea", "good"), ("we love tea", "bad bad bad bad dog"), ("the sea", "")]
    alone = np.concatenate([reward.score([pair]) for pair in pairs])

    assert reward.score(pairs) == pytest.approx(alone, abs=1e-4)
    assert len(set(alone.round(6).tolist())) == 4
    assert reward.score([]).shape == (0,)


def test_a_text_that_no_model_could_read_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="exceeds the model's context"):
        load_reward(root).score([("we love tea", "tea " * 80)])


def test_a_reward_that_is_not_there_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", tiny_model)
    with pytest.raises(BackflipError, match="has no finished reward yet"):
        load_reward(run)
    with pytest.raises(ConfigError, match="holds no run"):
        load_reward(tmp_path / "nowhere")
