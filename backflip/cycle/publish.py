"""What a run hands out: models in the formats others load, each with a card."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from backflip.core.errors import ConfigError
from backflip.cycle.artefacts import write_whole
from backflip.cycle.checkpoints import load_policy_state
from backflip.cycle.fit import scorer_of_round
from backflip.cycle.folder import PLAN, RunPath, find_run, run_store
from backflip.cycle.plan import read_plan
from backflip.cycle.talk import saved_version
from backflip.cycle.tools import Tools
from backflip.cycle.untouched import untouched_of
from backflip.models.adapters import Adapter
from backflip.models.chat import Chat, open_chat
from backflip.models.gguf_write import write_gguf
from backflip.models.load import Loaded
from backflip.models.save import save_adapter, save_merged
from backflip.rewards.save import save_classifier

Kind = Literal["hf", "adapter", "gguf"]
"""A Hugging Face folder, an adapter in peft's format, or one GGUF file."""


def publish(number: int, tools: Tools) -> None:
    """Write `models/` of the run after round `number`; what is there already stays.

    `models/adapter` is the policy in peft's format (not after full fine-tuning), `models/policy` the same merged
    into a plain Hugging Face folder, `models/reward` the newest reward as a sequence classifier with one label.
    """
    plan = (tools.root / "plan.toml").read_text(encoding="utf-8")
    votes, base = len(tools.store.votes()), tools.loaded.source
    adapter = tools.policy(f"policy-r{number}").adapter
    reward = scorer_of_round(number, tools)
    policy = _policy_makers(tools.loaded, tools.chat, adapter, plan, votes)
    makers: dict[str, Callable[[Path], None]] = {
        "adapter": policy["adapter"],
        "policy": policy["hf"],
        "reward": lambda part: save_classifier(reward, part, base=base, plan=plan, votes=votes),
    }
    if not adapter.rank:
        del makers["adapter"]
    for name, make in makers.items():
        folder = tools.root / "models" / name
        if not folder.exists():
            write_whole(folder, make)


def _policy_makers(
    loaded: Loaded, chat: Chat, adapter: Adapter, plan: str, votes: int
) -> dict[Kind, Callable[[Path], None]]:
    """By kind, what writes a policy to a path; `plan` and `votes` stand on the card."""
    trunk, base = loaded.trunk, loaded.source
    return {
        "adapter": lambda part: save_adapter(adapter, part, base, plan=plan, votes=votes),
        "hf": lambda part: save_merged(
            trunk, adapter, chat.tokenizer, part, base=base, plan=plan, votes=votes, stops=chat.stops
        ),
        "gguf": lambda part: write_gguf(part, trunk, adapter, base),
    }


def export_policy(run: RunPath, out: RunPath | None = None, kind: Kind = "hf") -> tuple[Path, str]:
    """Write a run's newest finished policy to `out`, else below `exports/` of its folder; (path, version).

    `kind`: a Hugging Face folder, an adapter in peft's format, or one GGUF file.

    >>> import backflip
    >>> path, version = backflip.export_policy("runs/mine", "tea-model")
    >>> path.name, version
    ('tea-model', 'policy-r2')

    Raises: BackflipError when there is no finished policy or the disk is full; ConfigError when `out` exists, or for
    an adapter after full fine-tuning.
    """
    root = find_run(run)
    text = (root / PLAN).read_text(encoding="utf-8")
    plan = read_plan(root / PLAN)
    version = saved_version(root, plan, "policy")
    target = Path(out) if out else root / "exports" / f"{version.id}-{kind}{'.gguf' * (kind == 'gguf')}"
    if target.exists():
        raise ConfigError(
            f"{target} exists and is left as it is.\nAn export never writes over another.\n"
            "Give another name with --out."
        )
    if kind == "adapter" and not plan.ppo.rank:
        raise ConfigError(
            f"{version.id} has no adapter: the plan trains every weight (ppo.rank = 0).\n"
            "peft's format holds changes of low rank only.\nExport it with --as hf or --as gguf."
        )
    with run_store(root, plan) as store:
        votes = len(store.votes())
    loaded = untouched_of(root, plan, device="cpu")
    adapter = load_policy_state(root / version.path).adapter
    write_whole(target, _policy_makers(loaded, open_chat(loaded), adapter, text, votes)[kind])
    return target, version.id
