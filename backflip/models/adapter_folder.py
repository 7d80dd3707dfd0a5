"""Read a LoRA adapter in peft's format, and refuse one that does not belong to the model it is laid on."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from backflip.core.errors import DataError
from backflip.models.adapters import Adapter, adapter_from_state
from backflip.models.model_folder import by_block, check_safetensors, pickled
from backflip.models.trunk import Trunk

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN = {"use_dora": False, "bias": "none", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}}
"""Settings of peft that make an adapter more than LoRA of one rank, with their plain values."""


def read_config(folder: Path) -> dict[str, Any]:
    """peft's settings of an adapter.

    Raises: DataError when they are missing or malformed, or are not those of a plain LoRA adapter.
    """
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "peft_type" not in config:
            raise ValueError("it gives no peft_type")
        if config["peft_type"] == "LORA" and not (type(config.get("r")) is int and config["r"] > 0):
            raise ValueError(f"its rank r is {config.get('r')!r}")
        if config["peft_type"] == "LORA" and type(config.get("lora_alpha")) not in (int, float):
            raise ValueError(f"its lora_alpha is {config.get('lora_alpha')!r}")
    except (OSError, ValueError) as e:
        raise DataError(
            f"{file} cannot be read as peft's settings of an adapter: {e}.\n"
            "The folder may hold no adapter, or the copy broke off.\n"
            "Give the folder that peft's save_pretrained wrote."
        ) from e
    odd = [k for k, v in PLAIN.items() if config.get(k) not in (v, None, [], {})]
    if config["peft_type"] != "LORA" or odd:
        what = f"has {odd[0]} = {json.dumps(config[odd[0]])}" if odd else f"is of type {config['peft_type']}"
        raise DataError(
            f"The adapter in {folder} {what}, so it is no plain LoRA adapter of one rank.\n"
            "DoRA, trained embeddings or biases and other kinds of adapters are not read here.\n"
            "Merge it into its model with peft (merge_and_unload), save that, and give its folder."
        )
    return config


def load_adapter(folder: Path, trunk: Trunk) -> Adapter:
    """The LoRA adapter in `folder` (peft's format), for this model and on its device.

    Raises: DataError when it is no plain LoRA adapter, is broken, or names layers, ranks, shapes or words that the
    model does not have.
    """
    config = read_config(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / "adapter_model.bin").exists():
            raise pickled(folder, "adapter_model.bin")
        raise DataError(
            f"{folder} has {CONFIG} but no {WEIGHTS}.\nThe copy may have broken off.\nFetch or save the adapter again."
        )
    check_safetensors(file)
    state = load_file(file, device=str(trunk.device))
    _check_words(folder, state, trunk)
    rank = int(config["r"])
    alpha = float(config["lora_alpha"]) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    adapter = adapter_from_state(state, rank=rank, alpha=alpha, device=trunk.device)
    check_adapter(adapter, trunk, str(folder))
    return adapter


def check_adapter(adapter: Adapter, trunk: Trunk, source: str) -> None:
    """Refuse an adapter that changes layers which the model does not have, or not in these shapes.

    Raises: DataError.
    """
    shapes = trunk.linear_shapes()
    for name in sorted(adapter.b, key=by_block):
        b = adapter.b[name]
        if name not in shapes:
            raise DataError(
                f"The adapter in {source} changes the layer {name}, which the model does not have.\n"
                f"It was made for another model: this one has {trunk.layers} layers and is "
                f"of type {trunk.config.model_type}.\n"
                "Give the model it was made for; peft's settings name it as base_model_name_or_path."
            )
        rows, width = shapes[name]
        if not adapter.rank:
            wanted, found = ((rows, width),), (tuple(b.shape),)
        else:
            wanted = ((adapter.rank, width), (rows, adapter.rank))  # type: ignore[assignment]
            found = (tuple(adapter.a[name].shape), tuple(b.shape))  # type: ignore[assignment]
        if found != wanted:
            raise DataError(
                f"The adapter in {source} changes {name} in shapes {_list(found)}; with rank {adapter.rank} this model "
                f"needs {_list(wanted)}.\n"
                "It was made for a model of another size, or its settings give another rank than its weights have.\n"
                "Give the model it was made for; peft's settings name it as base_model_name_or_path."
            )
    if not adapter.b:
        raise DataError(
            f"The adapter in {source} changes nothing: it holds no weights.\nThe copy may have broken off.\n"
            "Fetch or save it again."
        )


def _list(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " and ".join(str(s) for s in shapes)


def _check_words(folder: Path, state: Mapping[str, Tensor], trunk: Trunk) -> None:
    """Refuse an adapter with an embedding, an output layer or a tokenizer for more words than the model has."""
    words = next((len(t) for n, t in state.items() if "lora" not in n and ("embed" in n or "lm_head" in n)), None)
    file = folder / "tokenizer.json"
    if words is None and file.is_file():
        try:
            top = max(Tokenizer.from_file(str(file)).get_vocab().values(), default=-1) + 1
        except Exception as e:
            raise DataError(
                f"{file} cannot be read as a tokenizer: {e}.\nThe copy may have broken off.\nFetch or save it again."
            ) from e
        words = top if top > trunk.vocabulary else None
    if words is not None and words != trunk.vocabulary:
        raise DataError(
            f"The adapter in {folder} is for a vocabulary of {words}, and the model has {trunk.vocabulary}.\n"
            "It was trained after tokens were added, or for another model.\n"
            "Give the model it was made for, with the same tokens added, or merge the adapter there with peft."
        )
