"""Other people's judgements as votes of a run: imported once, whole or not at all, and read by every later fit."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backflip.core.errors import ConfigError, DataError
from backflip.core.records import Answer, Pair, Prompt, Rater, Sample, Split, Vote
from backflip.core.rng import seed_of
from backflip.cycle.artefacts import save_answers
from backflip.cycle.folder import PLAN, RunPath, find_run, only_process, run_store
from backflip.cycle.paths import here
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.tools import own_prompts
from backflip.data.records import Messages, Preference, Thumb
from backflip.data.sources import Row
from backflip.data.table import Table, judgements, pair_thumbs, read_table, table_of
from backflip.models.chat import Chat, open_chat
from backflip.models.load import load_model
from backflip.store import Store

IMPORTED = "imported"
"""Policy version of answers that came from elsewhere."""
HELD_OUT = 10
"""Of so many imported prompts one is held out, by its text, to judge the reward on."""


@dataclass
class Imported:
    """What an import brought into a run."""

    preferences: int = 0
    """Votes that are new."""
    pairs: int = 0
    held_out: int = 0
    """Votes of these that no fit uses: they judge it."""
    known: int = 0
    """Votes that were there already, or said again what the same rater had said."""
    left_out: list[str] = field(default_factory=list)
    """Why each row that could not be used was left out."""
    unpaired: int = 0
    """Thumbs that found no answer to be compared with."""
    warnings: list[str] = field(default_factory=list)
    """What to know before a reward is fitted on these votes."""


@dataclass
class _Rows:
    """What is to be stored."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    pairs: dict[str, Pair] = field(default_factory=dict)
    raters: dict[str, Rater] = field(default_factory=dict)
    votes: list[Vote] = field(default_factory=list)


def import_votes(
    run: RunPath,
    source: RunPath | Iterable[Mapping[str, Any]],
    form: Literal["preferences", "thumbs"] | None = None,
    *,
    part: str | None = None,
    skip_bad: bool = False,
) -> Imported:
    """Bring other people's preferences or thumbs into a run, begun or not, as votes.

    `source` is a JSONL, JSON, CSV or Parquet file, a folder of them, the id of a data set on the Hub (of which `part`
    names a split), or rows as dicts. `form` says what they are where their columns do not. Rows that are there
    already are counted and left.

    >>> import backflip
    >>> row = {"prompt": "Praise tea.", "chosen": "Tea is kind.", "rejected": "No.", "rater": "ann"}
    >>> done = backflip.import_votes("runs/mine", [row])
    >>> done.preferences, done.pairs
    (1, 1)

    Raises: BusyError while the run is under way; ConfigError for a folder without a run; DataError for the first row
    that cannot be used (without `skip_bad`).
    """
    root = find_run(run)
    if isinstance(source, str | os.PathLike):
        name, table = os.fspath(source), read_table(os.fspath(source), form, part=part, skip_bad=skip_bad)
    else:
        name, rows = "rows", (Row(f"row {n}", dict(values), None) for n, values in enumerate(source, 1))
        table = table_of(rows, name, form, skip_bad=skip_bad)
    return import_table(root, table, name, skip_bad=skip_bad)


def import_table(root: Path, table: Table, source: str, *, skip_bad: bool = False) -> Imported:
    """Cast a table's preferences, or those that its thumbs make, as votes in the run in `root`.

    Raises: ConfigError for prompts and demonstrations, which are no votes; see `import_preferences` for the rest.
    """
    if table.form in ("prompts", "demonstrations"):
        raise ConfigError(
            f"{source} holds {table.form}, and a run takes votes.\n"
            "Prompts and demonstrations are named in a run's plan before it begins.\n"
            "Write them to a file with `backflip import --out FILE`, or say what the rows are with --as."
        )
    preferences, unpaired = [r for r in table.records if isinstance(r, Preference)], 0
    if table.form == "thumbs":
        preferences, unpaired = pair_thumbs([r for r in table.records if isinstance(r, Thumb)])
    done = import_preferences(root, preferences, Path(source).stem or source, skip_bad=skip_bad)
    return replace(done, left_out=[*table.left_out, *done.left_out], unpaired=unpaired, warnings=list(table.warnings))


def import_preferences(
    root: Path, preferences: Sequence[Preference], source: str, *, skip_bad: bool = False
) -> Imported:
    """Cast `preferences` as votes in the run in `root`, begun or not; `source` names raters the data do not name.

    Rows whose prompt is a monitor prompt of the run, or that belong to another part of their data than train, are held
    out; where nothing says so, one prompt in `HELD_OUT` is.
    Rows already there are counted and left. Raises: BusyError while the run is under way; DataError for the first
    row that cannot be used (without `skip_bad`), among them answers to the run's final prompts.
    """
    plan = read_plan(root / PLAN)
    with only_process(root), run_store(root, plan) as store:
        plan = here(root, store, plan)
        chat = open_chat(load_model(plan.model.name))
        once = judgements(preferences)
        out = Imported(known=once.repeated, left_out=list(once.against))
        rows, intake = _Rows(), _Intake(plan, store, chat, source)
        for preference in once.kept:
            try:
                intake.take(preference, rows)
            except DataError as e:
                if not skip_bad:
                    raise
                out.left_out.append(str(e).partition("\n")[0])
        voted = {(v.pair_id, v.rater_id) for v in store.votes()}
        votes = [v for v in rows.votes if (v.pair_id, v.rater_id) not in voted]
        out.known += len(rows.votes) - len(votes)
        _store(root, store, rows, votes, intake.own)
        out.preferences = len(votes)
        out.pairs = len({v.pair_id for v in votes})
        out.held_out = sum(rows.pairs[v.pair_id].stream == "random" for v in votes)
    return out


