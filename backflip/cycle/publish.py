"""What a finished run hands out: models in the formats others load, each with a card."""

from backflip.cycle.artefacts import write_whole
from backflip.cycle.tools import Tools
from backflip.models.save import save_adapter, save_merged
from backflip.rewards.model import RewardModel, load_reward
from backflip.rewards.save import save_classifier


def publish(number: int, tools: Tools) -> None:
    """Write `models/` of the run after round `number`; what is there already stays.

    `models/adapter` is the policy in peft's format (not after full fine-tuning), `models/policy` the same merged
    into a plain Hugging Face folder, `models/reward` the newest reward as a sequence classifier with one label.
    """
    plan = (tools.root / "plan.toml").read_text(encoding="utf-8")
    votes, base = len(tools.store.votes()), tools.loaded.source
    trunk, chat = tools.loaded.trunk, tools.chat
    adapter = tools.policy(f"policy-r{number}").adapter
    reward = RewardModel(load_reward(tools.round_dir(number) / "reward"), tools.reader)
    makers = {
        "adapter": lambda part: save_adapter(adapter, part, base, plan=plan, votes=votes),
        "policy": lambda part: save_merged(
            trunk, adapter, chat.tokenizer, part, base=base, plan=plan, votes=votes, stops=chat.stops
        ),
        "reward": lambda part: save_classifier(reward, part, base=base, plan=plan, votes=votes),
    }
    if not adapter.rank:
        del makers["adapter"]
    for name, make in makers.items():
        folder = tools.root / "models" / name
        if not folder.exists():
            write_whole(folder, make)
