"""Read a GGUF file once into an ordinary Hugging Face folder (dequantised to bfloat16), kept in the user's cache.

transformers can read GGUF too, but slowly, and marks the model as quantised so that it cannot be saved.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

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


FORMAT = 2
"""Counts changes of what is written, so that a folder made by an older version is not found again."""
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""GGUF's names for the tokens that end an answer."""
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen 2 cut a text before byte pairs are merged; they differ in the digits taken together."""


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
    key = hashlib.blake2b(
        f"{FORMAT}|{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode(), digest_size=6
    ).hexdigest()
    target = cache_dir() / f"{path.stem}-{key}"
    if (target / "config.json").exists():
        return target
    try:
        reader = GGUFReader(path)
        facts = {k: f.contents() for k, f in reader.fields.items() if len(f.data) == 1 or "attention" in k}
    except (ValueError, IndexError, KeyError, OSError) as e:
        raise DataError(
            f"{path} cannot be read as a GGUF file: {e}.\nThe download may be incomplete: fetch it again."
        ) from e
    config = _config(facts, reader, path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        save_file(_weights(reader, config, path), part / "model.safetensors", metadata={"format": "pt"})
        _tokenizer(facts, path).save_pretrained(part)
        stops = sorted({int(facts[k]) for k in (f"tokenizer.ggml.{e}" for e in ENDS) if k in facts})
        ends = GenerationConfig(eos_token_id=stops or None)  # type: ignore[no-untyped-call]
        ends.save_pretrained(part)
        (part / "config.json").write_text(json.dumps(config, indent=1))
        with suppress(OSError):  # another process was faster
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

    def fact(key: str, default: int | None = None) -> Any:
        value = facts.get(f"{arch}.{key}", default)
        if value is None or isinstance(value, list):
            raise DataError(
                f"{path} gives no single {arch}.{key}, so the model cannot be built.\nIts layers may differ, or an "
                "unusual tool has written the file. Give the model's Hugging Face folder instead."
            )
        return value

    heads, size = int(fact("attention.head_count")), int(fact("embedding_length"))
    head_dim = int(fact("attention.key_length", size // heads))
    return {
        "model_type": model_type, "architectures": [name], "hidden_act": "silu", "hidden_size": size,
        "num_hidden_layers": int(fact("block_count")), "num_attention_heads": heads,
        "num_key_value_heads": int(fact("attention.head_count_kv", heads)), "head_dim": head_dim,
        "intermediate_size": int(fact("feed_forward_length")), "max_position_embeddings": int(fact("context_length")),
        "rms_norm_eps": float(fact("attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rope(facts, reader, arch, head_dim, path),
        "vocab_size": int(shapes["token_embd.weight"][1]), "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": facts.get("tokenizer.ggml.padding_token_id"), "dtype": "bfloat16",
    }  # fmt: skip


def _rope(facts: Mapping[str, Any], reader: GGUFReader, arch: str, head_dim: int, path: Path) -> dict[str, Any]:
    """Hugging Face's rotary parameters. Llama 3.1 and later keep theirs as a tensor of divisors."""
    plain = {"rope_type": "default", "rope_theta": float(facts.get(f"{arch}.rope.freq_base", 10000.0))}
    divisors = next((t.data for t in reader.tensors if t.name == "rope_freqs.weight"), None)
    kind = facts.get(f"{arch}.rope.scaling.type", "none")
    if divisors is not None:
        lengths = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        llama3 = plain | {"rope_type": "llama3", "factor": float(divisors.max())} | lengths
        if np.allclose(_frequencies(plain, head_dim) / _frequencies(llama3, head_dim), divisors, rtol=1e-3):
            return llama3
    elif kind == "linear":
        return plain | {"rope_type": "linear", "factor": float(facts[f"{arch}.rope.scaling.factor"])}
    elif kind == "none" and facts.get(f"{arch}.rope.dimension_count", head_dim) == head_dim:
        return plain
    raise DataError(
        f"{path} scales its positions in a way that is not read from GGUF here.\n"
        "Give the model's Hugging Face folder instead."
    )


def _frequencies(rope: dict[str, Any], head_dim: int) -> NDArray[np.float32]:
    """(head_dim / 2,) rotary frequencies of these parameters."""
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=1 << 17,
        rope_parameters=dict(rope),
    )
    return np.asarray(LlamaRotaryEmbedding(config).inv_freq)


def _tokenizer(facts: Mapping[str, Any], path: Path) -> PreTrainedTokenizerBase:
    """The file's tokenizer, cutting words as the model's own does, where `tokenizer.ggml.pre` says how.

    Raises: DataError when transformers cannot make one of it.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, OSError, NotImplementedError) as e:
        raise DataError(
            f"{path} holds a tokenizer that cannot be read: {e}.\nGive the model's Hugging Face folder instead."
        ) from e
    cut = _cuts(str(facts.get("tokenizer.ggml.pre")))
    if cut is not None and facts.get("tokenizer.ggml.model") == "gpt2":
        tokenizer.backend_tokenizer.pre_tokenizer = cut
    return tokenizer  # type: ignore[no-any-return]


def _cuts(pre: str) -> PreTokenizer | None:
    """What cuts a text into words for the pre-tokenizer GGUF calls `pre`; None where transformers' choice stands."""
    if pre in ("smollm", "starcoder"):
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if pre in ("llama-bpe", "llama3", "qwen2"):
        words = Regex(WORDS % ("" if pre == "qwen2" else "{1,3}"))
        return Sequence([Split(words, "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    return None


def _weights(reader: GGUFReader, config: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """Every tensor dequantised, under its Hugging Face name, as bfloat16."""
    out = {}
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        array = dequantize(t.data, t.tensor_type)
        if config["model_type"] == "llama" and t.name.endswith(("attn_q.weight", "attn_k.weight")):
            array = _rotate_halves(array, int(config["head_dim"]))
        out[_hf_name(t.name, str(config["model_type"]), path)] = torch.from_numpy(np.array(array)).to(torch.bfloat16)
    return out


def _hf_name(name: str, model_type: str, path: Path) -> str:
    """A tensor's Hugging Face name. Raises: DataError for one this family does not have."""
    if name in TOP:
        return TOP[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    part, _, kind = rest.rpartition(".")
    biased = model_type == "qwen2" and part in ("attn_q", "attn_k", "attn_v")
    if not block.isdigit() or part not in BLOCK or not (kind == "weight" or (kind == "bias" and biased)):
        raise DataError(
            f"{path} holds the tensor {name}, which a plain {model_type} model does not have.\n"
            "It may be a mixture of experts or a variant. Give the model's Hugging Face folder instead."
        )
    return f"model.layers.{block}.{BLOCK[part]}.{kind}"


def _rotate_halves(weight: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """GGUF stores a Llama head's rotary rows interleaved (x0 y0 x1 y1 ...); Hugging Face wants halves (x..., y...)."""
    out, fan_in = weight.shape
    return weight.reshape(out // head_dim, head_dim // 2, 2, fan_in).swapaxes(1, 2).reshape(out, fan_in)
