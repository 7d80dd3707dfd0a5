"""GGUF files become ordinary Hugging Face folders with the same log-probabilities."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import ANSWERS, ASKED, LLAMA3, SPECIAL, chat, hf_model, llama_of
from tokenizers.pre_tokenizers import ByteLevel
from torch.testing import assert_close
from transformers import PreTrainedModel

from backflip.core.errors import DataError
from backflip.models import gguf as module
from backflip.models.chat import open_chat
from backflip.models.gguf import BLOCK, TOP, convert_gguf
from backflip.models.load import load_model
from backflip.sampling.score import Reader

LETTERS = sorted(ByteLevel.alphabet())
TOKENS = [*SPECIAL, *LETTERS, "ab", "12", *(f"x{i}" for i in range(300 - len(SPECIAL) - len(LETTERS) - 2))]
HF_TO_GGUF = {v: k for k, v in TOP.items()} | {v: k for k, v in BLOCK.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BACKFLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
    without: str = "", context: int = 64, quantise: bool = False,
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
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(TOKENS)
    out.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
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


def rounded(hf: PreTrainedModel) -> PreTrainedModel:
    """Weights as bfloat16 can hold them, since that is what is written."""
    with torch.no_grad():
        for p in hf.parameters():
            p.copy_(p.bfloat16().float())
    return hf


@pytest.mark.parametrize(
    ("family", "arch"),
    [("llama", "llama"), ("llama-tied", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("llama3-rope", "llama")],
)
def test_a_gguf_file_scores_like_the_model_it_was_written_from(family: str, arch: str, tmp_path: Path):
    hf = rounded(hf_model(family))
    more = {"rope_freqs.weight": LLAMA3_DIVISORS} if family == "llama3-rope" else {}
    loaded = load_model(str(write(tmp_path / "m.gguf", hf, arch, more=more)), dtype=torch.float32)
    got, want = (Reader(t, chat()).read(ASKED, ANSWERS).logp for t in (loaded.trunk, llama_of(hf)))

    assert_close(got, want, atol=1e-4, rtol=0)
    if family == "llama3-rope":
        rope = json.loads((Path(loaded.source) / "config.json").read_text())["rope_parameters"]
        assert rope == LLAMA3


# theta 500000 over 8 dimensions: wavelengths 6.28 and 167 are short (below 8192 / 4), 118141 is long (above 8192),
# 4442.88 lies between: smooth = (8192 / 4442.88 - 1) / 3 = 0.281283, divisor 1 / ((1 - smooth) / 8 + smooth)
LLAMA3_DIVISORS = np.array([1.0, 1.0, 2.694529, 8.0], dtype=np.float32)


def test_quantised_weights_are_dequantised(tmp_path: Path):
    hf = rounded(hf_model("llama"))
    plain, eight = (write(tmp_path / f"{q}.gguf", hf, quantise=q) for q in (False, True))
    a, b = (load_model(str(p), dtype=torch.float32).trunk.state() for p in (plain, eight))

    for name in a:  # 8 bits for a block of 32 weights of about 0.3: steps of 0.01
        assert_close(a[name], b[name], atol=0.01, rtol=0.02)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_every_end_token_of_the_file_ends_an_answer(tmp_path: Path):
    loaded = load_model(str(write(tmp_path / "m.gguf", hf_model("llama"))))

    assert open_chat(loaded).stops == (2, 5)
    assert loaded.tokenizer.bos_token_id == 1
    assert loaded.tokenizer.pad_token_id == 2


def test_the_folder_is_an_ordinary_one(tmp_path: Path, cache: Path):
    folder = convert_gguf(write(tmp_path / "m.gguf", hf_model("llama")))

    names = {p.name for p in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"}
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert [p.name for p in cache.iterdir()] == [folder.name]  # no half-written folder is left


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "m.gguf", hf_model("llama"))
    read: list[Path] = []
    real = module.GGUFReader
    monkeypatch.setattr(module, "GGUFReader", lambda p: (read.append(p), real(p))[1])
    folder = convert_gguf(path)

    assert convert_gguf(path) == folder
    assert len(read) == 1
    os.utime(path, (0, 0))  # the same size, written at another time
    assert convert_gguf(path) != folder
    assert len(read) == 2


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [("smollm", ["ab", "1", "2", "1"]), ("llama-bpe", ["ab", "12", "1"]), ("qwen2", ["ab", "1", "2", "1"])],
)
def test_digits_are_cut_as_the_models_own_tokenizer_cuts_them(pre: str, pieces: list[str], tmp_path: Path):
    loaded = load_model(str(write(tmp_path / "m.gguf", hf_model("llama"), pre=pre)))

    assert loaded.tokenizer.tokenize("ab121") == pieces


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 16])
def test_an_unreadable_file_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.gguf cannot be read as a GGUF file"):
        convert_gguf(tmp_path / "broken.gguf")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_download_that_broke_off_is_refused(share: float, tmp_path: Path, cache: Path):
    whole = write(tmp_path / "m.gguf", hf_model("llama")).read_bytes()
    (tmp_path / "part.gguf").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="fetch it again"):
        convert_gguf(tmp_path / "part.gguf")
    assert not cache.exists() or not list(cache.iterdir())


def test_an_unknown_architecture_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="architecture 'mamba'"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama"), "mamba"))


def test_a_tensor_the_family_does_not_have_is_refused(tmp_path: Path, cache: Path):
    experts = {"blk.0.ffn_gate_inp.weight": np.zeros((4, 32), dtype=np.float32)}
    with pytest.raises(DataError, match=r"blk\.0\.ffn_gate_inp\.weight"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama"), more=experts))
    assert not list(cache.iterdir())


def test_unknown_position_scaling_is_refused(tmp_path: Path):
    odd = {"rope_freqs.weight": np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)}
    with pytest.raises(DataError, match="scales its positions"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama"), more=odd))


def test_a_missing_fact_is_refused_by_name(tmp_path: Path):
    with pytest.raises(DataError, match=r"no single llama\.block_count"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama"), without="block_count"))
