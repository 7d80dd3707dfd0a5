"""A refused step's answers as JSON lines, and what a run says when it stops there."""

import json
from pathlib import Path

from backflip.core.errors import BackflipError
from backflip.cycle.artefacts import write_text
from backflip.cycle.folder import PLAN
from backflip.policies.not_finite import NotFinite


def save_refused(file: Path, error: NotFinite) -> Path:
    """Write one line an answer, in place of what an earlier try has left there; returns `file`.

    Raises: BackflipError when the disk is full.
    """
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in error.lines)
    write_text(file, text)
    return file


def stopped(
    error: NotFinite, file: Path, root: Path, *, refused_before: int = 0, may_skip: bool = True
) -> BackflipError:
    """The message of a run that stops at a refused step, after so many refused ones in a row."""
    too = f", like the {refused_before} steps before it" if refused_before else ""
    go_on = f'To go on without such a step, set optimise.when_not_finite = "skip" in {root / PLAN}. '
    return BackflipError(
        f"{error.fact}{too}: the step is refused, the policy stays as it was before.\n"
        f"{error.cause} The step's answers are in {file}.\n"
        f"{go_on if may_skip and not refused_before else ''}{error.cure}"
    )
