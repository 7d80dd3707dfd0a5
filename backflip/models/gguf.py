"""Read a GGUF file once into an ordinary Hugging Face folder, kept in the user's cache.

32- and 16-bit weights keep their format; quantised ones become bfloat16. transformers can read GGUF too, but
slowly, and marks the model as quantised so that it cannot be saved.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from backflip.core.disk import disk_told
from backflip.core.errors import DataError
from backflip.models.gguf_header import check_header
from backflip.models.gguf_layout import (
    ENDS,
    FAMILIES,
    GEMMA_LOCAL_BASE,
    GEMMA_PERIOD,
    ROPE_DIVISORS,
    Sizes,
    gemma_scalar,
    halve,
    layout,
    rotary_frequencies,
    word_cuts,
)
from backflip.models.model_folder import without_strangers

FORMAT = 3
"""Counts changes of what is written, so that a folder made by an older version is not found again."""
MOST = 1 << 30
"""No count of a model's parts is larger."""
KEPT = {GGMLQuantizationType.F32: torch.float32, GGMLQuantizationType.F16: torch.float16}
"""Formats of weights that are kept as they are; every other becomes bfloat16."""
ELSE = "Give the model's Hugging Face folder instead."


def cache_dir() -> Path:
    """Where converted models are kept: $BACKFLIP_CACHE, or the user's cache folder."""
    root = (
        os.environ.get("BACKFLIP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "backflip"
    )
    return Path(root)


def convert_gguf(path: Path) -> Path:
    """The Hugging Face folder made from a GGUF file; made at the first call, found again later.

    Raises: DataError when the file is broken, incomplete, or of an architecture or format that is not read here.
    """
    stat = path.stat()
    key = hashlib.blake2b(
        f"{FORMAT}|{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode(), digest_size=6
    ).hexdigest()
    target = cache_dir() / f"{path.stem}-{key}"
    if (target / "config.json").exists():
        return target
    check_header(path)
    try:
        reader = GGUFReader(path)
        facts = {k: f.contents() for k, f in reader.fields.items() if len(f.data) == 1 or "attention" in k}
    except (ValueError, IndexError, KeyError, OSError) as e:
        raise DataError(
            f"{path} cannot be read as a GGUF file: {e}.\n"
            "The download may be incomplete, or the file is damaged.\n"
            "Fetch it again."
        ) from e
    arch = _architecture(facts, path)
    sizes = _sizes(facts, arch, reader, path)
    _check_tensors(reader, arch, sizes, path)
    config = _config(facts, arch, sizes, reader, path)
    words = _words(reader, sizes, path)
    with cached(target) as part:
        part.mkdir()
        weights = _weights(reader, arch, sizes, path)
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        _tokenizer(facts, words, path).save_pretrained(part)
        stops = {_token(facts, e, sizes) for e in ENDS} - {None}
        ends = GenerationConfig(eos_token_id=sorted(s for s in stops if s is not None) or None)  # type: ignore[no-untyped-call]
        ends.save_pretrained(part)
        config["dtype"] = str(weights["model.embed_tokens.weight"].dtype).removeprefix("torch.")
        (part / "config.json").write_text(json.dumps(config, indent=1))
    return target


@contextmanager
def cached(target: Path) -> Iterator[Path]:
    """A folder name to write a converted model to; moved to `target` at the end of the block.

    Raises: BackflipError when the disk is full or cannot be written; nothing is left behind then.
    """
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    with disk_told(target, "Free some space, or name another folder for converted models in BACKFLIP_CACHE."):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield part
            try:
                part.replace(target)
            except OSError:
                if not target.exists():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _architecture(facts: Mapping[str, Any], path: Path) -> str:
    arch = str(facts.get("general.architecture"))
    if arch not in FAMILIES:
        raise DataError(
            f"{path} holds a model of architecture {arch!r}, which is not read from GGUF here.\n"
            f"Known: {', '.join(FAMILIES)}.\n{ELSE}"
        )
    if facts.get("split.count", 0) not in (0, 1):
        raise DataError(
            f"{path} is one of {facts['split.count']} parts of a model.\n"
            "Large GGUF files are cut in parts for the download.\n"
            "Join them with llama-gguf-split --merge, or give the model's Hugging Face folder."
        )
    return arch


def _number(facts: Mapping[str, Any], key: str, path: Path, default: float | None = None) -> float:
    """A positive, finite number. Raises: DataError when there is none and no default."""
    value = facts.get(key, default)
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        what = "gives no single" if value is None or isinstance(value, list) else f"gives {str(value)[:40]!r} as"
        raise DataError(
            f"{path} {what} {key}, so the model cannot be built.\n"
            f"Its layers may differ, or the file is damaged or written by an unusual tool.\n{ELSE}"
        )
    return value


def _count(facts: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    """A positive whole number. Raises: DataError when there is none and no default."""
    value = _number(facts, key, path, default)
    if value != int(value) or value > MOST:
        raise DataError(f"{path} gives {value} as {key}, which is no count.\nThe file may be damaged.\nFetch it again.")
    return int(value)


def _token(facts: Mapping[str, Any], key: str, sizes: Sizes) -> int | None:
    """A token's id; None where the file gives none, or one outside the vocabulary (then it is not meant)."""
    value = facts.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, int) and 0 <= value < sizes.vocabulary else None


def _sizes(facts: Mapping[str, Any], arch: str, reader: GGUFReader, path: Path) -> Sizes:
    def count(key: str, default: int | None = None) -> int:
        return _count(facts, f"{arch}.{key}", path, default)

    shapes = {t.name: _shape(t) for t in reader.tensors}
    embedding = shapes.get("token_embd.weight", ())
    if len(embedding) != 2:
        raise _missing(path, "token_embd.weight")
    heads, width = count("attention.head_count"), count("embedding_length")
    sizes = Sizes(
        blocks=count("block_count"),
        width=width,
        heads=heads,
        kv_heads=count("attention.head_count_kv", heads),
        head_dim=count("attention.key_length", max(width // heads, 1)),
        feed=count("feed_forward_length"),
        vocabulary=embedding[0],
        tied="output.weight" not in shapes,
    )
    if sizes.head_dim % 2 or sizes.heads % sizes.kv_heads:
        raise DataError(
            f"{path} has {heads} heads over {sizes.kv_heads} of {sizes.head_dim} numbers, which cannot be.\n"
            "The file may be damaged.\nFetch it again."
        )
    return sizes


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    """Rows first; the file has it the other way round."""
    return tuple(int(n) for n in reversed(tensor.shape))


def _missing(path: Path, name: str) -> DataError:
    return DataError(
        f"{path} lacks the tensor {name}.\n"
        "It may be one part of several, a file without weights, or damaged.\n"
        f"Fetch the whole model. {ELSE}"
    )


def _check_tensors(reader: GGUFReader, arch: str, sizes: Sizes, path: Path) -> None:
    """Refuse a file that lacks one of the model's tensors, has one in another shape, or holds others."""
    left = {t.name: _shape(t) for t in reader.tensors if t.name != ROPE_DIVISORS}
    for entry in layout(arch, sizes):
        shape = left.pop(entry.name, None)
        if shape is None:
            raise _missing(path, entry.name)
        if shape != entry.shape:
            raise DataError(
                f"{path} holds the tensor {entry.name} in shape {shape}; its header asks for {entry.shape}.\n"
                f"The file may be damaged or of an unusual variant.\n{ELSE}"
            )
    if left:
        raise DataError(
            f"{path} holds the tensor {min(left)}, which a plain {arch} model of {sizes.blocks} layers does not have.\n"
            f"It may be a mixture of experts or a variant.\n{ELSE}"
        )


def _config(facts: Mapping[str, Any], arch: str, sizes: Sizes, reader: GGUFReader, path: Path) -> dict[str, Any]:
    model_type, name = FAMILIES[arch]
    config: dict[str, Any] = {
        "model_type": model_type, "architectures": [name], "hidden_act": "silu", "hidden_size": sizes.width,
        "num_hidden_layers": sizes.blocks, "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim, "intermediate_size": sizes.feed, "vocab_size": sizes.vocabulary,
        "max_position_embeddings": _count(facts, f"{arch}.context_length", path),
        "rms_norm_eps": _number(facts, f"{arch}.attention.layer_norm_rms_epsilon", path),
        "rope_parameters": _rope(facts, reader, arch, sizes.head_dim, path), "tie_word_embeddings": sizes.tied,
        "bos_token_id": _token(facts, "bos_token_id", sizes), "eos_token_id": _token(facts, "eos_token_id", sizes),
        "pad_token_id": _token(facts, "padding_token_id", sizes),
    }  # fmt: skip
    return config | _gemma(facts, arch, sizes, config["rope_parameters"], path) if arch == "gemma3" else config


def _gemma(facts: Mapping[str, Any], arch: str, sizes: Sizes, rope: dict[str, Any], path: Path) -> dict[str, Any]:
    """What else a Gemma 3 needs: windows in most layers, which turn heads in their own way, and a scale of scores."""
    period = _count(facts, f"{arch}.attention.sliding_window_pattern", path, GEMMA_PERIOD)
    local = float(_number(facts, f"{arch}.rope.freq_base_swa", path, GEMMA_LOCAL_BASE))
    return {
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": gemma_scalar(sizes),
        "sliding_window": _count(facts, f"{arch}.attention.sliding_window", path),
        "layer_types": [f"{'sliding' if (i + 1) % period else 'full'}_attention" for i in range(sizes.blocks)],
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "final_logit_softcapping": facts.get(f"{arch}.final_logit_softcapping") or None,
    }  # fmt: skip


def _rope(facts: Mapping[str, Any], reader: GGUFReader, arch: str, head_dim: int, path: Path) -> dict[str, Any]:
    """Hugging Face's rotary parameters. Llama 3.1 and later keep theirs as a tensor of divisors."""
    theta = float(_number(facts, f"{arch}.rope.freq_base", path, 10000.0))
    plain = {"rope_type": "default", "rope_theta": theta}
    tensor = next((t for t in reader.tensors if t.name == ROPE_DIVISORS), None)
    kind = facts.get(f"{arch}.rope.scaling.type", "none")
    if tensor is not None:
        divisors = dequantize(tensor.data, tensor.tensor_type)
        lengths = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        factor = float(divisors.max())
        if divisors.shape == (head_dim // 2,) and np.isfinite(divisors).all() and factor >= 1 and divisors.min() > 0:
            llama3 = plain | {"rope_type": "llama3", "factor": factor} | lengths
            want = rotary_frequencies(plain, head_dim) / rotary_frequencies(llama3, head_dim)
            if np.allclose(want, divisors, rtol=1e-3):
                return llama3
    elif kind == "linear":
        factor = float(_number(facts, f"{arch}.rope.scaling.factor", path))
        return plain | {"rope_type": "linear", "factor": factor}
    elif kind == "none" and facts.get(f"{arch}.rope.dimension_count", head_dim) == head_dim:
        return plain
    raise DataError(
        f"{path} scales its positions in a way that is not read from GGUF here.\n"
        f"Known are none, linear, and that of Llama 3.\n{ELSE}"
    )


def _words(reader: GGUFReader, sizes: Sizes, path: Path) -> list[str]:
    """The file's tokens.

    Raises: DataError when there are none, or more than the embedding has rows.
    """
    field = reader.fields.get("tokenizer.ggml.tokens")
    try:
        words = [str(w) for w in field.contents()] if field is not None else []
    except (ValueError, TypeError) as e:
        raise DataError(
            f"{path} holds a tokenizer that cannot be read: {e}.\nThe file may be damaged.\nFetch it again."
        ) from e
    if not words:
        raise DataError(f"{path} holds no tokenizer.\nIt may be a part of a larger model.\n{ELSE}")
    if len(words) > sizes.vocabulary:
        raise DataError(
            f"{path} has a tokenizer of {len(words)} tokens and an embedding of {sizes.vocabulary}.\n"
            "Tokens were added without training the model for them, or the file is damaged.\n"
            f"Fetch it again. {ELSE}"
        )
    return words


def _tokenizer(facts: Mapping[str, Any], words: list[str], path: Path) -> PreTrainedTokenizerBase:
    """The file's tokenizer, cutting words as the model's own does, where `tokenizer.ggml.pre` says how.

    `words` are the file's tokens. Raises: DataError when transformers cannot make one of it.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as e:
        raise DataError(
            f"{path} holds a tokenizer that cannot be read: {str(e).partition(chr(10))[0]}.\n"
            f"It may be of a rare kind, or the file is damaged.\n{ELSE}"
        ) from e
    tokenizer = without_strangers(tokenizer, set(words))
    cut = word_cuts(str(facts.get("tokenizer.ggml.pre")))
    if cut is not None and facts.get("tokenizer.ggml.model") == "gpt2":
        tokenizer.backend_tokenizer.pre_tokenizer = cut
    return tokenizer  # type: ignore[no-any-return]


def _weights(reader: GGUFReader, arch: str, sizes: Sizes, path: Path) -> dict[str, torch.Tensor]:
    """Every tensor dequantised, under its Hugging Face name.

    Raises: DataError when one holds numbers that are not finite.
    """
    out, tensors = {}, {t.name: t for t in reader.tensors}
    for entry in layout(arch, sizes):
        t = tensors[entry.name]
        with np.errstate(all="ignore"):
            array = dequantize(t.data, t.tensor_type)
        if not np.isfinite(array).all():
            raise DataError(
                f"{path} holds the tensor {entry.name} with numbers that are not finite.\n"
                "The file may be damaged, or the model's training went wrong.\nFetch it again."
            )
        if entry.interleaved:
            array = halve(array, sizes.head_dim)
        if entry.plus_one:
            array = array - 1
        kept = KEPT.get(t.tensor_type, torch.bfloat16)
        out[entry.hf_name] = torch.from_numpy(np.array(array)).to(kept)
    return out
