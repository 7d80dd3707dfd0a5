"""What the step `fit` reads of votes, thumbs and chats."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import new_run

from backflip.core.records import Pair, Prompt, Rater, ThumbVote, Vote
from backflip.cycle.artefacts import load_answers, samples_of, save_answers
from backflip.cycle.fit import features_by_file, features_of_round, fit, learned_of_round
from backflip.cycle.folder import PLAN
from backflip.cycle.optimise import preferences
from backflip.cycle.plan import read_plan
from backflip.cycle.round import STEPS
from backflip.cycle.run import open_tools, run_rounds
from backflip.cycle.tools import Outcome, Silent, Tools
from backflip.cycle.votes import votes_table
from backflip.rewards.fit import fit_votes
from backflip.store import Store, open_store


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Path:
    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    with pytest.MonkeyPatch.context() as m:
        for name in ("fit", "optimise", "measure"):
            m.setitem(STEPS, name, lambda *_: Outcome())
        m.setattr("backflip.cycle.run.publish", lambda *_: None)
        run_rounds(root)
    return root


def opened(root: Path, store: Store) -> Tools:
    return open_tools(root, read_plan(root / PLAN), store, Silent())


def cast(store: Store, pair: Pair, choice: str, key: str, strength: int | None = None) -> Vote:
    vote = Vote(
        key=key,
        pair_id=pair.id,
        rater_id="eve",
        choice=choice,
        shown="ba",
        latency_s=1.0,
        at=0.0,
        strength=strength,  # type: ignore[arg-type]
    )
    with store.begin() as tx:
        tx.add_raters([Rater(id="eve", kind="person", name="Eve")])
        tx.cast([vote])
    return vote


def chat_about(root: Path, store: Store, tools: Tools) -> list[str]:
    """Two answers to a prompt that was asked in a chat, as the web app stores them, and a vote between them."""
    prompt = Prompt(id="chat/1", split="train", text="we love tea", history=(("user", "tea"), ("assistant", "tea .")))
    rated = store.samples(round=1, purpose="rate")[:2]
    answers = [replace(a, prompt_id="chat/1", index=n) for n, a in enumerate(load_answers(root, rated))]
    file = root / "rounds" / "r1" / "chat-1.safetensors"
    save_answers(file, answers)
    samples = samples_of(answers, round=1, purpose="chat", artefact=str(file.relative_to(root)))
    pair = Pair(
        id="chat/1", round=1, stream="fit", prompt_id="chat/1", sample_a=samples[0].id, sample_b=samples[1].id,
        policy=samples[0].policy, raters_wanted=0,
    )  # fmt: skip
    with store.begin() as tx:
        tx.add_prompts([prompt])
        tx.add_samples(samples)
        tx.add_pairs([pair])
    cast(store, pair, "b", "chat-vote")
    return [s.id for s in samples]


def test_a_vote_for_neither_is_a_tie_and_one_that_cannot_tell_stays_one(run: Path) -> None:
    with open_store(run / "run.db") as store:
        tools = opened(run, store)
        bad, unsure, sure = store.pairs(round=1, stream="fit")[:3]
        votes = [cast(store, bad, "bad", "1"), cast(store, unsure, "skip", "2"), cast(store, sure, "b", "3", 2)]
        table = votes_table(store, {1: features_of_round(tools, 1)}, votes)

    assert [f.choice for f in table.feedback] == ["tie", "skip", "b"]
    assert [f.strength for f in table.feedback] == [0, 0, 2]
    assert {f.shown for f in table.feedback} == {-1}
    assert [f.choice for f in table.decided().feedback] == ["tie", "b"]


def test_dpo_learns_from_a_vote_in_a_chat_that_is_younger_than_the_run(run: Path) -> None:
    with open_store(run / "run.db") as store:
        tools = opened(run, store)
        chat_about(run, store, tools)
        with store.begin() as tx:
            tx.set_watermark(1)
        learned = [p for p in preferences(1, tools) if p.prompt.id == "chat/1"]

    assert [p.wins for p in learned] == [0.0]
    assert learned[0].prompt.history == (("user", "tea"), ("assistant", "tea ."))


def test_thumbs_and_votes_of_a_chat_are_fitted_up_to_the_watermark(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(*args, **keys):  # type: ignore[no-untyped-def]
        fitted = fit_votes(*args, **keys)
        seen.append((sorted(f.rater_id for f in args[1]).count("eve"), [t.up for t in keys["thumbs"]]))
        return fitted

    monkeypatch.setattr("backflip.cycle.fit.fit_votes", watched)
    with open_store(run / "run.db") as store:
        tools = opened(run, store)  # the chat begins after the run was opened
        [first, second] = chat_about(run, store, tools)
        held_out = store.samples(round=1, purpose="rate")
        monitor = next(s for s in held_out if tools.prompts[s.prompt_id].split == "monitor")
        with store.begin() as tx:
            thumbs = [("t1", first, True), ("t2", second, False), ("t3", monitor.id, True)]
            tx.add_thumbs([ThumbVote(key=k, sample_id=s, rater_id="eve", up=up, at=0.0) for k, s, up in thumbs])
        fit(1, tools)
        with store.begin() as tx:
            tx.add_thumbs([ThumbVote(key="t4", sample_id=first, rater_id="eve", up=True, at=0.0, retracts="t1")])
        shutil.rmtree(tools.round_dir(1) / "reward")
        learned_of_round(1, tools)
        ids, features = features_by_file(tools, "chat")

    assert seen == [(1, [True, False])] * 2  # nor the thumb on a monitor prompt, nor one given after the watermark
    assert ids == [first, second]
    assert features.shape[0] == 2
    assert list((run / "rounds" / "r1").glob("chat-1.features.safetensors"))
