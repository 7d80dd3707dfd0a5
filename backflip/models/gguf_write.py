"""Write a policy as a GGUF file, which llama.cpp and what is built on it read; and so does Backflip."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType, TokenType
from gguf.quants import quantize
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from backflip.core.errors import ConfigError
from backflip.models.adapters import Adapter
from backflip.models.gguf_layout import (
    ENDS,
    FAMILIES,
    ROPE_DIVISORS,
    Entry,
    Sizes,
    gemma_scalar,
    interleave,
    layout,
    rotary_frequencies,
    word_cuts,
)
from backflip.models.llama import Llama
from backflip.models.load import generation_stops
from backflip.models.model_folder import check_tokenizer, reading
from backflip.models.trunk import Trunk

Kind = Literal["f32", "f16", "bf16", "q8_0"]

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
ARCHITECTURES = {model_type: arch for arch, (model_type, _) in FAMILIES.items()} | {"mistral": "llama"}
"""Hugging Face model type -> GGUF architecture. Without its sliding window a Mistral computes what a Llama does."""
PRE = ("smollm", "llama-bpe", "qwen2", "gpt-2")
"""GGUF's names for the ways to cut words that are written here."""
PROBE = "It's 12345678 we'LL  go,\r\n\n  x  +=y12 Ünï-code 東京 3.14\t!?  "
"""A text that each of them cuts in another way."""
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
"""How Gemma's tokenizer writes spaces."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
LARGEST_F16 = 65504.0
ELSE = "Export the merged model as a Hugging Face folder instead."


def write_gguf(
    target: Path, trunk: Trunk, adapter: Adapter | None, tokenizer_folder: Path | str, kind: Kind = "f16"
) -> None:
    """Write the trunk with the adapter folded in, its tokenizer, chat template and end tokens as one GGUF file.

    `tokenizer_folder` is the folder or Hub id of the model's tokenizer and generation config (`Loaded.source`).
    `kind` is the format of the matrices; norms and biases are always 32-bit, and with "q8_0" a matrix whose rows
    are no multiple of 32 is 16-bit. `target` is replaced only by a whole file.
    Raises: ConfigError when GGUF cannot hold this family, tokenizer or range of numbers; DataError when the
    tokenizer cannot be read or has more tokens than the model; OSError when the disk is full.
    """
    arch = ARCHITECTURES.get(str(trunk.config.model_type))
    if arch is None or not isinstance(trunk, Llama):
        raise ConfigError(
            f"A model of type {trunk.config.model_type} cannot be written as GGUF here.\n"
            f"Known are plain models of the types {', '.join(ARCHITECTURES)}.\n{ELSE}"
        )
    _check_windows(trunk, arch)
    source = str(tokenizer_folder)
    with reading(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    check_tokenizer(source, tokenizer, trunk.vocabulary)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    writer = GGUFWriter(part, arch)
    try:
        _write_facts(writer, trunk, arch, target.stem, kind)
        _write_words(writer, tokenizer, trunk.vocabulary, generation_stops(source))
        _write_weights(writer, trunk.merged(adapter), arch, kind)
        writer.close()
        part.replace(target)
    finally:
        with suppress(OSError):  # on a full disk it cannot write what is left either
            writer.close()
        part.unlink(missing_ok=True)


def _check_windows(trunk: Llama, arch: str) -> None:
    """Raises: ConfigError when layers have windows or scales that no file of this architecture tells of."""
    kinds = [look.window is not None for look in trunk.looks]
    if arch != "gemma3":
        lost = "gives some layers a sliding window" if any(kinds) else ""
    elif trunk.config.rope_parameters["sliding_attention"]["rope_type"] != "default":
        lost = "scales the positions of its layers with a window"
    elif trunk.config.query_pre_attn_scalar != gemma_scalar(_sizes(trunk)):
        lost = f"scales its attention by a query_pre_attn_scalar of {trunk.config.query_pre_attn_scalar}"
    else:
        regular = kinds == [bool((i + 1) % _period(trunk)) for i in range(trunk.layers)]
        lost = "" if regular else "gives a sliding window to layers in no regular order"
    if lost:
        raise ConfigError(
            f"The {arch} model {lost}, which is not written as GGUF here.\n"
            f"A file would be read as another model: its architecture has no place for it.\n{ELSE}"
        )


def _period(trunk: Llama) -> int:
    """Which layers have no window: every n-th."""
    return [*(look.window is None for look in trunk.looks), True].index(True) + 1


def _rope_of(trunk: Llama) -> dict[str, Any]:
    """The rotary parameters of the layers without a window."""
    rope: dict[str, Any] = trunk.config.rope_parameters
    return dict(rope.get("full_attention", rope))


def _sizes(trunk: Llama) -> Sizes:
    return Sizes(
        blocks=trunk.layers,
        width=trunk.hidden_size,
        heads=trunk.heads,
        kv_heads=trunk.kv_heads,
        head_dim=trunk.head_dim,
        feed=int(trunk.config.intermediate_size),
        vocabulary=trunk.vocabulary,
        tied=bool(trunk.config.tie_word_embeddings),
    )


def _write_facts(writer: GGUFWriter, trunk: Llama, arch: str, name: str, kind: Kind) -> None:
    """Name, sizes and positions."""
    sizes = _sizes(trunk)
    writer.add_name(name)
    writer.add_file_type(TYPES[kind][1])
    writer.add_block_count(sizes.blocks)
    writer.add_context_length(trunk.context)
    writer.add_embedding_length(sizes.width)
    writer.add_feed_forward_length(sizes.feed)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_layer_norm_rms_eps(trunk.norm.eps)
    writer.add_vocab_size(sizes.vocabulary)
    rope = _rope_of(trunk)
    if arch == "gemma3":
        writer.add_sliding_window(int(trunk.config.sliding_window))
        writer.add_uint32(f"{arch}.attention.sliding_window_pattern", _period(trunk))
        local = trunk.config.rope_parameters["sliding_attention"]
        writer.add_float32(f"{arch}.rope.freq_base_swa", float(local["rope_theta"]))
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] != "default" and (rope["rope_type"] != "llama3" or arch == "gemma3"):
        raise ConfigError(
            f"The {arch} model scales its positions as {rope['rope_type']!r}, which is not written as GGUF here.\n"
            f"Known are default, linear and llama3.\n{ELSE}"
        )


def _write_words(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, stops: Sequence[int]) -> None:
    """Vocabulary, merges, special tokens, end tokens and chat template."""
    core: Any = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(core.to_str())["model"] if core is not None else {}
    pieces = _is_sentencepiece(core, model)
    pre = "default" if pieces else _pre_tokenizer(core, model)
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre(pre)
    words = {i: w for w, i in tokenizer.get_vocab().items()}
    added: dict[int, Any] = dict(getattr(tokenizer, "added_tokens_decoder", {}))
    kinds = {i: TokenType.CONTROL if t.special else TokenType.USER_DEFINED for i, t in added.items()}
    if pieces:
        kinds |= {i: TokenType.BYTE for i, w in words.items() if BYTE.fullmatch(w)}
    plain = {i: words[i].replace("▁", " ") for i, kind in kinds.items() if pieces and kind == TokenType.USER_DEFINED}
    writer.add_token_list([plain.get(i) or words.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types([kinds.get(i, TokenType.NORMAL if i in words else TokenType.UNUSED) for i in range(rows)])
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    if pieces:
        scores = {left + right: -float(n) for n, (left, right) in reversed(list(enumerate(merges)))}
        writer.add_token_scores([scores.get(words.get(i, ""), -float(len(merges))) for i in range(rows)])
        writer.add_add_space_prefix(False)
    else:
        writer.add_token_merges([" ".join(m) for m in merges])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    eos = tokenizer.eos_token_id
    ends = ([] if eos is None else [int(eos)]) + [s for s in sorted(set(stops)) if s != eos]
    for name, end in zip(ENDS, ends, strict=False):  # a file has room for three
        writer.add_uint32(f"tokenizer.ggml.{name}", end)
    start = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(start) and start[0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _is_sentencepiece(core: Any, model: dict[str, Any]) -> bool:
    """Whether the tokenizer is like Gemma's: byte pairs over whole texts, spaces written as a sign, bytes as <0xNN>."""
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return False
    return bool(json.loads(core.to_str())["normalizer"] == SPACES)


