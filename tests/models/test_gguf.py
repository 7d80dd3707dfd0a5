"""GGUF files become ordinary Hugging Face folders with the same log-probabilities."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import ANSWERS, ASKED, LLAMA3, chat, hf_model, llama_of
from tiny_gguf import write
from torch.testing import assert_close
from transformers import PreTrainedModel

from backflip.core.errors import DataError
from backflip.models import gguf as module
from backflip.models.chat import open_chat
from backflip.models.gguf import convert_gguf
from backflip.models.gguf_layout import Sizes, gemma_scalar
from backflip.models.load import load_model
from backflip.sampling.score import Reader


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BACKFLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


GEMMA_LAYERS = {"layers": 6, "sliding_window_pattern": 6, "query_pre_attn_scalar": 12}


def test_a_gemma_file_scores_like_the_model_it_was_written_from(tmp_path: Path):
    # llama.cpp's files say nothing of the sixth layer, which has no window, nor of the rotary base of the others
    hf = hf_model("gemma3", **GEMMA_LAYERS)
    loaded = load_model(str(write(tmp_path / "m.gguf", hf, "gemma3")), dtype=torch.float32)
    got, want = (Reader(t, chat()).read(ASKED, ANSWERS).logp for t in (loaded.trunk, llama_of(hf)))

    assert_close(got, want, atol=1e-4, rtol=0)
    assert loaded.trunk.config.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert loaded.trunk.config.rope_parameters == hf.config.rope_parameters  # type: ignore[union-attr]
    assert loaded.tokenizer.tokenize("ab  ab") == ["ab", "▁", "▁ab"]
    assert loaded.tokenizer("é", add_special_tokens=False)["input_ids"] == [6 + 0xC3, 6 + 0xA9]


def test_gemmas_largest_scales_its_attention_in_its_own_way():
    # 62 blocks are the 27B: 5376 numbers over 32 heads, 168, and not its heads' 128
    sizes = Sizes(62, 5376, 32, 16, 128, 21504, 262208, tied=True)

    assert gemma_scalar(sizes) == 168
    assert gemma_scalar(replace(sizes, blocks=48)) == 128


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
    with pytest.raises(DataError, match="Fetch it again"):
        convert_gguf(tmp_path / "part.gguf")
    assert not cache.exists() or not list(cache.iterdir())


def test_an_unknown_architecture_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="architecture 'mamba'"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama"), "mamba"))


def test_a_tensor_the_family_does_not_have_is_refused(tmp_path: Path, cache: Path):
    experts = {"blk.0.ffn_gate_inp.weight": np.zeros((4, 32), dtype=np.float32)}
    with pytest.raises(DataError, match=r"blk\.0\.ffn_gate_inp\.weight"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama"), more=experts))
    assert not cache.exists()


def test_unknown_position_scaling_is_refused(tmp_path: Path):
    odd = {"rope_freqs.weight": np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)}
    with pytest.raises(DataError, match="scales its positions"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama"), more=odd))


def test_a_missing_fact_is_refused_by_name(tmp_path: Path):
    with pytest.raises(DataError, match=r"gives no single llama\.block_count"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama"), without="block_count"))


def damaged(path: Path, name: str, array: NDArray[np.float32]) -> Path:
    """The file of a model with one tensor replaced."""
    hf = hf_model("llama")
    hf.state_dict()[name].copy_(torch.from_numpy(array))
    return write(path, hf)


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path):
    hf = hf_model("llama", layers=2)
    hf.config.num_hidden_layers = 3  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"m\.gguf lacks the tensor blk\.2\.attn_norm\.weight"):
        convert_gguf(write(tmp_path / "m.gguf", hf))


def test_a_tensor_in_another_shape_is_refused_by_name(tmp_path: Path):
    hf = hf_model("llama")
    hf.config.intermediate_size = 40  # type: ignore[union-attr]  # the weights have 48
    with pytest.raises(
        DataError, match=r"blk\.0\.ffn_gate\.weight in shape \(48, 32\); its header asks for \(40, 32\)"
    ):
        convert_gguf(write(tmp_path / "m.gguf", hf))


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, cache: Path):
    norm = np.array([np.nan, *[1.0] * 31], dtype=np.float32)
    with pytest.raises(DataError, match=r"output_norm\.weight with numbers that are not finite"):
        convert_gguf(damaged(tmp_path / "m.gguf", "model.norm.weight", norm))
    assert not list(cache.iterdir())


def test_more_tokens_than_the_embedding_has_rows_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="a tokenizer of 300 tokens and an embedding of 290"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama", vocabulary=290)))


def test_32_bit_weights_keep_their_last_digit(tmp_path: Path):
    hf = hf_model("llama")
    state = load_model(str(write(tmp_path / "m.gguf", hf)), dtype=torch.float32).trunk.state()

    assert all(torch.equal(state[name], weight) for name, weight in hf.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("num_hidden_layers", 0, r"gives '0' as llama\.block_count"),
        ("intermediate_size", 1 << 31, r"2147483648 as llama\.feed_forward_length, which is no count"),
        ("rms_norm_eps", float("nan"), r"gives 'nan' as llama\.attention\.layer_norm_rms_epsilon"),
        ("head_dim", 7, "4 heads over 2 of 7 numbers, which cannot be"),
    ],
)
def test_numbers_that_cannot_be_are_refused(name: str, value: float, why: str, tmp_path: Path):
    hf = hf_model("llama")
    setattr(hf.config, name, value)
    with pytest.raises(DataError, match=why) as caught:
        convert_gguf(write(tmp_path / "m.gguf", hf))
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_no_token_is_added_that_the_model_does_not_have(arch: str, tmp_path: Path):
    loaded = load_model(str(write(tmp_path / "m.gguf", hf_model(arch), arch)))

    assert len(loaded.tokenizer) == 300
    assert max(loaded.tokenizer("<|endoftext|>")["input_ids"]) < 300


def test_a_part_of_a_split_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"m\.gguf is one of 3 parts of a model"):
        convert_gguf(write(tmp_path / "m.gguf", hf_model("llama"), parts=3))
