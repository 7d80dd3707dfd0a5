"""Talk to what a run has made: its newest finished policy, an earlier one, or the model it began with."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal, final

from backflip.core.errors import BackflipError, ConfigError, DataError
from backflip.core.records import Answer, ModelVersion, Prompt
from backflip.core.rng import seed_of
from backflip.cycle.checkpoints import load_policy_state
from backflip.cycle.folder import PLAN, REFERENCE, RunPath, find_run, has_begun, run_store
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.untouched import untouched_of
from backflip.models.chat import open_chat
from backflip.sampling.engine import Engine

WHOLE = "a whole number of 1 or more"


@final
@dataclass(eq=False)
class Policy:
    """A loaded policy that answers requests; each stands alone, without what was said before."""

    version: str
    """The policy's version in the run, "reference" for the untouched model."""
    engine: Engine
    max_tokens: int
    seed: int
    turn: int = 0
    """Requests answered so far."""

    def answer(self, text: str) -> Answer:
        """Answer one request; its luck is keyed by (seed, turn). Raises: DataError when `text` is empty or too long."""
        [[answer]] = self.answers([text])
        return answer

    def stream(self, prompt: Prompt, index: int = 0) -> Iterator[str | Answer]:
        """Answer `index` to a prompt: its text after every token, then the whole. The luck is that of (prompt, index).

        Raises: DataError when the talk is longer than the model reads.
        """
        return self.engine.stream(prompt, index, seed=seed_of(self.seed, "chat"), max_tokens=self.max_tokens)

    def answers(self, texts: Sequence[str], each: int = 1) -> list[list[Answer]]:
        """`each` answers to every request, a list a request; request i has the luck of turn + i.

        Raises: DataError when a text is empty, blank or too long; ConfigError for anything but a list of texts, or
        when `each` is no whole number of 1 or more.
        """
        listed = [] if isinstance(texts, str) else list(texts)
        apart = not isinstance(texts, str) and all(isinstance(text, str) for text in listed)
        require_argument("texts", texts, "a list of texts; one text alone goes to answer()", fits=apart)
        require_argument("each", each, WHOLE, fits=_positive(each, Integral))
        for number, text in enumerate(listed, 1):
            if not text.strip():
                raise DataError(
                    f"Request {number} is empty.\nThere is nothing to answer.\nWrite something, or drop it."
                )
        prompts = [Prompt(id=f"chat-{self.turn + i}", split="final", text=text) for i, text in enumerate(listed)]
        seed = seed_of(self.seed, "chat")
        batches = self.engine.sample(prompts, each, seed=seed, max_tokens=self.max_tokens)
        flat = [answer for batch in batches for answer in batch]
        self.turn += len(prompts)
        return [flat[at : at + each] for at in range(0, len(flat), each)]


def require_argument(name: str, value: object, what: str, *, fits: bool, cure: str = "") -> None:
    """Refuse an argument that does not fit; `what` says what would. Raises: ConfigError."""
    if not fits:
        raise ConfigError(f"{name} = {shown(value)} does not fit.\nIt must be {what}.\n{cure or 'Give such a value.'}")


def _positive(value: Any, kind: Any) -> bool:
    """Whether it is a finite number of this kind above 0; numpy's are numbers, True is none."""
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < math.inf


def load_policy(
    run: RunPath,
    version: str | None = None,
    *,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
) -> Policy:
    """Load a run's newest finished policy, or the version named: "policy-r1", or "reference", the untouched model.

    What is None is taken from the plan: the way the run itself drew its answers.

    >>> import backflip
    >>> policy = backflip.load_policy("runs/mine", max_tokens=8)
    >>> answer = policy.answer("we love tea")
    >>> answer.policy, len(answer.tokens) <= 8
    ('policy-r2', True)
    >>> [len(several) for several in policy.answers(["we love tea", "we love rain"], each=3)]
    [3, 3]

    Raises: BackflipError when the run has no such policy (yet); ConfigError for a folder without a run or a number that
    does not fit; DataError when its model cannot be loaded.
    """
    root = find_run(run)
    plan = read_plan(root / PLAN)
    temperature = plan.sampling.temperature if temperature is None else temperature
    max_tokens = plan.sampling.max_tokens if max_tokens is None else max_tokens
    cure, warm = "Leave it out to take the plan's.", _positive(temperature, Real)
    require_argument("temperature", temperature, "a number above 0", fits=warm, cure=cure)
    require_argument("max_tokens", max_tokens, WHOLE, fits=_positive(max_tokens, Integral), cure=cure)
    saved = None if version == REFERENCE else saved_version(root, plan, "policy", version)
    loaded = untouched_of(root, plan)
    trunk = loaded.trunk
    if saved is not None:
        trunk = trunk.merged(load_policy_state(root / saved.path, trunk.device).adapter)
    engine = Engine(lambda _: trunk, open_chat(loaded), batch=plan.sampling.batch, temperature=temperature)
    name = engine.load(saved.id if saved else REFERENCE)
    return Policy(name, engine, max_tokens, plan.seed if seed is None else seed)


def saved_version(
    root: Path, plan: Plan, kind: Literal["policy", "reward"], version: str | None = None
) -> ModelVersion:
    """The run's newest finished policy or reward, or the one named. Raises: BackflipError when there is none."""
    found: list[ModelVersion] = []
    if has_begun(root, plan):
        with run_store(root, plan) as store:
            found = store.models(kind=kind)
    if not found:
        step = "optimised" if kind == "policy" else "fitted"
        raise BackflipError(
            f"{root} has no finished {kind} yet.\n"
            f"The first one is there once round 1 is {step}: see `backflip status`.\n"
            "Carry the run on with `backflip run`, or talk to the untouched model with `backflip chat --base`."
        )
    named = {model.id: model for model in found}
    if version is not None and version not in named:
        raise BackflipError(
            f'{root} has no {kind} "{version}".\nA {kind} is there once its round has made it.\n'
            f"So far there are: {', '.join(named)}."
        )
    return named[version] if version else found[-1]
