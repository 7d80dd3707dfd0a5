"""Save a reward model for others: a folder that `AutoModelForSequenceClassification` loads, with a card."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from backflip.models.chat import Chat
from backflip.models.generic import Generic
from backflip.models.save import model_card
from backflip.models.trunk import Trunk
from backflip.rewards import classifier
from backflip.rewards.ensemble import Ensemble
from backflip.rewards.fit import Reward
from backflip.rewards.model import RewardModel
from backflip.sampling.score import middle_layer


def save_classifier(
    model: RewardModel, folder: Path, *, base: str = "", plan: str = "", votes: int | None = None
) -> None:
    """Write the untouched trunk with the reward's head, its code, the tokenizer and a card into `folder`.

    `AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` then gives what
    `RewardModel.score` gives, as one label, and its `spread` what `RewardModel.spread` gives.
    Raises: OSError when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trunk, chat = model.reader.trunk, model.reader.chat
    code = Path(classifier.__file__)
    config = classifier.BackflipRewardConfig(
        backbone=_backbone(trunk),
        layer=middle_layer(trunk.layers),
        header=answer_header(chat),
        stops=chat.stops,
        frame=sorted(chat.frame),
        members=_members(model.ensemble),
        pad_token_id=_pad(chat),
        eos_token_id=chat.tokenizer.eos_token_id,
    )
    config.auto_map = {
        "AutoConfig": f"{code.stem}.BackflipRewardConfig",
        "AutoModelForSequenceClassification": f"{code.stem}.BackflipRewardModel",
    }
    config.architectures, config.dtype = ["BackflipRewardModel"], trunk.dtype
    config.save_pretrained(folder)
    shutil.copyfile(code, folder / code.name)
    save_torch_state_dict(_weights(trunk) | _head(model.reward, model.ensemble), folder)
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.pad_token = str(tokenizer.convert_ids_to_tokens(config.pad_token_id))
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card("reward", base, plan=plan, votes=votes), encoding="utf-8")


def answer_header(chat: Chat) -> list[int]:
    """The tokens the chat template puts before an answer; empty for a model without one."""
    if not chat.templated:
        return []
    talk = [{"role": "user", "content": "x"}]
    without, with_header = (
        str(chat.tokenizer.apply_chat_template(talk, add_generation_prompt=add, tokenize=False))
        for add in (False, True)
    )
    ids = chat.tokenizer(with_header.removeprefix(without), add_special_tokens=False)["input_ids"]
    return [int(i) for i in ids] if with_header.startswith(without) else []


def _pad(chat: Chat) -> int:
    """A pad token id, always: the tokenizer's, else a stop token, else 0. Masks, not ids, say what is padding."""
    pad = chat.tokenizer.pad_token_id
    return int(pad) if pad is not None else next(iter(chat.stops), 0)


def _backbone(trunk: Trunk) -> dict[str, Any]:
    """The trunk's configuration as plain data, without what only names files."""
    facts: dict[str, Any] = trunk.config.to_dict()
    return {k: v for k, v in facts.items() if k not in ("_name_or_path", "architectures", "dtype", "auto_map")}


def _weights(trunk: Trunk) -> dict[str, Tensor]:
    """The trunk's body, without the output layer."""
    body = f"{trunk.body_name if isinstance(trunk, Generic) else 'model'}."
    state = {k.removeprefix(body): t for k, t in trunk.state().items() if k.startswith(body)}
    return {f"backbone.{k}": t.clone().contiguous() for k, t in state.items()}


def _members(ensemble: Ensemble | None) -> int:
    """How many members are worth saving: one alone says nothing of how sure the reward is."""
    return len(ensemble.bias) if ensemble is not None and len(ensemble.bias) > 1 else 0


def _head(reward: Reward, ensemble: Ensemble | None) -> dict[str, Tensor]:
    """The fitted head in float32, with its members where there are some."""
    parts = {
        "mean": torch.as_tensor(reward.mean),
        "scale": torch.as_tensor(reward.scale),
        "linear.weight": torch.as_tensor(reward.weight)[None],
        "linear.bias": torch.tensor([reward.bias]),
    }
    if ensemble is not None and _members(ensemble):
        parts |= {"members.weight": torch.as_tensor(ensemble.weight), "members.bias": torch.as_tensor(ensemble.bias)}
    return {f"head.{k}": t.float().contiguous() for k, t in parts.items()}
