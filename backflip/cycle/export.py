"""A run's answers and votes as a data set for others, with a card that says how they came about."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backflip.core.errors import ConfigError, DataError
from backflip.core.records import Pair, Prompt, Rater, Sample, Vote
from backflip.cycle.artefacts import write_whole
from backflip.cycle.folder import PLAN, RunPath, find_run, has_begun, run_store
from backflip.cycle.people import learned_keys
from backflip.cycle.plan import read_plan
from backflip.data.sources import CARD_TITLE, DEMONSTRATIONS
from backflip.store import Store

Format = Literal["jsonl", "parquet"]
Row = dict[str, Any]
CARD = """\
---
tags: [preferences, rlhf, backflip]
configs:
- config_name: preferences
  data_files: preferences.{ending}
- config_name: samples
  data_files: samples.{ending}
{config}---

{title}

Answers of a language model, and which of two answers to the same request {who} preferred.

| file | rows | what a row is |
|---|---|---|
| `preferences.{ending}` | {preferences} | one vote: the answer that was chosen and the one that was not |
| `samples.{ending}` | {samples} | one answer of one version of the policy |
{written}
## How the votes came about

- Base model: {model}. Task: {task}. Rounds: {rounds}.
- Raters: {raters}.
- Left out: {skips} skipped votes and {retracted} that were taken back.
{streams}

## Columns of `preferences`

- `prompt`: the request; a list of messages where something was said before it.
- `chosen`, `rejected`: the two answers; with `tie` true neither was better, and the names mean nothing.
- `chosen_ended`, `rejected_ended`: false where an answer was cut off.
- `rater`, `rater_kind`: who judged, by the name the run knows them by, and whether that is a person, a simulated
  persona or a language model as judge. `strength`: 1 to 3 where the rater said how sure they were. `reason`: why.
- `both_bad`: a tie because both answers are bad. `guidelines`: version of the guidelines the rater had; 0 for none.
- `shown_first`: which answer stood first. `latency_s`: seconds it took. `at`: seconds since 1970 (UTC).
- `split`: train for votes a reward was fitted on, monitor for held-out ones. `stream`: fit, random (held out) or
  reference (policy against the untouched model). `round`, `policy`: when, and whose answers were judged.
- `pair`, `probability`, `ranking`: the pair's id, the chance with which it was picked, and the ranking it is part of.
{columns}
## Personal data

Votes of people are personal data. Ask them before you publish this, and take out `rater`, `reason` and `at` if in
doubt.

## Licence

Not recorded. The base model's licence and what the raters agreed to decide it; whoever publishes this must check both.
"""
WRITTEN = """\
| `demonstrations.{ending}` | {demonstrations} | one answer that somebody wrote as they would have wanted it |
"""
WRITTEN_CONFIG = """\
- config_name: demonstrations
  data_files: demonstrations.{ending}
"""
WRITTEN_COLUMNS = """
## Columns of `demonstrations`

