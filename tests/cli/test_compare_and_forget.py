"""`backflip compare` and `backflip forget`, on tiny runs."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Call

from backflip.cycle.folder import PLAN, run_store
from backflip.cycle.plan import Plan, read_plan
from backflip.store import Store


@pytest.fixture(scope="module")
def runs(tiny_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, `a` and `b`, of different seeds and steps, and `new`, which has not begun."""
    from backflip.cycle.folder import start_run
    from backflip.cycle.run import run_rounds

    folder = tmp_path_factory.mktemp("two-runs")
    start_run(folder / "a", tiny_plan)
    start_run(folder / "b", replace(tiny_plan, seed=5, ppo=replace(tiny_plan.ppo, learning_rate=0.02)))
    for name in "ab":
        run_rounds(folder / name)
    start_run(folder / "new", tiny_plan)
    return folder


def open_run(root: Path) -> Store:
    return run_store(root, read_plan(root / PLAN))


def test_two_runs_side_by_side(runs: Path, backflip: Call):
    said = backflip("compare", "a", "b", cwd=runs)

    assert said.code == 0, said.err
    assert "  seed                      A 0   B 5" in said.out
    assert "  ppo.learning_rate         A 0.0015   B 0.02" in said.out
    assert "monitor/kl:" in said.out
    assert "objective/kl, step by step:" in said.out
    assert "A's policy-r1 wins " in said.out
    assert " against B's policy-r1 (95%: " in said.out
    assert " by the true utility on 4 final prompts" in said.out


def test_the_win_rate_turns_round_with_the_runs(runs: Path, backflip: Call):
    one, two = (json.loads(backflip("compare", *x, "--json", cwd=runs).out)["duel"] for x in ("ab", "ba"))

    assert one["win_rate"][0] + two["win_rate"][0] == pytest.approx(1.0)
    assert one["win_rate"][1] <= one["win_rate"][0] <= one["win_rate"][2]


def test_the_win_rate_is_the_share_of_answer_pairs_with_the_higher_utility(runs: Path, backflip: Call):
    from backflip.tasks import TASKS

    plan = read_plan(runs / "a" / PLAN)
    utility = TASKS[plan.task.name].utility(None)
    worth: list[dict[str, list[float]]] = []
    for name in "ab":
        with open_run(runs / name) as store:
            prompts = {p.id: p for p in store.prompts()}
            by_text: dict[str, list[float]] = {}
            for s in store.samples(purpose="final", policy="policy-r1"):
                value = utility.judge(prompts[s.prompt_id], s.text, s.ended).value
                by_text.setdefault(prompts[s.prompt_id].text, []).append(value)
            worth.append(by_text)
    shares = [
        sum((x > y) + 0.5 * (x == y) for x in worth[0][t] for y in worth[1][t]) / (len(worth[0][t]) * len(worth[1][t]))
        for t in worth[0]
    ]
    found = json.loads(backflip("compare", "a", "b", "--json", cwd=runs).out)["duel"]["win_rate"][0]

    assert found == pytest.approx(sum(shares) / len(shares))


def test_a_run_against_itself_is_even(runs: Path, backflip: Call):
    document = json.loads(backflip("compare", "a", "a", "--json", cwd=runs).out)

    assert document["plan"] == {}
    assert document["duel"]["win_rate"][0] == 0.5


def with_history(root: Path, prompts: str) -> None:
    """Something was said before the prompts of a run whose ids are like `prompts`."""
    import sqlite3

    with sqlite3.connect(root / "run.db") as raw:
        said = json.dumps([["system", "be kind"]])
        raw.execute("UPDATE prompts SET history = ? WHERE id IN (SELECT id FROM prompts WHERE " + prompts + ")", [said])
    raw.close()


def test_prompts_that_share_only_their_last_turn_are_not_the_same(runs: Path, tmp_path: Path, backflip: Call):
    shutil.copytree(runs / "a", tmp_path / "other")
    with_history(tmp_path / "other", "split = 'final' ORDER BY id LIMIT 1")
    some = json.loads(backflip("compare", runs / "a", tmp_path / "other", "--json", cwd=tmp_path).out)
    with_history(tmp_path / "other", "true")
    none = backflip("compare", runs / "a", tmp_path / "other", cwd=tmp_path)

    assert (some["duel"]["split"], some["duel"]["prompts"]) == ("final", 3)
    assert "no win rate of A against B: they share no monitor prompts" in none.out


