"""What a GGUF file calls the parts of a Llama or its like: tensors, their shapes, and how words are cut."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from backflip.models.families import rotary

FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
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
GEMMA_BLOCK = BLOCK | {
    "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
ROPE_DIVISORS = "rope_freqs.weight"
"""Llama 3.1 and later keep their rotary scaling as a tensor of divisors."""
GEMMA_27B_BLOCKS = 62
GEMMA_PERIOD = 6
"""Where a file does not say otherwise, every sixth layer of a Gemma 3 has no window."""
GEMMA_LOCAL_BASE = 10_000.0
"""The rotary base of Gemma's layers with a window, where a file does not say otherwise."""
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""GGUF's names for the tokens that end an answer."""
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen 2 cut a text before byte pairs are merged; they differ in the digits taken together."""


@dataclass(frozen=True)
class Sizes:
    """The shape of a model. `tied`: the output layer is the embedding."""

    blocks: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed: int
    vocabulary: int
    tied: bool


class Entry(NamedTuple):
    """One tensor of a file: its GGUF and Hugging Face names and its shape, rows first."""

    name: str
    hf_name: str
    shape: tuple[int, ...]
    interleaved: bool = False
    """Whether the file keeps every head's rotary rows as x0 y0 x1 y1 ..."""
    plus_one: bool = False
    """Whether the file keeps 1 + the weight."""


def layout(arch: str, sizes: Sizes) -> Iterator[Entry]:
    """Every tensor a model of this architecture and shape has, one at a time."""
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    rows: dict[str, tuple[int, ...]] = {
        "attn_norm": (sizes.width,), "ffn_norm": (sizes.width,), "attn_q": (queries, sizes.width),
        "attn_k": (keys, sizes.width), "attn_v": (keys, sizes.width), "attn_output": (sizes.width, queries),
        "ffn_gate": (sizes.feed, sizes.width), "ffn_up": (sizes.feed, sizes.width),
        "ffn_down": (sizes.width, sizes.feed),
    }  # fmt: skip
    if arch in ("qwen3", "gemma3"):
        rows |= {"attn_q_norm": (sizes.head_dim,), "attn_k_norm": (sizes.head_dim,)}
    gemma, block = arch == "gemma3", BLOCK
    if gemma:
        rows, block = rows | {"post_attention_norm": (sizes.width,), "post_ffw_norm": (sizes.width,)}, GEMMA_BLOCK
    for name in TOP if not sizes.tied else list(TOP)[:2]:
        top = (sizes.width,) if name == "output_norm.weight" else (sizes.vocabulary, sizes.width)
        yield Entry(name, TOP[name], top, plus_one=gemma and len(top) == 1)
    for i in range(sizes.blocks):
        for part, shape in rows.items():
            turned = arch == "llama" and part in ("attn_q", "attn_k")
            plus = gemma and len(shape) == 1
            yield Entry(f"blk.{i}.{part}.weight", f"model.layers.{i}.{block[part]}.weight", shape, turned, plus)
            if arch == "qwen2" and part in ("attn_q", "attn_k", "attn_v"):
                yield Entry(f"blk.{i}.{part}.bias", f"model.layers.{i}.{BLOCK[part]}.bias", shape[:1])


def gemma_scalar(sizes: Sizes) -> int:
    """Gemma's `query_pre_attn_scalar`, which no GGUF file gives: llama.cpp knows it by the size of the model."""
    return sizes.width // sizes.heads if sizes.blocks == GEMMA_27B_BLOCKS else sizes.head_dim


def halve(weight: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """GGUF stores a Llama head's rotary rows interleaved (x0 y0 x1 y1 ...); Hugging Face wants halves (x..., y...)."""
    out, fan_in = weight.shape
    return weight.reshape(out // head_dim, head_dim // 2, 2, fan_in).swapaxes(1, 2).reshape(out, fan_in)


def interleave(weight: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """The way back from `halve`."""
    out, fan_in = weight.shape
    return weight.reshape(out // head_dim, 2, head_dim // 2, fan_in).swapaxes(1, 2).reshape(out, fan_in)


def rotary_frequencies(rope: dict[str, Any], head_dim: int) -> NDArray[np.float32]:
    """(head_dim / 2,) rotary frequencies of Hugging Face's parameters."""
    return np.asarray(rotary(rope, head_dim, 1 << 17).inv_freq)


def word_cuts(pre: str) -> PreTokenizer | None:
    """What cuts a text into words for the pre-tokenizer GGUF calls `pre`; None where it is not known here."""
    if pre in ("smollm", "starcoder"):
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if pre in ("llama-bpe", "llama3", "qwen2"):
        words = Regex(WORDS % ("" if pre == "qwen2" else "{1,3}"))
        return Sequence([Split(words, "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    if pre == "gpt-2":
        return ByteLevel(add_prefix_space=False)
    return None
