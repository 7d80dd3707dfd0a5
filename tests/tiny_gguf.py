"""GGUF files of tiny models, written without Backflip's own writer, and a byte-level tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
from numpy.typing import NDArray
from tiny import SPECIAL
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from backflip.models.gguf_layout import BLOCK, TOP, word_cuts

LETTERS = sorted(ByteLevel.alphabet())
TOKENS = [*SPECIAL, *LETTERS, "ab", "12", *(f"x{i}" for i in range(300 - len(SPECIAL) - len(LETTERS) - 2))]
HF_TO_GGUF = {v: k for k, v in TOP.items()} | {v: k for k, v in BLOCK.items()}


def interleaved(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """A Llama's query or key rows as llama.cpp stores them: x0 y0 x1 y1 ... in every head."""
    out, fan_in = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, fan_in).swapaxes(1, 2).reshape(out, fan_in)


def gguf_name(name: str) -> str:
    if name in HF_TO_GGUF:
        return HF_TO_GGUF[name]
    _, _, block, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{block}.{HF_TO_GGUF[part]}.{kind}"


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
    out.add_float32(f"{arch}.rope.freq_base", config.rope_parameters["rope_theta"])
    out.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    out.add_uint16("split.count", parts)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
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
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantise and array.ndim == 2 and array.shape[1] % 32 == 0:
            out.add_tensor(gguf_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            out.add_tensor(gguf_name(name), array)
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
    core.decoder = ByteDecoder()
    out = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<stop>"],
    )
    out.chat_template = template
    return out