def test_runs_without_a_common_prompt_have_no_win_rate(runs: Path, tmp_path: Path, backflip: Call):
    shutil.copytree(runs / "a", tmp_path / "other")
    import sqlite3

    with sqlite3.connect(tmp_path / "other" / "run.db") as raw:
        raw.execute("UPDATE prompts SET text = 'other ' || text")
    raw.close()
    said = backflip("compare", runs / "a", tmp_path / "other", cwd=tmp_path)

    assert said.code == 0
    assert "no win rate of A against B: they share no monitor prompts" in said.out


def test_a_run_that_has_not_begun_cannot_be_compared(runs: Path, backflip: Call):
    said = backflip("compare", "a", "new", cwd=runs)

    assert said.code == 2
    assert said.err.splitlines() == [
        "backflip: new has not begun, so there is nothing to compare.",
        "A comparison reads what two runs have measured.",
        "Start it with: backflip run --dir new",
    ]


def test_a_folder_without_a_run_cannot_be_compared(runs: Path, backflip: Call):
    said = backflip("compare", "a", "nowhere", cwd=runs)

    assert said.code != 0
    assert said.err.startswith("backflip: nowhere holds no run")


def busiest_rater(root: Path) -> tuple[str, int]:
    with open_run(root) as store:
        cast = [v.rater_id for v in store.vote_log()]
    return max(((r, cast.count(r)) for r in set(cast)), key=lambda x: (x[1], x[0]))


def test_a_forgotten_rater_leaves_no_trace_but_what_is_told(runs: Path, tmp_path: Path, backflip: Call):
    root = tmp_path / "a"
    shutil.copytree(runs / "a", root)
    backflip("report", root, cwd=tmp_path)
    rater, count = busiest_rater(root)
    (root / "exports").mkdir()
    (root / "exports" / "votes.jsonl").write_text(json.dumps({"rater": rater}) + "\n")
    said = backflip("forget", rater, root, "--yes", cwd=tmp_path)

    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0] == f"forgotten: {rater}, with {count} votes"
    assert lines[1] == "still made with these votes: the reward of round 1, and every policy trained on it"
    assert f"{root}/exports/votes.jsonl: still names them: delete it or export again" in lines
    assert f"{root}/report.html: written anew without them" in lines
    assert rater.encode() not in (root / "run.db").read_bytes()
    assert rater.encode() not in (root / "report.html").read_bytes()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("place", ["exports/data", "data", "exports/deep/down"])
def test_every_data_export_in_the_runs_folder_that_names_the_rater_is_told(
    runs: Path, tmp_path: Path, backflip: Call, kind: str, place: str
):
    root = tmp_path / "a"
    shutil.copytree(runs / "a", root)
    where = [] if place == "exports/data" else ["--out", root / place]
    exported = backflip("export", "data", root, "--format", kind, *where, cwd=tmp_path)
    rater, _ = busiest_rater(root)
    files = json.loads(backflip("forget", rater, root, "--yes", "--json", cwd=tmp_path).out)["files"]

    assert exported.code == 0, exported.err
    assert files == [str(root / place / f"preferences.{kind}")]


def test_a_rater_whose_name_is_written_with_escapes_is_found_in_what_was_handed_out(tmp_path: Path):
    from backflip.cycle.forget import naming

    name = 'Ann "é" <A&B>'
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "ascii.jsonl").write_text(json.dumps({"rater": name}))
    (tmp_path / "exports" / "plain.jsonl").write_text(json.dumps({"rater": name}, ensure_ascii=False))
    (tmp_path / "exports" / "other.jsonl").write_text(json.dumps({"rater": "Ann"}))
    (tmp_path / "exports" / "model.safetensors").write_bytes(name.encode())
    (tmp_path / "report.html").write_text("<td>Ann &#34;é&#34; &lt;A&amp;B&gt;</td>")

    found = naming(tmp_path, {name})
    assert [str(p.relative_to(tmp_path)) for p in found] == [
        "exports/ascii.jsonl",
        "exports/plain.jsonl",
        "report.html",
    ]


