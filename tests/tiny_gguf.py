"""GGUF files of tiny models, written without Backflip's own writer, and a byte-level tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
from numpy.typing import NDArray
from tiny import SPECIAL
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from backflip.models.gguf_layout import BLOCK, GEMMA_BLOCK, TOP, word_cuts

LETTERS = sorted(ByteLevel.alphabet())
TOKENS = [*SPECIAL, *LETTERS, "ab", "12", *(f"x{i}" for i in range(300 - len(SPECIAL) - len(LETTERS) - 2))]
PIECES = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), "ab", "▁a", "▁ab", "▁▁", *"▁ab12<>xyz"]
PIECES += [f"x{i}" for i in range(300 - len(PIECES))]
PAIRS = [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁a", "b"), ("▁", "▁")]
"""Gemma's kind of tokens, and their merges in the order of the tokens."""


def interleaved(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """A Llama's query or key rows as llama.cpp stores them: x0 y0 x1 y1 ... in every head."""
    out, fan_in = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, fan_in).swapaxes(1, 2).reshape(out, fan_in)


def gguf_name(name: str, arch: str) -> str:
    for ours, theirs in TOP.items():
        if name == theirs:
            return ours
    _, _, block, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    names = {v: k for k, v in (GEMMA_BLOCK if arch == "gemma3" else BLOCK).items()}
    return f"blk.{block}.{names[part]}.{kind}"


def write(
    path: Path, hf: PreTrainedModel, arch: str = "llama", *, more: Mapping[str, NDArray[Any]] = {}, pre: str = "smollm",
    without: str = "", context: int = 64, quantise: bool = False, tokens: Sequence[str] = TOKENS,
    parts: int = 1,
) -> Path:  # fmt: skip
    """A GGUF file of this model, with a byte-level tokenizer."""
    config: Any = hf.config
    out = gguf.GGUFWriter(path, arch)
    facts = {
        "block_count": config.num_hidden_layers, "context_length": context, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }  # fmt: skip
    for key, value in facts.items():
        if key != without:
            out.add_uint32(f"{arch}.{key}", value)
    if getattr(config, "head_dim", None):
        out.add_uint32(f"{arch}.attention.key_length", config.head_dim)
    rope = config.rope_parameters
    out.add_float32(f"{arch}.rope.freq_base", rope.get("full_attention", rope)["rope_theta"])
    if arch == "gemma3":
        out.add_uint32(f"{arch}.attention.sliding_window", config.sliding_window)
    out.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    out.add_uint16("split.count", parts)
    out.add_tokenizer_pre(pre)
    if arch == "gemma3":
        out.add_tokenizer_model("llama")
        out.add_token_list(PIECES)
        out.add_token_scores([-float(i) for i in range(300)])
        out.add_token_types([3] * len(SPECIAL) + [6] * 256 + [1] * (300 - 256 - len(SPECIAL)))
    else:
        out.add_tokenizer_model("gpt2")
        out.add_token_list(tokens)
        out.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
        out.add_token_merges(["a b", "1 2"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_eot_token_id(5)
    out.add_pad_token_id(2)
    for name, weight in hf.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = weight.float().numpy()
        if arch == "llama" and name.endswith("q_proj.weight"):
            array = interleaved(array, config.num_attention_heads)
        if arch == "llama" and name.endswith("k_proj.weight"):
            array = interleaved(array, config.num_key_value_heads)
        if arch == "gemma3" and "norm" in name:
            array = array + 1
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantise and array.ndim == 2 and array.shape[1] % 32 == 0:
            out.add_tensor(gguf_name(name, arch), gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            out.add_tensor(gguf_name(name, arch), array)
    for name, array in more.items():
        out.add_tensor(name, array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def byte_tokenizer(pre: str, *, template: str | None = None) -> PreTrainedTokenizerFast:
    """The same byte-level tokenizer as `write` gives its files, as transformers has it."""
    core = Tokenizer(BPE({w: i for i, w in enumerate(TOKENS)}, [("a", "b"), ("1", "2")]))
    core.pre_tokenizer = word_cuts(pre)
    core.decoder = decoders.ByteLevel()
    return _named(core, template)


def piece_tokenizer(*, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of Gemma's kind, as transformers has it."""
    core = Tokenizer(BPE({w: i for i, w in enumerate(PIECES)}, PAIRS, byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.add_tokens([AddedToken("▁▁", normalized=False)])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _named(core, template)


def _named(core: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    out = PreTrainedTokenizerFast(
        tokenizer_object=core,
        clean_up_tokenization_spaces=False,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<stop>"],
    )
    out.chat_template = template
    return out
