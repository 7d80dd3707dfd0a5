"""The owner's page and the progress page over the API."""

import io
import json
from collections.abc import Callable

import pytest
from person import Person

from backflip.core.records import Metric
from backflip.cycle.folder import only_process

LetIn = Callable[..., Person]


def test_the_owner_sees_how_everybody_votes(ann: Person, bob: Person, olga: Person) -> None:
    twice = next(p.id for p in ann.store.pairs() if p.raters_wanted == 2)
    ann.vote(twice, "left", latency_s=2.0)
    bob.vote(twice, "tie", latency_s=5.0)
    rows = {r["name"]: r for r in olga.get("/api/owner/raters").json()["raters"]}

    assert set(rows) == {"Ann", "Bob", "Olga"}
    assert (rows["Ann"]["votes"], rows["Ann"]["median_s"], rows["Ann"]["agreement"]) == (1, 2.0, 0.0)
    assert (rows["Ann"]["left_share"], rows["Bob"]["left_share"]) == (1.0, None)
    assert (rows["Olga"]["role"], rows["Olga"]["votes"], rows["Olga"]["revoked"]) == ("owner", 0, False)


def test_guidelines_are_kept_in_every_version(olga: Person, ann: Person) -> None:
    for text in ("Be kind.", "Be brief.", "Be brief."):
        olga.post("/api/owner/guidelines", text=text)

    told = olga.get("/api/owner/guidelines").json()["versions"]
    assert [(v["version"], v["text"]) for v in told] == [(2, "Be brief."), (1, "Be kind.")]
    assert ann.get("/api/pairs").json()["guidelines"] == {"version": 2, "text": "Be brief."}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_votes_are_exported_with_what_a_study_needs(ann: Person, olga: Person, form: str) -> None:
    [pair] = ann.pairs(1)
    ann.vote(pair, "left", latency_s=3.5)
    told = olga.get(f"/api/owner/export?form={form}")
    if form == "jsonl":
        [row] = map(json.loads, told.text.splitlines())
    else:
        from pyarrow.parquet import read_table

        [row] = read_table(io.BytesIO(told.content)).to_pylist()

    assert (row["rater"], row["latency_s"], row["policy"], row["probability"]) == (ann.id, 3.5, "reference", 1.0)
    assert (row["pair"], row["shown_first"], row["guidelines"]) == (pair["pair"], "chosen", 0)
    assert row["chosen"] == pair["left"]["text"]


def test_a_forgotten_rater_is_gone_and_their_pairs_are_asked_again(ann: Person, bob: Person, olga: Person) -> None:
    [pair] = ann.pairs(1)
    ann.vote(pair)
    told = olga.post(f"/api/owner/raters/{ann.id}/forget")

    assert (told.status_code, told.json()["votes"]) == (200, 1)
    assert ann.get("/api/me").status_code == 401
    assert ann.id not in {r.id for r in olga.store.raters()}
    assert pair["pair"] in {p["pair"] for p in bob.pairs(12)}


def test_while_the_run_is_trained_a_rater_is_shut_out_and_the_owner_is_told(ann: Person, olga: Person) -> None:
    run = olga.client.app.state.run  # type: ignore[attr-defined]
    with only_process(run.root):
        told = olga.post(f"/api/owner/raters/{ann.id}/forget")

    assert told.status_code == 409
    assert "being run by process" in told.json()["error"]
    assert ann.get("/api/me").status_code == 401
    assert olga.post(f"/api/owner/raters/{ann.id}/forget").status_code == 200


