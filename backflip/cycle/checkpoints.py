"""Checkpoints of whatever trains in steps: whole or not there, named by their step, the newest ones kept."""

from pathlib import Path

import torch

from backflip.cycle.artefacts import remove, write_whole
from backflip.policies.state import PolicyState, load_state, save_state

KEPT = 2
"""Checkpoints that stay on the disk."""


def save_checkpoint(state: PolicyState, folder: Path) -> None:
    """Save the state under its step and drop all but the newest checkpoints."""
    write_whole(folder / f"step-{state.step:05d}", lambda part: save_state(state, part))
    for old in sorted(folder.glob("step-?????"))[:-KEPT]:
        remove(old)


def newest_checkpoint(folder: Path, device: torch.device) -> PolicyState | None:
    """The state after the last step that was saved in `folder`; None when there is none."""
    steps = sorted(folder.glob("step-?????"))
    return load_state(steps[-1], device) if steps else None