def _pre_tokenizer(core: Any, model: dict[str, Any]) -> str:
    """GGUF's name for how the tokenizer cuts words, found by trying.

    Raises: ConfigError for a tokenizer that is none of byte pairs, or cuts words in a way not known here.
    """
    cuts = core.pre_tokenizer if core is not None else None
    if model.get("type") == "BPE" and not model.get("byte_fallback") and cuts is not None:
        mine = cuts.pre_tokenize_str(PROBE)
        for pre in PRE:
            known = word_cuts(pre)
            if known is not None and known.pre_tokenize_str(PROBE) == mine:
                return pre
    raise ConfigError(
        f"The model's tokenizer (type {model.get('type', 'unknown')}) cannot be written as GGUF here.\n"
        f"Known are Gemma's, and byte-level byte-pair tokenizers that cut words as {', '.join(PRE)} do.\n{ELSE}"
    )


def _write_weights(writer: GGUFWriter, merged: Llama, arch: str, kind: Kind) -> None:
    """All tensors, one at a time: the file's list of them first, then their numbers."""
    sizes, state = _sizes(merged), merged.state()
    entries = list(layout(arch, sizes))
    divisors = _divisors(merged)
    for entry in entries:
        form = _form(entry, kind)
        writer.add_tensor_info(entry.name, *_plan(entry.shape, form), raw_dtype=form)
    if divisors is not None:
        writer.add_tensor_info(ROPE_DIVISORS, divisors.shape, divisors.dtype, divisors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        array = state[entry.hf_name].detach().float().cpu().numpy()
        if entry.interleaved:
            array = interleave(array, sizes.head_dim)
        if entry.plus_one:
            array = array + 1
        form = _form(entry, kind)
        if form == GGMLQuantizationType.F16 and np.abs(array).max() > LARGEST_F16:
            raise ConfigError(
                f"The weights of {entry.hf_name} are too large for 16-bit floats: they reach {np.abs(array).max():.3g}."
                f"\nThe format ends at {LARGEST_F16:,.0f}.\nWrite bf16 or f32 instead."
            )
        writer.write_tensor_data(quantize(np.ascontiguousarray(array), form))
    if divisors is not None:
        writer.write_tensor_data(divisors)


def _form(entry: Entry, kind: Kind) -> GGMLQuantizationType:
    """The format a tensor is written in."""
    if len(entry.shape) == 1:
        return GGMLQuantizationType.F32
    if kind == "q8_0" and entry.shape[1] % 32:
        return GGMLQuantizationType.F16
    return TYPES[kind][0]


def _plan(shape: tuple[int, ...], form: GGMLQuantizationType) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, numpy type and bytes of a tensor once it is quantised."""
    sample = quantize(np.zeros((1, shape[-1]), dtype=np.float32), form)
    stored = (*shape[:-1], sample.shape[-1])
    return stored, sample.dtype, sample.nbytes * int(np.prod(shape[:-1], dtype=np.int64))


def _divisors(trunk: Llama) -> NDArray[np.float32] | None:
    """What Llama 3's scaling divides the rotary frequencies by; None for other models."""
    rope = _rope_of(trunk)
    if rope["rope_type"] != "llama3":
        return None
    plain = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    divisors = rotary_frequencies(plain, trunk.head_dim) / rotary_frequencies(rope, trunk.head_dim)
    return divisors.astype(np.float32)
