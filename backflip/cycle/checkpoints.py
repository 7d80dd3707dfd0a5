"""Checkpoints of whatever trains in steps: whole or not there, named by their step, the newest ones kept."""

from collections.abc import Collection
from pathlib import Path

import torch

from backflip.cycle.artefacts import UNREADABLE, readable, remove, write_whole
from backflip.policies.state import PolicyState, load_state, save_state

KEPT = 2
"""Checkpoints that stay on the disk."""


def save_checkpoint(state: PolicyState, folder: Path, kept: Collection[int] = ()) -> None:
    """Save the state under its step and drop all but the newest checkpoints and those of the steps `kept`."""
    write_whole(folder / f"step-{state.step:05d}", lambda part: save_state(state, part))
    for old in sorted(folder.glob("step-?????"))[:-KEPT]:
        if int(old.name.removeprefix("step-")) not in kept:
            remove(old)


def newest_checkpoint(folder: Path, device: torch.device) -> PolicyState | None:
    """The state after the last step that was saved in `folder`; None when there is none.

    A damaged checkpoint is dropped: the steps after the one before it are taken again.
    """
    for step in sorted(folder.glob("step-?????"), reverse=True):
        try:
            return load_state(step, device)
        except UNREADABLE:
            remove(step)
    return None


def checkpoint_of(step: int, folder: Path, device: torch.device) -> PolicyState:
    """The state after step `step`. Raises: DataError when it is missing or damaged."""
    with readable(folder / f"step-{step:05d}", "Without it the climb cannot go back there."):
        return load_state(folder / f"step-{step:05d}", device)


def load_policy_state(folder: Path, device: torch.device | str = "cpu") -> PolicyState:
    """The policy that a finished round left in `folder`. Raises: DataError when it is missing or damaged."""
    with readable(folder, "Without it, `backflip report` and `backflip chat --base` still work."):
        return load_state(folder, device)