class _Intake:
    """Turns preferences into rows of one run's store."""

    def __init__(self, plan: Plan, store: Store, chat: Chat, source: str) -> None:
        self.own = own_prompts(plan)
        self._known = {(p.text, p.history): p for p in [*store.prompts(), *self.own]}
        self._chat, self._source = chat, source

    def take(self, preference: Preference, rows: _Rows) -> None:
        """Add one preference to `rows`. Raises: DataError when it cannot be used here."""
        prompt = self._prompt(preference)
        sides = ((preference.chosen, preference.chosen_ended), (preference.rejected, preference.rejected_ended))
        answers = [self._answer(prompt, text, ended, preference.where) for text, ended in sides]
        ids = [_name(prompt.id, a.text, str(a.ended)) for a in answers]
        pair = _pair(prompt, ids, preference)
        rater = preference.rater or self._source
        rows.prompts[prompt.id] = prompt
        rows.answers |= dict(zip(ids, answers, strict=True))
        rows.pairs[pair.id] = pair
        rows.raters[rater] = Rater(id=rater, kind=preference.rater_kind or "person", name=rater)
        first = ids[0] if preference.shown_first != "rejected" else ids[1]
        rows.votes.append(
            Vote(
                key=f"{pair.id}/{rater}",
                pair_id=pair.id,
                rater_id=rater,
                choice="tie" if preference.tie else "a" if pair.sample_a == ids[0] else "b",
                shown="ab" if pair.sample_a == first else "ba",
                latency_s=preference.latency_s or 0.0,
                at=time.time() if preference.at is None else preference.at,
                strength=preference.strength,
                reason=preference.reason,
            )
        )

    def _prompt(self, preference: Preference) -> Prompt:
        text, history = preference.prompt[-1][1], preference.prompt[:-1]
        known = self._known.get((text, history))
        if known and known.split == "final":
            raise DataError(
                f"{preference.where}: its prompt is one of the run's final ones, which no fit may see.\n"
                "The headline figures are measured on them.\nTake the row out, or use --skip-bad."
            )
        said = preference.split or _split_of(preference.prompt)
        split: Split = "train" if said == "train" else "monitor"
        return known or Prompt(
            id=f"import-{_hash(*map(str, preference.prompt))}", split=split, text=text, history=history
        )

    def _answer(self, prompt: Prompt, text: str, ended: bool, where: str) -> Answer:
        tokens = self._chat.encode_answer(text)
        tokens = tokens if ended else tokens[:-1]
        try:
            self._chat.encode(prompt, len(tokens))
        except DataError as e:
            raise DataError(f"{where}: {e}") from None
        return Answer(
            prompt_id=prompt.id,
            index=0,
            policy=IMPORTED,
            tokens=np.array(tokens, dtype=np.int64),
            logp=np.full(len(tokens), np.nan, dtype=np.float32),
            ended=ended,
            text=text,
        )


def _store(root: Path, store: Store, rows: _Rows, votes: Sequence[Vote], own: Sequence[Prompt]) -> None:
    """The artefact first, then every row in one transaction."""
    there = {s.id for s in store.samples(round=0, purpose="rate")}
    new = {name: a for name, a in rows.answers.items() if name not in there}
    samples: list[Sample] = []
    if new:
        path = root / "imports" / _hash(*sorted(new)) / "answers.safetensors"
        save_answers(path, list(new.values()))
        artefact = str(path.relative_to(root))
        samples = [_sample(name, a, artefact, row) for row, (name, a) in enumerate(new.items())]
    with store.begin() as tx:
        tx.add_prompts(own)
        tx.add_prompts(list(rows.prompts.values()))
        tx.add_raters([r for r in rows.raters.values() if r.id not in {k.id for k in store.raters()}])
        tx.add_samples(samples)
        tx.add_pairs(list(rows.pairs.values()))
        tx.cast(votes)


def _sample(name: str, answer: Answer, artefact: str, row: int) -> Sample:
    return Sample(
        id=name, round=0, purpose="rate", prompt_id=answer.prompt_id, policy=IMPORTED, index=row, text=answer.text,
        ended=answer.ended, length=len(answer.tokens), artefact=artefact, row=row,
    )  # fmt: skip


def _pair(prompt: Prompt, ids: Sequence[str], preference: Preference) -> Pair:
    """The pair of two answers, whichever of them was chosen; which side is a is drawn by lot."""
    low, high = sorted(ids)
    a, b = (low, high) if seed_of(0, "side", low, high) % 2 else (high, low)
    stream: Literal["fit", "random"] = "random" if prompt.split == "monitor" else "fit"
    return Pair(
        id=f"import/{_hash(low, high, preference.pair)}", round=0, stream=stream, prompt_id=prompt.id, sample_a=a,
        sample_b=b, policy=IMPORTED, ranking=preference.ranking and f"import/{preference.ranking}",
    )  # fmt: skip


def _split_of(prompt: Messages) -> Split:
    return "monitor" if seed_of(0, "held out", *map(str, prompt)) % HELD_OUT == 0 else "train"


def _name(*parts: str) -> str:
    return f"import/{_hash(*parts)}"


def _hash(*parts: str) -> str:
    """16 hex digits of texts."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
