"""Files of a run: written whole or not at all, before the row that points to them.

A run folder holds run.db, plan.toml, report.html, and per round `rounds/r1/`: samples, features,
the reward, checkpoints of the climb and the finished policy. `baselines/` holds the baselines' answers.
"""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from backflip.core.errors import BackflipError
from backflip.core.records import Answer, Sample

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
"""What the system says when a disk cannot take a file. (safetensors says it in a SafetensorError.)"""


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file or folder under another name, flush it, and move it to `path`.

    Raises: BackflipError when the disk is full or cannot be written; what was at `path` is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    remove(part)
    try:
        write(part)
        for file in [part, *(part.rglob("*") if part.is_dir() else ())]:
            flush(file)
        if path.is_dir():
            shutil.rmtree(path)
        part.replace(path)
        flush(path.parent)
    except (OSError, SafetensorError) as e:
        if isinstance(e, OSError) and e.errno not in NO_ROOM:
            raise
        raise disk_error(path, e) from e
    finally:
        remove(part)


def disk_error(path: Path, cause: Exception) -> BackflipError:
    """The message for a disk that cannot take `path`."""
    return BackflipError(
        f"{path} could not be saved: {cause}.\nThe disk is full or not writable; what was saved before is intact.\n"
        "Free some space, then start again with the same command: it carries on."
    )


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
    """The answers behind stored samples, in their order; `root` is the run folder."""
    files: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
    for name in {s.artefact for s in samples}:
        arrays = load_file(root / name)
        cuts = np.cumsum(arrays["lengths"])[:-1]
        tokens = np.split(arrays["tokens"].astype(np.int64), cuts)
        files[name] = list(zip(tokens, np.split(arrays["logp"], cuts), strict=True))
    out = []
    for s in samples:
        tokens_of, logp = files[s.artefact][s.row]
        out.append(
            Answer(
                prompt_id=s.prompt_id,
                index=s.index,
                policy=s.policy,
                tokens=tokens_of,
                logp=logp,
                ended=s.ended,
                text=s.text,
            )
        )
    return out


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