def test_progress_tells_rounds_curves_votes_and_what_is_waited_for(ann: Person, bob: Person) -> None:
    for pair in ann.pairs(3):
        ann.vote(pair)
    with ann.store.begin() as tx:
        tx.mark_done(1, "sample", 1.0)
        tx.add_metrics(
            [
                Metric(round=1, step="measure", tick=0, name="monitor/proxy", value=0.5, low=0.4, high=float("nan")),
                Metric(round=1, step="measure", tick=0, name="monitor/kl", value=float("nan")),
                Metric(round=1, step="optimise", tick=2, name="objective/kl", value=3.0),
            ]
        )
    told = ann.get("/api/progress").json()
    run = ann.client.app.state.run  # type: ignore[attr-defined]

    assert told["rounds"] == [{"round": 1, "steps": ["sample"], "pairs": 12, "votes": 3}]
    assert told["votes"] == [{"rater": ann.id, "name": "Ann", "count": 3}]
    monitor, optimise = told["curves"]
    assert (monitor["step"], monitor["proxy"], monitor["proxy_low"], monitor["proxy_high"]) == (
        "monitor", 0.5, 0.4, None,
    )  # fmt: skip
    assert (monitor["kl"], monitor["win_rate"]) == (None, None)
    assert (optimise["step"], optimise["tick"], optimise["kl"]) == ("optimise", 2, 3.0)
    assert told["state"] == "paused"
    with only_process(run.root):
        told = bob.get("/api/progress").json()
    assert (told["state"], told["waits_for"]) == ("waiting", "Round 1 waits for 10 more votes.")


def test_the_answers_behind_a_point_are_told(ann: Person) -> None:
    told = ann.get("/api/samples?round=1&step=optimise&tick=1").json()["samples"]

    assert len(told) == 24
    assert told[0]["policy"] == "reference"
    assert told[0]["prompt"][0]["role"] == "user"


def test_the_panel_is_told_with_where_to_stop(ann: Person) -> None:
    assert ann.get("/api/progress").json()["panel"] is None
    rows = {"objective/kl": lambda d: d * d, "objective/scores": lambda d: d, "gold/utility": lambda d: d - d * d / 3}
    with ann.store.begin() as tx:
        tx.add_metrics(
            [
                Metric(round=1, step="optimise", tick=k, name=name, value=of(0.2 * k))
                for k in range(1, 16)
                for name, of in rows.items()
            ]
            + [Metric(round=1, step="measure", tick=0, name="people/win_rate", value=0.5, low=float("nan"), high=0.6)]
        )
    told = ann.get("/api/progress").json()["panel"]

    assert told["here"] is True
    assert told["said"].startswith("Stop here: ")
    assert "15 steps of round 1" in told["over"]
    keys = [one[0] for trace in told["data"] for one in trace.get("customdata", [])]
    assert keys == [f"r1-s{k}" for k in range(1, 16)]  # no gold: nobody knows the untouched model's here
    assert told["dark"]["#b54708"] == "#f7a35c"


def test_the_panel_of_a_damaged_step_leaves_it_out(ann: Person) -> None:
    with ann.store.begin() as tx:
        tx.add_metrics(
            [
                Metric(round=1, step="optimise", tick=k, name=name, value=float("nan") if k == 4 else float(k))
                for k in range(1, 9)
                for name in ("objective/kl", "objective/scores")
            ]
        )
    told = ann.get("/api/progress").json()["panel"]

    keys = [one[0] for trace in told["data"] for one in trace.get("customdata", [])]
    assert keys == [f"r1-s{k}" for k in range(1, 9) if k != 4]


def test_a_steps_own_answers_are_told_where_they_were_kept(ann: Person) -> None:
    run = ann.client.app.state.run  # type: ignore[attr-defined]
    prompt = run.store.prompts()[0]
    folder = run.root / "rounds" / "r1" / "shown"
    folder.mkdir(parents=True)
    row = {"prompt_id": prompt.id, "text": "<i>said</i>", "ended": True, "length": 2, "score": 0.5}
    (folder / "00007.jsonl").write_text(json.dumps(row) + "\n")
    [told] = ann.get("/api/samples?round=1&step=optimise&tick=7").json()["samples"]

    assert (told["text"], told["policy"]) == ("<i>said</i>", "step 7, score +0.50")
    assert told["prompt"][-1]["content"] == prompt.text


def test_who_is_forgotten_elsewhere_leaves_pairs_to_be_asked_again(ann: Person, bob: Person) -> None:
    [pair] = ann.pairs(1)
    ann.vote(pair)
    assert pair["pair"] not in {p["pair"] for p in bob.pairs(12)}
    ann.store.forget_rater(ann.id)  # as `backflip forget` does, in a process of its own
    bob.client.app.state.run._at = float("-inf")  # type: ignore[attr-defined]

    assert pair["pair"] in {p["pair"] for p in bob.pairs(12)}
