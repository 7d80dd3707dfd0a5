"""A policy written as GGUF is the same policy when it is read again."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tiny import (
    ANSWERS,
    ASKED,
    LLAMA3,
    PLAIN,
    TEMPLATE,
    VOCABULARY,
    chat,
    hf_model,
    llama_of,
    oracle_logits,
    tokenizer,
    trained,
    trunk_of,
)
from tiny_gguf import TOKENS, byte_tokenizer, piece_tokenizer
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from backflip.core.errors import ConfigError, DataError
from backflip.models.chat import open_chat
from backflip.models.gguf_write import PRE, PROBE, Kind, write_gguf
from backflip.models.load import load_model
from backflip.sampling.score import Reader


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFLIP_CACHE", str(tmp_path / "cache"))


def words(tmp_path: Path, pre: str = "smollm", own: PreTrainedTokenizerFast | None = None) -> Path:
    """A folder with a byte-level tokenizer and two end tokens."""
    folder = tmp_path / "words"
    (own or byte_tokenizer(pre, template=TEMPLATE)).save_pretrained(folder)
    GenerationConfig(eos_token_id=[2, 5]).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def logp(trunk: Any, adapter: Any = None) -> torch.Tensor:
    return Reader(trunk, chat()).read(ASKED, ANSWERS, adapter).logp


# A weight keeps 24, 11 or 8 bits as f32, f16 or bf16; as Q8_0 it is one of 127 steps up to the largest of 32.
@pytest.mark.parametrize(("kind", "bound"), [("f32", 1e-5), ("f16", 5e-3), ("bf16", 5e-2), ("q8_0", 0.15)])
def test_a_policy_comes_back_to_the_formats_precision(kind: Kind, bound: float, tmp_path: Path):
    trunk, _ = trunk_of("llama")
    adapter = trained(trunk, size=0.05)
    write_gguf(tmp_path / "out" / "policy.gguf", trunk, adapter, words(tmp_path), kind)
    back = load_model(str(tmp_path / "out" / "policy.gguf"), dtype=torch.float32).trunk
    merged = trunk.merged(adapter).state()
    error = (logp(back) - logp(trunk, adapter)).abs().mean()

    assert error < bound
    assert error > bound / 100 or kind == "f32"  # else the format is not what was asked for
    assert (logp(back) - logp(trunk)).abs().mean() > 0.2  # the adapter is in it
    for name, tensor in back.state().items():
        if "norm" in name:
            assert torch.equal(tensor, merged[name])


@pytest.mark.parametrize("family", PLAIN)
def test_every_family_comes_back_with_its_adapter(family: str, tmp_path: Path):
    trunk, _ = trunk_of(family)
    adapter = trained(trunk)
    folder = words(tmp_path, "qwen2" if family.startswith("qwen") else "llama-bpe")
    write_gguf(tmp_path / "policy.gguf", trunk, adapter, folder, "f32")
    loaded = load_model(str(tmp_path / "policy.gguf"), dtype=torch.float32)

    assert_close(logp(loaded.trunk), logp(trunk, adapter), atol=1e-3, rtol=0)
    if family == "llama3-rope":
        assert loaded.trunk.config.rope_parameters == LLAMA3


LINEAR = {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}
GEMMA = {"query_pre_attn_scalar": 12, "layers": 4}


def gemma(tmp_path: Path, **more: Any) -> tuple[Any, PreTrainedModel, Path]:
    """A Gemma as GGUF can hold it, its oracle, and a folder with its kind of tokenizer."""
    own = piece_tokenizer(template=TEMPLATE)
    return *trunk_of("gemma3", **GEMMA | more), words(tmp_path, own=own)


def test_a_gemma_comes_back_with_its_adapter_windows_and_words(tmp_path: Path):
    rope = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}
    trunk, _, folder = gemma(tmp_path, rope_parameters=rope)
    adapter, before = trained(trunk), piece_tokenizer()
    write_gguf(tmp_path / "policy.gguf", trunk, adapter, folder, "f32")
    loaded = load_model(str(tmp_path / "policy.gguf"), dtype=torch.float32)
    texts = ["ab  ab", "<user> ab<stop>", " é\n12  a", "xyz"]

    assert_close(logp(loaded.trunk), logp(trunk, adapter), atol=1e-3, rtol=0)
    assert loaded.trunk.config.rope_parameters == rope
    assert loaded.trunk.config.layer_types == ["sliding_attention", "full_attention"] * 2
    assert [loaded.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts] == [
        before(t)["input_ids"] for t in texts
    ]
    assert loaded.tokenizer.decode(before(" é\n12  ab")["input_ids"]) == " é\n12  ab"
    assert open_chat(loaded).stops == (2, 5)


def test_gemmas_words_are_listed_as_llama_cpp_reads_them(tmp_path: Path):
    # the earlier a merge, the higher the score of what it makes; tokens to find in plain text have plain spaces
    trunk, _, folder = gemma(tmp_path)
    write_gguf(tmp_path / "policy.gguf", trunk, None, folder)
    fields = gguf.GGUFReader(tmp_path / "policy.gguf").fields
    tokens, scores, types = (fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "scores", "token_type"))
    seen = {t: (s, k) for t, s, k in zip(tokens, scores, types, strict=True)}

    assert [seen[t] for t in ("ab", "▁a", "▁ab", "  ")] == [(0.0, 1), (-1.0, 1), (-2.0, 1), (-4.0, 4)]
    assert seen["<0x0A>"] == (-5.0, 6)
    assert seen["<user>"] == (-5.0, 3)
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is False
    assert fields["tokenizer.ggml.model"].contents() == "llama"


def test_a_gemma_is_what_transformers_own_reader_finds(tmp_path: Path):
    # it knows every sixth layer and a scale of 256 only
    trunk, hf, folder = gemma(tmp_path, sliding_window_pattern=6, head_dim=256, query_pre_attn_scalar=256)
    write_gguf(tmp_path / "policy.gguf", trunk, None, folder, "f32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="policy.gguf", dtype=torch.float32).eval()
    text = [7, 8, 9, 200, 20, 30, 40, 50]

    assert_close(oracle_logits(theirs, text), oracle_logits(hf, text), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"query_pre_attn_scalar": 20}, "query_pre_attn_scalar of 20"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, "in no regular order"),
        ({"rope_parameters": {"sliding_attention": LINEAR}}, "scales the positions of its layers with a window"),
        ({"rope_parameters": {"full_attention": LLAMA3}}, "scales its positions as 'llama3'"),
    ],
)
def test_a_gemma_that_a_file_cannot_tell_of_is_refused(more: dict[str, Any], why: str, tmp_path: Path):
    trunk, _, folder = gemma(tmp_path, **more)
    assert why in refusal(ConfigError, tmp_path, trunk, folder)


@pytest.mark.parametrize("family", ["mistral-window", "qwen3-window"])
def test_a_window_that_the_architecture_does_not_have_is_refused(family: str, tmp_path: Path):
    message = refusal(ConfigError, tmp_path, trunk_of(family)[0], words(tmp_path))
    assert "gives some layers a sliding window" in message


@pytest.mark.parametrize("family", ["llama-tied", "qwen2"])
def test_transformers_own_reader_finds_the_same_model(family: str, tmp_path: Path):
    trunk, hf = trunk_of(family)
    write_gguf(tmp_path / "policy.gguf", trunk, None, words(tmp_path), "f32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="policy.gguf", dtype=torch.float32).eval()

    assert_close(oracle_logits(theirs, [7, 8, 9, 200]), oracle_logits(hf, [7, 8, 9, 200]), atol=1e-4, rtol=0)


def test_linear_scaling_of_positions_is_kept(tmp_path: Path):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    trunk = llama_of(hf_model("llama", rope_parameters=rope))
    write_gguf(tmp_path / "policy.gguf", trunk, None, words(tmp_path), "f32")
    back = load_model(str(tmp_path / "policy.gguf"), dtype=torch.float32).trunk

    assert_close(logp(back), logp(trunk), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pre", PRE)
def test_words_template_and_end_tokens_come_back(pre: str, tmp_path: Path):
    folder = words(tmp_path, pre)
    write_gguf(tmp_path / "policy.gguf", trunk_of("llama")[0], None, folder)
    loaded = load_model(str(tmp_path / "policy.gguf"))
    before = byte_tokenizer(pre)
    texts = [PROBE, "ab121 <user>ab<stop>", "a  12\n\n12b"]

    assert [loaded.tokenizer(t)["input_ids"] for t in texts] == [before(t)["input_ids"] for t in texts]
    assert loaded.tokenizer.decode(loaded.tokenizer(PROBE)["input_ids"]) == PROBE
    assert loaded.tokenizer.chat_template == TEMPLATE
    assert open_chat(loaded).stops == (2, 5)
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.pad_token_id) == (1, 2)
    assert "<stop>" not in loaded.tokenizer.decode([5, 7], skip_special_tokens=True)


def test_an_embedding_with_spare_rows_is_filled_up(tmp_path: Path):
    trunk = llama_of(hf_model("llama", vocabulary=VOCABULARY + 4))
    write_gguf(tmp_path / "policy.gguf", trunk, None, words(tmp_path))
    field = gguf.GGUFReader(tmp_path / "policy.gguf").fields["tokenizer.ggml.tokens"]

    assert field.contents() == [*TOKENS, "[PAD300]", "[PAD301]", "[PAD302]", "[PAD303]"]
    assert load_model(str(tmp_path / "policy.gguf")).trunk.vocabulary == 304


def test_rows_that_8_bit_blocks_do_not_fit_are_16_bit(tmp_path: Path):
    write_gguf(tmp_path / "policy.gguf", trunk_of("llama")[0], None, words(tmp_path), "q8_0")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "policy.gguf").tensors}

    assert types["blk.0.ffn_up.weight"] == "Q8_0"  # rows of 32
    assert types["blk.0.ffn_down.weight"] == "F16"  # rows of 48
    assert types["blk.0.attn_norm.weight"] == "F32"


def refusal(error: type[Exception], tmp_path: Path, trunk: Any, folder: Path, kind: Kind = "f16") -> str:
    """The message; what stood at the target stays, and no part of a file is left beside it."""
    target = tmp_path / "out" / "policy.gguf"
    target.parent.mkdir()
    target.write_text("before")
    with pytest.raises(error) as caught:
        write_gguf(target, trunk, None, folder, kind)
    assert str(caught.value).count("\n") == 2
    assert {p.name: p.read_text() for p in target.parent.iterdir()} == {"policy.gguf": "before"}
    return str(caught.value)


def test_a_family_that_is_no_llama_is_refused(tmp_path: Path):
    message = refusal(ConfigError, tmp_path, trunk_of("gpt2")[0], words(tmp_path))
    assert "type gpt2 cannot be written as GGUF here" in message


def test_a_tokenizer_that_gguf_does_not_know_is_refused(tmp_path: Path):
    message = refusal(ConfigError, tmp_path, trunk_of("llama")[0], words(tmp_path, own=tokenizer()))
    assert "type WordLevel) cannot be written as GGUF here" in message


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path):
    small = llama_of(hf_model("llama", vocabulary=290))
    assert "has the token 299, and the model's embedding ends at 289" in refusal(
        DataError, tmp_path, small, words(tmp_path)
    )


def test_weights_that_16_bits_cannot_hold_are_refused(tmp_path: Path):
    trunk = trunk_of("llama")[0]
    trunk.blocks[0].down[0, 0] = 70_000.0  # type: ignore[attr-defined]
    message = refusal(ConfigError, tmp_path, trunk, words(tmp_path))
    assert "model.layers.0.mlp.down_proj.weight are too large for 16-bit floats: they reach 7e+04" in message


def test_positions_that_gguf_does_not_know_are_refused(tmp_path: Path):
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
    trunk = llama_of(hf_model("llama", rope_parameters=yarn))
    assert "scales its positions as 'yarn'" in refusal(ConfigError, tmp_path, trunk, words(tmp_path))
