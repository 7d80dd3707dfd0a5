"""What is saved is what others load: peft's format, plain Hugging Face folders, a card in each."""

import json
from pathlib import Path

import pytest
import torch
from tiny import ANSWERS, ASKED, EOS, STOP, chat, hf_model, oracle_logp, tokenizer, trained, trunk_of
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from backflip.models.adapters import adapter_from_state, upper_layers
from backflip.models.adapters import new_adapter as fresh
from backflip.models.chat import open_chat
from backflip.models.load import load_model
from backflip.models.save import model_card, save_adapter, save_merged
from backflip.sampling.score import Reader

# peft 0.21 still asks transformers 5 for a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
FAMILIES = ["llama", "llama-tied", "qwen2", "qwen3", "gemma3", "gpt2"]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # GPT-2: peft finds it out itself
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_scores_like_our_forward_with_the_same_adapter(family: str, tmp_path: Path):
    from peft import PeftModel

    trunk, hf = trunk_of(family)
    adapter = trained(trunk)
    save_adapter(adapter, tmp_path, "no/such-model")
    theirs = PeftModel.from_pretrained(hf, str(tmp_path)).eval()
    out = Reader(trunk, chat()).read(ASKED, ANSWERS, adapter)

    for row, (p, a) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        want = oracle_logp(theirs, chat().encode(p), a.tokens.tolist())  # type: ignore[arg-type]
        assert_close(out.logp[row, : len(want)], want, atol=1e-3, rtol=0)


def test_peft_changes_the_adapted_layers_and_no_others(tmp_path: Path):
    from peft import PeftModel

    trunk, hf = trunk_of("llama")
    shapes = upper_layers(trunk.linear_shapes(), 0.34)  # the last of three blocks
    save_adapter(fresh(shapes, rank=2, alpha=3.0, seed=0), tmp_path, "")
    theirs = PeftModel.from_pretrained(hf, str(tmp_path))
    adapted = {
        n.removeprefix("base_model.model.").partition(".lora_A")[0]
        for n, _ in theirs.named_parameters()
        if "lora_A" in n
    }

    assert adapted == set(shapes)
    assert {n.split(".")[2] for n in adapted} == {"2"}


def test_a_saved_adapter_comes_back_bit_by_bit(tmp_path: Path):
    from safetensors.torch import load_file

    trunk, _ = trunk_of("llama")
    adapter = trained(trunk)
    save_adapter(adapter, tmp_path, "no/such-model")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    state = load_file(tmp_path / "adapter_model.safetensors")
    back = adapter_from_state(state, rank=config["r"], alpha=config["lora_alpha"])

    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6, "no/such-model")
    for p, q in zip(adapter.parameters(), back.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_is_a_plain_hugging_face_folder(family: str, tmp_path: Path):
    trunk, _ = trunk_of(family)
    adapter = trained(trunk)
    save_merged(trunk, adapter, tokenizer(), tmp_path, stops=(EOS, STOP))
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    out = Reader(trunk, chat()).read(ASKED, ANSWERS, adapter)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for row, (p, a) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        want = oracle_logp(theirs.eval(), chat().encode(p), a.tokens.tolist())
        assert_close(out.logp[row, : len(want)], want, atol=1e-3, rtol=0)
    assert theirs.generation_config.eos_token_id == [EOS, STOP]
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == chat().tokenizer.chat_template


def test_a_merged_model_loads_here_again_with_its_stop_tokens(tmp_path: Path):
    trunk, _ = trunk_of("llama")
    save_merged(trunk, None, tokenizer(), tmp_path, stops=(EOS, STOP))
    loaded = load_model(str(tmp_path), dtype=torch.float32)

    assert open_chat(loaded).stops == (EOS, STOP)
    for name, weight in trunk.state().items():
        assert torch.equal(loaded.trunk.state()[name], weight)


def test_a_merged_model_keeps_the_type_of_the_trunk(tmp_path: Path):
    hf_model("llama").save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    trunk = load_model(str(tmp_path / "base")).trunk
    save_merged(trunk, trained(trunk), tokenizer(), tmp_path / "out")

    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_every_saved_folder_has_a_card(tmp_path: Path):
    trunk, _ = trunk_of("llama")
    save_adapter(trained(trunk), tmp_path / "a", "org/model", plan="rounds = 3", votes=576)
    save_merged(trunk, None, tokenizer(), tmp_path / "m", base="org/model", plan="rounds = 3", votes=576)

    for folder in ("a", "m"):
        card = (tmp_path / folder / "README.md").read_text()
        for said in ("base_model: org/model", "576 votes", "rounds = 3", "## What it is for", "licence", "must check"):
            assert said in card


def test_a_card_names_a_local_base_without_the_path_to_it(tmp_path: Path):
    card = model_card("reward", str(tmp_path / "SmolLM2"), votes=1)

    assert "Base model: SmolLM2" in card
    assert str(tmp_path) not in card
    assert "base_model:" not in card
    assert "1 vote\n" in card


def test_a_card_says_what_was_not_recorded():
    card = model_card("merged", "")

    assert "an unknown number of votes" in card
    assert "The plan was not recorded." in card
    assert "Base model: not recorded" in card
