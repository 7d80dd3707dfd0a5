"""Adapters in peft's format: read as peft reads them, and refused where they belong to another model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ANSWERS, ASKED, chat, hf_model, llama_of, oracle_logp, tokenizer, trained, trunk_of
from torch.testing import assert_close
from transformers import GenerationConfig

from backflip.core.errors import DataError
from backflip.models.adapter_folder import load_adapter
from backflip.models.chat import open_chat
from backflip.models.load import load_model
from backflip.models.save import save_adapter
from backflip.sampling.score import Reader

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WEIGHTS = "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def saved(folder: Path, base: object = "", **config: Any) -> Path:
    """An adapter of rank 3 for the tiny Llama, with settings changed."""
    save_adapter(trained(trunk_of("llama")[0]), folder, str(base))
    configure(folder, **config)
    return folder


def configure(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def refusal(folder: Path, **model: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_adapter(folder, llama_of(hf_model("llama", **model)))
    assert str(caught.value).count("\n") == 2
    return str(caught.value)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_changes_the_model_as_peft_does(rslora: bool, tmp_path: Path):
    from peft import PeftModel

    trunk, hf = trunk_of("llama")
    folder = saved(tmp_path, use_rslora=rslora, lora_alpha=3)
    out = Reader(trunk, chat()).read(ASKED, ANSWERS, load_adapter(folder, trunk))
    theirs: Any = PeftModel.from_pretrained(hf, str(folder)).eval()

    for row, (p, a) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        want = oracle_logp(theirs, chat().encode(p), a.tokens.tolist())
        assert_close(out.logp[row, : len(want)], want, atol=1e-3, rtol=0)


def test_a_layer_the_model_does_not_have_is_named(tmp_path: Path):
    message = refusal(saved(tmp_path), layers=2)
    assert "changes the layer model.layers.2.mlp.down_proj, which the model does not have" in message
    assert "2 layers" in message


def test_shapes_of_another_model_are_named(tmp_path: Path):
    message = refusal(saved(tmp_path), intermediate_size=40)  # the adapter's model had 48
    assert "changes model.layers.0.mlp.down_proj in shapes (3, 48) and (32, 3)" in message
    assert "needs (3, 40) and (32, 3)" in message


def test_a_rank_that_the_weights_do_not_have_is_named(tmp_path: Path):
    assert "in shapes (3, 48) and (32, 3); with rank 4 this model needs (4, 48)" in refusal(saved(tmp_path, r=4))


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_an_embedding_for_another_vocabulary_is_refused(name: str, tmp_path: Path):
    saved(tmp_path)
    reweigh(tmp_path, lambda s: s.update({f"base_model.model.{name}": torch.zeros(302, 32)}))
    assert "is for a vocabulary of 302, and the model has 300" in refusal(tmp_path)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path: Path):
    saved(tmp_path)
    words = tokenizer()
    words.add_tokens(["<new>", "<newer>"])
    words.save_pretrained(tmp_path)
    assert "is for a vocabulary of 302, and the model has 300" in refusal(tmp_path)


def test_the_models_own_tokenizer_beside_an_adapter_is_no_fault(tmp_path: Path):
    tokenizer().save_pretrained(saved(tmp_path))
    assert load_adapter(tmp_path, trunk_of("llama")[0]).rank == 3


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"use_dora": True}, "has use_dora = true, so it is no plain LoRA adapter"),
        ({"bias": "all"}, 'has bias = "all"'),
        ({"modules_to_save": ["lm_head"]}, 'has modules_to_save = ["lm_head"]'),
        ({"rank_pattern": {"q_proj": 8}}, "has rank_pattern"),
        ({"peft_type": "IA3"}, "is of type IA3"),
        ({"r": "8"}, "its rank r is '8'"),
        ({"r": 0}, "its rank r is 0"),
        ({"lora_alpha": None}, "its lora_alpha is None"),
    ],
)
def test_what_is_no_plain_lora_is_refused(config: dict[str, Any], why: str, tmp_path: Path):
    assert why in refusal(saved(tmp_path, **config))


def broken_settings(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def no_settings(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pickle(folder: Path) -> None:
    torch.save({}, folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-50])


def half(folder: Path) -> None:
    reweigh(folder, lambda s: s.pop(f"{Q}.lora_B.weight"))


def empty(folder: Path) -> None:
    save_file({}, folder / WEIGHTS)


def words_cut(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (broken_settings, "adapter_config.json cannot be read as peft's settings"),
        (no_settings, "adapter_config.json cannot be read as peft's settings"),
        (no_weights, "has adapter_config.json but no adapter_model.safetensors"),
        (pickle, "keeps its weights only as a pickle, adapter_model.bin"),
        (cut, "adapter_model.safetensors cannot be read as safetensors"),
        (half, "holds only one half of model.layers.0.self_attn.q_proj"),
        (empty, "changes nothing"),
        (words_cut, "tokenizer.json cannot be read as a tokenizer"),
    ],
)
def test_a_broken_adapter_is_refused(fault: Callable[[Path], None], why: str, tmp_path: Path):
    fault(saved(tmp_path))
    assert why in refusal(tmp_path)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BACKFLIP_CACHE", str(tmp_path / "cache"))
    hf_model("llama").save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    GenerationConfig(eos_token_id=[2, 5]).save_pretrained(tmp_path / "base")  # type: ignore[no-untyped-call]
    return tmp_path / "base"


def test_an_adapter_is_a_model_where_it_names_its_own(base: Path, tmp_path: Path):
    loaded = load_model(str(saved(tmp_path / "adapter", base)), dtype=torch.float32)
    trunk, _ = trunk_of("llama")
    want = Reader(trunk, chat()).read(ASKED, ANSWERS, trained(trunk)).logp

    assert_close(Reader(loaded.trunk, chat()).read(ASKED, ANSWERS).logp, want, atol=1e-4, rtol=0)
    assert open_chat(loaded).stops == (2, 5)
    assert load_model(str(tmp_path / "adapter")).source == loaded.source  # merged once
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_changed_adapter_is_merged_anew(base: Path, tmp_path: Path):
    first = load_model(str(saved(tmp_path / "adapter", base))).source
    reweigh(tmp_path / "adapter", lambda s: s.update({f"{Q}.lora_B.weight": torch.zeros(32, 3)}))

    assert load_model(str(tmp_path / "adapter")).source != first


def test_an_adapter_that_names_no_whole_model_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="names no whole model it was made for: base_model_name_or_path is ''"):
        load_model(str(saved(tmp_path / "a")))
    with pytest.raises(DataError, match="names no whole model"):
        load_model(str(saved(tmp_path / "b", tmp_path / "b")))
