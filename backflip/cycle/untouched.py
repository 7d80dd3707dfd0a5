"""A run's untouched model: where it lies now, loaded as the plan says, and refused once its weights have changed."""

from pathlib import Path

import torch

from backflip.core.errors import DataError
from backflip.cycle.folder import BASE, REFERENCE, SFT_FOLDER, has_begun, run_store
from backflip.cycle.paths import here
from backflip.cycle.plan import Plan
from backflip.cycle.tools import torch_dtype, untouched_model
from backflip.models.load import Loaded, load_model, pick_device
from backflip.models.trunk import fingerprint
from backflip.store import Store


def load_untouched(
    root: Path, plan: Plan, store: Store | None, *, version: str = REFERENCE, device: str | None = None
) -> Loaded:
    """The untouched model of the run in `root`, or with `version` `BASE` the one that stage 0 begins with.

    `store` is the run's, None for a plan without a run. `device` stands for the plan's when given.
    Raises: DataError when the model cannot be loaded, or its weights are not those the run began with.
    """
    there, known = (plan, None) if store is None else (here(root, store, plan), store.note(version))
    if plan.model.threads:
        torch.set_num_threads(plan.model.threads)
    name = there.model.name if version == BASE else untouched_model(root, there)
    loaded = load_model(name, dtype=torch_dtype(plan.model.dtype), device=pick_device(device or plan.model.device))
    if known not in (None, fingerprint(loaded.trunk)):
        raise DataError(
            f"The model of {root} is not the model this run began with: its weights have changed.\n"
            "Perhaps its folder was overwritten, or model.dtype is another. Features and KL would not fit together.\n"
            "Put the former weights back, or start a new run with --dir."
        )
    return loaded


def untouched_of(root: Path, plan: Plan, *, device: str | None = None) -> Loaded:
    """`load_untouched` for whoever does not hold the run's store."""
    if not has_begun(root, plan):
        return load_untouched(root, plan, None, device=device)
    with run_store(root, plan) as store:
        return load_untouched(root, plan, store, device=device)


def first_version(root: Path | None, plan: Plan) -> str:
    """The version that loads now: the base as long as stage 0 is still to be done, else the untouched model."""
    done = root is not None and (root / SFT_FOLDER).exists()
    return BASE if plan.sft.planned and not done else REFERENCE
