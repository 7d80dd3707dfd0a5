"""Read a GGUF file once into an ordinary Hugging Face folder (dequantised), kept in the user's cache.

transformers can read GGUF too, but slowly, and marks the model as quantised so that it cannot be saved.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import AutoTokenizer

from backflip.core.errors import DataError

FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
"""GGUF architecture -> Hugging Face model type and class."""
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def cache_dir() -> Path:
    """Where converted models are kept: $BACKFLIP_CACHE, or the user's cache folder."""
    root = (
        os.environ.get("BACKFLIP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "backflip"
    )
    return Path(root)


def convert_gguf(path: Path) -> Path:
    """The Hugging Face folder made from a GGUF file; made at the first call, found again later.

    Raises: DataError when the file is no GGUF file or its architecture is not known here.
    """
    stat = path.stat()
    key = hashlib.blake2b(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode(), digest_size=6).hexdigest()
    target = cache_dir() / f"{path.stem}-{key}"
    if (target / "config.json").exists():
        return target
    try:
        reader = GGUFReader(path)
        facts = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer.ggml.tokens")}
    except (ValueError, OSError) as e:
        raise DataError(
            f"{path} cannot be read as a GGUF file: {e}.\nThe download may be incomplete: fetch it again."
        ) from e
    config = _config(facts, reader, path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        save_file(_weights(reader, config), part / "model.safetensors", metadata={"format": "pt"})
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(part)
        (part / "config.json").write_text(json.dumps(config, indent=1))
        if not target.exists():
            part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _config(facts: Mapping[str, Any], reader: GGUFReader, path: Path) -> dict[str, Any]:
    arch = str(facts.get("general.architecture"))
    if arch not in FAMILIES:
        raise DataError(
            f"{path} holds a model of architecture {arch!r}, which is not read from GGUF here.\n"
            f"Known: {', '.join(FAMILIES)}. Give the model's Hugging Face folder instead."
        )
    model_type, name = FAMILIES[arch]
    shapes = {t.name: t.shape for t in reader.tensors}
    heads, size = int(facts[f"{arch}.attention.head_count"]), int(facts[f"{arch}.embedding_length"])
    return {
        "model_type": model_type, "architectures": [name], "hidden_act": "silu", "hidden_size": size,
        "num_hidden_layers": int(facts[f"{arch}.block_count"]), "num_attention_heads": heads,
        "num_key_value_heads": int(facts.get(f"{arch}.attention.head_count_kv", heads)),
        "head_dim": int(facts.get(f"{arch}.attention.key_length", size // heads)),
        "intermediate_size": int(facts[f"{arch}.feed_forward_length"]),
        "max_position_embeddings": int(facts[f"{arch}.context_length"]),
        "rms_norm_eps": float(facts[f"{arch}.attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(facts.get(f"{arch}.rope.freq_base", 10000.0))},
        "vocab_size": int(shapes["token_embd.weight"][1]), "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"), "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": facts.get("tokenizer.ggml.padding_token_id"), "dtype": "bfloat16",
    }  # fmt: skip


def _weights(reader: GGUFReader, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor dequantised, under its Hugging Face name, as bfloat16."""
    out = {}
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        array = dequantize(t.data, t.tensor_type)
        if config["model_type"] == "llama" and t.name.endswith(("attn_q.weight", "attn_k.weight")):
            array = _rotate_halves(array, int(config["head_dim"]))
        out[_hf_name(t.name)] = torch.from_numpy(np.array(array)).to(torch.bfloat16)
    return out


def _hf_name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    _, index, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"model.layers.{index}.{BLOCK[part]}.{kind}"


def _rotate_halves(weight: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """GGUF stores a Llama head's rotary rows interleaved (x0 y0 x1 y1 ...); Hugging Face wants halves (x..., y...)."""
    out, fan_in = weight.shape
    return weight.reshape(out // head_dim, head_dim // 2, 2, fan_in).swapaxes(1, 2).reshape(out, fan_in)