@pytest.mark.parametrize("missing", [True, False], ids=["without pyarrow", "damaged"])
def test_a_parquet_file_that_cannot_be_read_is_told_for_it_may_name_the_rater(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
):
    from backflip.cycle.forget import naming

    file = tmp_path / "data" / "preferences.parquet"
    file.parent.mkdir()
    file.write_bytes(b"PAR1")
    if missing:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    assert naming(tmp_path, {"ann"}) == [file]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_commands_that_forgetting_names_fit_again_on_the_votes_that_are_left(
    runs: Path, tmp_path: Path, backflip: Call, kind: str
):
    root = tmp_path / "my runs" / "a"
    shutil.copytree(runs / "a", root)
    rater, _ = busiest_rater(root)
    with open_run(root) as store:
        before = [v for v in store.votes() if v.choice != "skip"]
        theirs = sum(v.rater_id == rater for v in before)
    said = backflip("forget", rater, root, "--yes", cwd=tmp_path)
    told = [shlex.split(line) for line in said.out.splitlines() if line.startswith("  ")]
    for words in told:
        if words[0] == "backflip":
            more = ["--format", kind] if words[1] == "export" else []
            done = backflip(*words[1:], *more, cwd=tmp_path)
            assert done.code == 0, done.err
        else:
            subprocess.run(shlex.join(words).replace("'&&'", "&&"), shell=True, check=True, cwd=tmp_path)
    new = tmp_path / "my runs" / "a-anew"
    with open_run(new) as store:
        imported = [v for v in store.votes() if v.key.startswith("import/")]
        done_steps = store.steps_done(1)

    assert [words[0] for words in told] == ["backflip", "mkdir", "backflip", "backflip"]
    assert len(imported) == len(before) - theirs > 0
    assert rater not in {v.rater_id for v in imported}
    assert "measure" in done_steps


def test_inside_a_runs_folder_the_commands_name_a_run_beside_it(runs: Path, tmp_path: Path, backflip: Call):
    root = tmp_path / "a"
    shutil.copytree(runs / "a", root)
    rater, _ = busiest_rater(root)
    said = backflip("forget", rater, ".", "--yes", cwd=root)

    assert said.code == 0, said.err
    assert f"  backflip run --dir {tmp_path / 'a-anew'}" in said.out.splitlines()


def test_forgetting_says_as_json_what_must_be_refitted(runs: Path, tmp_path: Path, backflip: Call):
    root = tmp_path / "a"
    shutil.copytree(runs / "a", root)
    rater, count = busiest_rater(root)
    document = json.loads(backflip("forget", rater, root, "--yes", "--json", cwd=tmp_path).out)

    assert document == {
        "run": str(root), "rater": rater, "votes": count, "demonstrations": 0, "imitated": False, "refit": [1],
        "measured": [1], "files": [],
    }  # fmt: skip


def test_votes_above_the_watermark_need_no_refit(runs: Path, tmp_path: Path, backflip: Call):
    from backflip.core.records import Rater

    root = tmp_path / "a"
    shutil.copytree(runs / "a", root)
    with open_run(root) as store:
        vote = store.vote_log()[0]
        with store.begin() as tx:
            tx.add_raters([Rater(id="late", kind="person", name="Late Larry")])
            tx.cast([replace(vote, key="late/1", rater_id="late", seq=None)])
    document = json.loads(backflip("forget", "late", root, "--yes", "--json", cwd=tmp_path).out)

    assert (document["votes"], document["refit"]) == (1, [])


def test_nobody_is_forgotten_unasked_or_by_a_wrong_name(runs: Path, tmp_path: Path, backflip: Call):
    root = tmp_path / "a"
    shutil.copytree(runs / "a", root)
    rater, count = busiest_rater(root)
    unasked = backflip("forget", rater, root, cwd=tmp_path)
    wrong = backflip("forget", "eve", root, "--yes", cwd=tmp_path)

    assert unasked.code != 0
    assert unasked.err.startswith(f"backflip: Nothing was removed: forgetting {rater} cannot be undone")
    assert wrong.code != 0
    assert f"{root} has no rater 'eve', so nothing was removed." in wrong.err
    assert rater in wrong.err
    assert busiest_rater(root) == (rater, count)


def test_a_run_under_way_forgets_nobody(runs: Path, tmp_path: Path, backflip: Call):
    from backflip.cycle.folder import only_process

    root = tmp_path / "a"
    shutil.copytree(runs / "a", root)
    rater, count = busiest_rater(root)
    with only_process(root):
        said = backflip("forget", rater, root, "--yes", cwd=tmp_path)

    assert said.code != 0
    assert busiest_rater(root) == (rater, count)
