"""What the steps of a round work with, opened once per process."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from backflip.core.errors import ConfigError, DataError
from backflip.core.records import Metric, ModelVersion, Prompt
from backflip.cycle.checkpoints import load_policy_state
from backflip.cycle.folder import PLAN, REFERENCE, SFT_FOLDER
from backflip.cycle.plan import Plan
from backflip.models.chat import Chat
from backflip.models.load import Loaded
from backflip.models.model_folder import check_folder
from backflip.models.trunk import Trunk
from backflip.policies.state import PolicyState
from backflip.raters.personas import SimulatedCrowd
from backflip.sampling.engine import Engine
from backflip.sampling.portion import Portion
from backflip.sampling.score import Reader
from backflip.store import Store
from backflip.tasks import TASKS
from backflip.tasks.task import TaskUtility


class Watcher(Protocol):
    """Whoever shows a run's progress."""

    def begin(self, what: str, total: int) -> None:
        """A piece of work of `total` units starts."""
        ...

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` units are done; `note` says how it goes."""
        ...

    def say(self, line: str) -> None:
        """One line to keep on the screen."""
        ...


class Silent:
    """A watcher that shows nothing."""

    def begin(self, what: str, total: int) -> None:
        """See `Watcher.begin`."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """See `Watcher.advance`."""

    def say(self, line: str) -> None:
        """See `Watcher.say`."""


class Tracker(Protocol):
    """Whoever shows a run's figures elsewhere. The store is their home: a tracker may lose them, a run may not."""

    def log(self, metrics: Sequence[Metric]) -> None:
        """These have just been committed."""
        ...


class Untracked:
    """A tracker that shows nothing."""

    def log(self, metrics: Sequence[Metric]) -> None:
        """See `Tracker.log`."""


class Outcome(NamedTuple):
    """What a step leaves for the store, beside the rows it has already committed on its way."""

    metrics: Sequence[Metric] = ()
    models: Sequence[ModelVersion] = ()


@dataclass(eq=False)
class Tools:
    """Store, model, task and raters of one run."""

    root: Path
    store: Store
    loaded: Loaded
    chat: Chat
    prompts: dict[str, Prompt]
    utility: TaskUtility | None
    """The true utility; None when only people know it."""
    crowd: SimulatedCrowd | None
    """The simulated raters; None when people rate."""
    watcher: Watcher
    plan: Plan
    version: str = REFERENCE
    """Version of the loaded weights; `BASE` during stage 0."""
    imported: frozenset[str] = frozenset()
    """Prompts of imported answers: known, but never asked."""
    tracker: Tracker = field(default_factory=Untracked)

    def __post_init__(self) -> None:
        """Derive the readers and the sampler."""
        trunk, sampling, say = self.loaded.trunk, self.plan.sampling, self.watcher.say
        micro, batch = Portion(self.plan.ppo.micro, "ppo.micro", say), Portion(sampling.batch, "sampling.batch", say)
        self.reader = Reader(trunk, self.chat, micro=micro, temperature=sampling.temperature)
        self.state: PolicyState | None = None
        self.engine = Engine(self.trunk_of, self.chat, batch=batch, temperature=sampling.temperature)

    def trunk_of(self, version: str) -> Trunk:
        """Merged weights of a policy version: the climb's current step, a finished round, or the reference."""
        trunk = self.loaded.trunk
        if version == self.version:
            return trunk
        if self.state is not None and version == self.state.version:
            return trunk.merged(self.state.adapter)
        return trunk.merged(self.policy(version).adapter)

    def policy(self, version: str) -> PolicyState:
        """The state saved under a finished round's policy version, e.g. "policy-r2"."""
        number = int(version.removeprefix("policy-r"))
        return load_policy_state(self.round_dir(number) / "policy", self.loaded.trunk.device)

    def round_dir(self, number: int) -> Path:
        """Folder of a round's artefacts."""
        return self.root / "rounds" / f"r{number}"

    @property
    def double_share(self) -> float:
        """Share of pairs that two raters judge; 0 when there is nobody for a second judgement."""
        alone = self.crowd is not None and len(self.crowd.raters()) == 1
        return 0.0 if alone else self.plan.rate.double_share

    def split(self, name: str) -> list[Prompt]:
        """The run's own prompts of one split."""
        return [p for p in self.prompts.values() if p.split == name and p.id not in self.imported]


def own_prompts(plan: Plan) -> list[Prompt]:
    """The prompts that the plan's task brings, or the user's own. Raises: ConfigError; DataError for the file."""
    if plan.task.name not in TASKS:
        raise ConfigError(
            f'{PLAN}: task.name = "{plan.task.name}" does not fit.\nIt must be one of: {", ".join(TASKS)}.'
        )
    task = TASKS[plan.task.name]
    return task.prompt_file(Path(plan.task.prompts)) if plan.task.prompts else task.prompts()


def untouched_model(root: Path, plan: Plan) -> str:
    """Where the weights of the run's untouched model are: the plan's model, or what stage 0 made of it.

    Raises: DataError when what stage 0 made is missing or damaged.
    """
    if not plan.sft.planned:
        return plan.model.name
    folder = root / SFT_FOLDER
    try:
        check_folder(folder)
    except DataError as e:
        fact = str(e).partition("\n")[0] if folder.exists() else f"{folder} is missing."
        raise DataError(
            f"{fact}\nIt is the model that stage 0 makes, and this run's untouched one; it was deleted or damaged, "
            f"or is not made yet.\nDelete what is left of {folder}, and make it anew with: backflip run --dir {root}"
        ) from e
    return str(folder)


def policy_before(number: int) -> str:
    """The version that round `number` starts with."""
    return REFERENCE if number == 1 else f"policy-r{number - 1}"


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype a plan names."""
    return torch.bfloat16 if name == "bfloat16" else torch.float32
