"""Talk to what a run has made: its newest finished policy, or the model it began with."""

from dataclasses import dataclass
from pathlib import Path

import torch

from backflip.core.errors import BackflipError
from backflip.core.records import Answer, ModelVersion, Prompt
from backflip.core.rng import seed_of
from backflip.cycle.folder import PLAN, REFERENCE, has_begun, run_store
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.tools import torch_dtype, untouched_model
from backflip.models.chat import open_chat
from backflip.models.load import load_model, pick_device
from backflip.policies.state import load_state
from backflip.sampling.engine import Engine


@dataclass(eq=False)
class Talk:
    """A loaded policy that answers one request at a time; each stands alone, without what was said before."""

    version: str
    """The policy's version in the run, "reference" for the untouched model."""
    engine: Engine
    max_tokens: int
    seed: int
    turn: int = 0
    """Requests answered so far."""

    def answer(self, text: str) -> Answer:
        """Answer one request; its luck is keyed by (seed, turn). Raises: DataError when `text` is too long."""
        prompt = Prompt(id=f"chat-{self.turn}", split="final", text=text)
        seed = seed_of(self.seed, "chat")
        [[answer]] = self.engine.sample([prompt], 1, seed=seed, max_tokens=self.max_tokens)
        self.turn += 1
        return answer


def open_talk(
    root: Path,
    *,
    base: bool = False,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
) -> Talk:
    """Load the newest finished policy of the run in `root`, or with `base` the untouched model.

    What is None is taken from the plan: the way the run itself drew its answers.
    Raises: BackflipError when the run has no finished policy yet; DataError when its model cannot be loaded.
    """
    plan = read_plan(root / PLAN)
    policy = None if base else newest_policy(root, plan)
    if plan.model.threads:
        torch.set_num_threads(plan.model.threads)
    engine = _engine(root, plan, policy, temperature or plan.sampling.temperature)
    version = engine.load(policy.id if policy else REFERENCE)
    return Talk(version, engine, max_tokens or plan.sampling.max_tokens, plan.seed if seed is None else seed)


def newest_policy(root: Path, plan: Plan) -> ModelVersion:
    """The run's last finished policy. Raises: BackflipError when there is none."""
    found = []
    if has_begun(root, plan):
        with run_store(root, plan) as store:
            found = store.models(kind="policy")
    if not found:
        raise BackflipError(
            f"{root} has no finished policy yet.\n"
            "The first one is there once round 1 is optimised: see `backflip status`.\n"
            "Carry the run on with `backflip run`, or talk to the untouched model with `backflip chat --base`."
        )
    return found[-1]


def _engine(root: Path, plan: Plan, policy: ModelVersion | None, temperature: float) -> Engine:
    """An engine whose only version is `policy` (None: the untouched model)."""
    loaded = load_model(
        untouched_model(root, plan), dtype=torch_dtype(plan.model.dtype), device=pick_device(plan.model.device)
    )
    trunk = loaded.trunk
    if policy is not None:
        trunk = trunk.merged(load_state(root / policy.path, trunk.device).adapter)
    return Engine(lambda _: trunk, open_chat(loaded), batch=1, temperature=temperature)
