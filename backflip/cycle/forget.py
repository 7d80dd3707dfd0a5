"""Forgetting a rater: their votes and name leave the run, and what was made with those votes is named."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path

from backflip.core.errors import DataError
from backflip.cycle.artefacts import remove
from backflip.cycle.folder import PLAN, SFT_FOLDER, has_begun, only_process, run_store, sft_checkpoints
from backflip.cycle.people import LEARNED, learned_keys
from backflip.cycle.plan import read_plan
from backflip.store import Store

HANDED_OUT = ("*.html", "*.jsonl", "data/**/*", "exports/**/*")
"""Where a run's folder holds what it handed out; `data` is where an earlier Backflip exported to."""
WEIGHTS = (".safetensors", ".gguf")
"""Files that hold numbers alone."""


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What went with a rater, and what is left that they had a part in."""

    rater: str
    votes: int
    """Votes and retractions that were deleted."""
    demonstrations: int
    """Answers of theirs that were deleted."""
    imitated: bool
    """Whether stage 0 learned from some of those answers: the untouched model, and all that came of it, was made so."""
    refit: Sequence[int]
    """Rounds whose reward was fitted with some of those votes; their policies were trained on it."""
    measured: Sequence[int]
    """Rounds whose figures on people's held-out pairs counted some of those votes."""
    files: Sequence[Path]
    """Files of the run's folder, handed out earlier, in which the rater's id or name still stands."""


def forget(root: Path, rater_id: str) -> Forgotten:
    """Delete a rater of the run in `root`, with all their votes, from its store and the store's disk.

    Raises: DataError when the run has no such rater; BusyError while another process carries the run.
    """
    plan = read_plan(root / PLAN)
    if not has_begun(root, plan):
        raise DataError(f"{root} has not begun, so nobody has voted in it.\nNothing was removed.")
    with only_process(root), run_store(root, plan) as store:
        known = {r.id: r for r in store.raters()}
        if rater_id not in known:
            near = ", ".join(sorted(known)[:8]) + (", ..." if len(known) > 8 else "") if known else "none"
            raise DataError(
                f"{root} has no rater {rater_id!r}, so nothing was removed.\n"
                f"A rater is named by the id that the report shows.\nIts raters: {near}."
            )
        refit = _fitted_with(store, rater_id)
        measured = [
            number
            for number in store.rounds()
            if "measure" in store.steps_done(number)
            and any(
                v.rater_id == rater_id
                for stream in ("random", "reference")
                for v in store.votes(round=number, stream=stream)
            )
        ]
        written = {d.key for d in store.people.demonstrations() if d.rater_id == rater_id}
        learned = bool(written & (learned_keys(store) or set()))
        imitated = learned and (root / SFT_FOLDER).exists()
        if learned and not imitated:  # stage 0 is under way: it begins anew, without them
            remove(sft_checkpoints(root))
            with store.begin() as tx:
                tx.set_note(LEARNED, "")
        votes = store.forget_rater(rater_id)
    return Forgotten(
        rater=rater_id,
        votes=votes,
        demonstrations=len(written),
        imitated=imitated,
        refit=refit,
        measured=measured,
        files=naming(root, {rater_id, known[rater_id].name} - {""}),
    )


def _fitted_with(store: Store, rater_id: str) -> list[int]:
    """Rounds whose fit's watermark lies at or above a vote of the rater's that was in force."""
    out = []
    for number in store.rounds():
        mark = store.watermark(number)
        if mark is not None and any(v.rater_id == rater_id for v in store.votes(upto=mark)):
            out.append(number)
    return out


def naming(root: Path, words: set[str]) -> list[Path]:
    """What the run handed out that names the rater: its pages and exports, and what was brought in beside them.

    A file that cannot be read is named too, for it may hold what is looked for.
    """
    ways = {way for word in words for way in (word, json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1])}
    files = {p for pattern in HANDED_OUT for p in root.glob(pattern) if p.is_file() and p.suffix not in WEIGHTS}
    return sorted(p for p in files if _holds(p, ways))


def _holds(file: Path, ways: Iterable[str]) -> bool:
    """Whether a file says something in one of these spellings."""
    try:
        text = _parquet_text(file) if file.suffix == ".parquet" else file.read_text("utf-8", errors="replace")
    except (ModuleNotFoundError, OSError, RuntimeError, ValueError):  # without pyarrow, or damaged
        return True
    said = unescape(text) if file.suffix == ".html" else text
    return any(way in said for way in ways)


def _parquet_text(file: Path) -> str:
    """A Parquet file's rows as JSON. Raises: ModuleNotFoundError without pyarrow; OSError or ValueError if damaged."""
    from pyarrow.parquet import read_table

    return json.dumps(read_table(file).to_pylist(), ensure_ascii=False, default=str)