A plan reads this file as `sft.demonstrations`. `prompt`: as above. `completion`: the answer. `rater`, `at`: who wrote
it, and when. `learned`: whether stage 0 of this run has learned from it.
"""
STREAMS = {
    "fit": "votes a reward was fitted on",
    "random": "held-out votes that judge the reward",
    "reference": "votes on policy against untouched model",
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    folder: str
    preferences: int
    samples: int
    demonstrations: int
    """Answers that people wrote."""
    skipped: int
    """Votes that chose nothing."""
    retracted: int


def export_data(run: RunPath, out: RunPath | None = None, kind: Format = "jsonl") -> Exported:
    """Write every round's answers and votes, and a card, into the new folder `out`.

    Left out, `out` is `exports/data` in the run's folder.

    >>> import backflip
    >>> backflip.export_data("runs/mine", "tea-data").folder
    'tea-data'

    Raises: ConfigError when it exists or the run has not begun; BackflipError when the disk is full.
    """
    root = find_run(run)
    plan, folder = read_plan(root / PLAN), Path(out or root / "exports" / "data")
    if folder.exists():
        raise ConfigError(
            f"{folder} exists and is left as it is.\nAn export never writes over another.\n"
            "Give another name with --out."
        )
    if not has_begun(root, plan):
        raise ConfigError(
            f"{root} has nothing to export yet.\nIts first round has not begun.\nStart it: backflip run --dir {root}"
        )
    with run_store(root, plan) as store:
        preferences, samples, written = vote_rows(store), answer_rows(store), demonstration_rows(store)
        votes, log = store.votes(), store.vote_log()
        done = Exported(
            folder=str(folder),
            preferences=len(preferences),
            samples=len(samples),
            demonstrations=len(written),
            skipped=sum(v.choice == "skip" for v in votes),
            retracted=sum(v.choice == "retract" for v in log),
        )
        card = _card(store, done, preferences, kind, plan.model.name)

    def write(part: Path) -> None:
        part.mkdir(parents=True)
        for name, rows in (("preferences", preferences), ("samples", samples), (DEMONSTRATIONS, written)):
            if rows or name != DEMONSTRATIONS:
                write_table(part / f"{name}.{kind}", rows, kind)
        (part / "README.md").write_text(card, encoding="utf-8")

    write_whole(folder, write)
    return done


def vote_rows(store: Store) -> list[Row]:
    """A row for every vote that chose something or called a tie, in the order they were cast; columns as in `CARD`."""
    prompts = {p.id: p for p in store.prompts()}
    pairs, raters = {p.id: p for p in store.pairs()}, {r.id: r for r in store.raters()}
    votes = [v for v in store.votes() if v.verdict is not None]
    ids = {i for v in votes for i in (pairs[v.pair_id].sample_a, pairs[v.pair_id].sample_b)}
    samples = store.samples_by_id(sorted(ids))
    return [_preference(v, pairs[v.pair_id], prompts, samples, raters[v.rater_id]) for v in votes]


def _preference(
    vote: Vote, pair: Pair, prompts: Mapping[str, Prompt], samples: Mapping[str, Sample], rater: Rater
) -> Row:
    a, b = samples[pair.sample_a], samples[pair.sample_b]
    chosen, rejected = (b, a) if vote.choice == "b" else (a, b)
    first = a if vote.shown == "ab" else b
    return {
        "prompt": _prompt(prompts[pair.prompt_id]),
        "chosen": chosen.text,
        "rejected": rejected.text,
        "tie": vote.verdict == "tie",
        "both_bad": vote.choice == "bad",
        "rater": rater.id,
        "rater_kind": rater.kind,
        "strength": vote.strength,
        "reason": vote.reason,
        "shown_first": "chosen" if first is chosen else "rejected",
        "chosen_ended": chosen.ended,
        "rejected_ended": rejected.ended,
        "split": "train" if pair.stream == "fit" else "monitor",
        "stream": pair.stream,
        "round": pair.round,
        "policy": pair.policy,
        "pair": pair.id,
        "probability": pair.probability,
        "ranking": pair.ranking,
        "latency_s": vote.latency_s,
        "at": vote.at,
        "guidelines": vote.guidelines,
    }


def answer_rows(store: Store) -> list[Row]:
    """A row for every answer of every version of the policy."""
    prompts = {p.id: p for p in store.prompts()}
    return [
        {
            "id": s.id,
            "round": s.round,
            "purpose": s.purpose,
            "policy": s.policy,
            "prompt": _prompt(prompts[s.prompt_id]),
            "split": prompts[s.prompt_id].split,
            "topic": prompts[s.prompt_id].topic,
            "form": prompts[s.prompt_id].form,
            "completion": s.text,
            "ended": s.ended,
            "tokens": s.length,
        }
        for s in store.samples()
    ]


def demonstration_rows(store: Store) -> list[Row]:
    """A row for every answer that people wrote, in the order they came; `sft.demonstrations` reads such a file."""
    found, learned = store.people.demonstrations(), learned_keys(store) or set()
    prompts = store.prompts_by_id(d.prompt_id for d in found)
    return [
        {
            "prompt": _prompt(prompts[d.prompt_id]),
            "completion": d.text,
            "rater": d.rater_id,
            "at": d.at,
            "learned": d.key in learned,
        }
        for d in found
    ]


def _prompt(prompt: Prompt) -> str | list[dict[str, str]]:
    """The request as a text, or as messages when something was said before it."""
    if not prompt.history:
        return prompt.text
    return [{"role": role, "content": content} for role, content in (*prompt.history, ("user", prompt.text))]


def write_table(path: Path, rows: Sequence[Row], kind: Format) -> None:
    """Write rows as a file; halves of characters, which a model may answer, are replaced. Raises: DataError."""
    rows = [{key: _whole(value) for key, value in row.items()} for row in rows]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise DataError(
            "Parquet cannot be written: the package pyarrow is not installed.\n"
            "It is left out of a plain install, because it is large.\n"
            "Install it with: pip install 'backflip[data]', or export with --format jsonl"
        ) from None
    if any(isinstance(row["prompt"], list) for row in rows):  # a column holds values of one type
        rows = [row | {"prompt": _as_messages(row["prompt"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def _whole(value: Any) -> Any:
    """Text as UTF-8 can hold it; anything else as it is."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {key: _whole(item) for key, item in value.items()} if isinstance(value, dict) else value


def _as_messages(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _card(store: Store, out: Exported, preferences: Sequence[Row], kind: Format, model: str) -> str:
    kinds = Counter(kind for _, kind in {(row["rater"], row["rater_kind"]) for row in preferences})
    words = {"person": "people", "persona": "simulated personas", "judge": "language models as judges"}
    raters = ", ".join(f"{count} {words[k]}" for k, count in sorted(kinds.items())) or "nobody yet"
    streams = Counter(row["stream"] for row in preferences)
    told = {"config": WRITTEN_CONFIG, "written": WRITTEN, "columns": WRITTEN_COLUMNS} if out.demonstrations else {}
    return CARD.format(
        title=CARD_TITLE,
        ending=kind,
        **{
            part: told.get(part, "").format(ending=kind, demonstrations=out.demonstrations)
            for part in ("config", "written", "columns")
        },
        who=" and ".join(words[k] for k in sorted(kinds)) or "nobody",
        preferences=out.preferences,
        samples=out.samples,
        model=Path(model).name if Path(model).exists() else model,
        task=store.note("task") or "not recorded",
        rounds=len(store.rounds()),
        raters=raters,
        skips=out.skipped,
        retracted=out.retracted,
        streams="\n".join(f"- Stream `{s}`: {streams[s]} {what}." for s, what in STREAMS.items()),
    )
