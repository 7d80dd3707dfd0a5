"""Files of a run: written whole or not at all, before the row that points to them.

A run folder holds run.db, plan.toml, report.html, and per round `rounds/r1/`: samples, features,
the reward, checkpoints of the climb and the finished policy. `baselines/` holds the baselines' answers.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from backflip.core.disk import disk_told
from backflip.core.errors import DataError
from backflip.core.records import Answer, Sample

UNREADABLE = (OSError, SafetensorError, BadZipFile, EOFError, ValueError, KeyError, IndexError, TypeError)
"""What reading a file of a run raises when it is missing, cut short or overwritten."""


@contextmanager
def readable(path: Path, cure: str) -> Iterator[None]:
    """Read what only a copy of the run could bring back. Raises: DataError when `path` is missing or damaged."""
    try:
        yield
    except UNREADABLE as e:
        why = str(e).strip().partition("\n")[0].rstrip(".") or type(e).__name__
        raise DataError(
            f"{path} {f'cannot be read: {why}' if path.exists() else 'is missing'}.\n"
            "It is a part of the run that was deleted or damaged, or a copy of the folder broke off.\n"
            f"Put it back from another copy of the run. {cure}"
        ) from e


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; errors as in `write_whole`."""

    def write(part: Path) -> None:
        part.write_text(text, encoding="utf-8")

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file or folder under another name, flush it, and move it to `path`.

    Raises: BackflipError when the disk is full or cannot be written; what was at `path` is untouched then.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(part)
        try:
            write(part)
            for file in [part, *(part.rglob("*") if part.is_dir() else ())]:
                flush(file)
            if path.is_dir():
                shutil.rmtree(path)
            part.replace(path)
            flush(path.parent)
        finally:
            remove(part)


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Token ids and log-probabilities of answers, one row each; see `load_answers`."""
    arrays: dict[str, NDArray[Any]] = {
        "tokens": np.concatenate([a.tokens for a in answers]).astype(np.int32),
        "logp": np.concatenate([a.logp for a in answers]).astype(np.float32),
        "lengths": np.array([len(a.tokens) for a in answers], dtype=np.int64),
    }
    write_whole(path, lambda part: save_file(arrays, part))


def load_answers(root: Path, samples: Sequence[Sample]) -> list[Answer]:
    """The answers behind stored samples, in their order; `root` is the run folder.

    Raises: DataError when a file of answers is missing or damaged.
    """
    files: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
    for name in sorted({s.artefact for s in samples}):
        with readable(root / name, "The answers' texts are in the run's database: `backflip export data` works."):
            arrays = load_file(root / name)
            cuts = np.cumsum(arrays["lengths"])[:-1]
            tokens = np.split(arrays["tokens"].astype(np.int64), cuts)
            files[name] = list(zip(tokens, np.split(arrays["logp"], cuts), strict=True))
            if len(files[name]) <= max(s.row for s in samples if s.artefact == name):
                raise ValueError("it holds fewer answers than the run has drawn")
    return [_answer(s, *files[s.artefact][s.row]) for s in samples]


def _answer(sample: Sample, tokens: NDArray[np.int64], logp: NDArray[np.float32]) -> Answer:
    return Answer(
        prompt_id=sample.prompt_id, index=sample.index, policy=sample.policy, tokens=tokens, logp=logp,
        ended=sample.ended, text=sample.text,
    )  # fmt: skip


def samples_of(answers: Sequence[Answer], *, round: int, purpose: str, artefact: str) -> list[Sample]:
    """The rows that belong to an artefact of answers."""
    return [
        Sample(
            id=f"r{round}/{purpose}/{a.policy}/{a.prompt_id}/{a.index}", round=round,
            purpose=purpose,  # type: ignore[arg-type]
            prompt_id=a.prompt_id, policy=a.policy, index=a.index, text=a.text, ended=a.ended, length=len(a.tokens),
            artefact=artefact, row=row,
        )
        for row, a in enumerate(answers)
    ]  # fmt: skip


def save_array(path: Path, name: str, array: NDArray[np.float64]) -> None:
    """One array by name, whole or not at all."""
    write_whole(path, lambda part: save_file({name: array}, part))


def load_array(path: Path, name: str) -> NDArray[np.float64]:
    """The array `save_array` wrote."""
    return np.asarray(load_file(path)[name])


def kept(path: Path, read: Callable[[], NDArray[np.float64]], rows: int) -> NDArray[np.float64] | None:
    """What `read` reads from `path`; None when that is missing, damaged or has not so many rows: compute it anew."""
    try:
        array = read()
    except UNREADABLE:
        return None
    return array if len(array) == rows else None
