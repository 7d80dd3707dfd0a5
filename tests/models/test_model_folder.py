"""What is said of a model that is incomplete, broken or of the wrong kind: one message of three lines each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tiny import hf_model, tokenizer
from transformers import AutoConfig, BertConfig, BertModel, T5Config

from backflip.core.errors import DataError
from backflip.models.load import load_model

Edit = Callable[[Path], object]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    hf_model("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def refusal(model: object) -> str:
    with pytest.raises(DataError) as caught:
        load_model(str(model))
    message = str(caught.value)
    assert message.count("\n") == 2  # the fact, the likely cause, the cure
    return message


def refused(good: Path, tmp_path: Path, edit: Edit) -> str:
    """The message about a copy of a good folder after `edit`."""
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    edit(folder)
    return refusal(folder)


def configured(**values: Any) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def edit(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return edit


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def sharded(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def index_cut(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": ')


def cut(share: float) -> Edit:
    def edit(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: int(len(content) * share)])

    return edit


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def gpt2_without_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder)
    hf_model("gpt2", bos_token_id=0, eos_token_id=0).save_pretrained(folder)


def bert(folder: Path) -> None:
    config = BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(folder)


def t5(folder: Path) -> None:
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(folder)


def small_embedding(folder: Path) -> None:
    configured(vocab_size=200)(folder)
    weights(lambda s: s.update({n: s[n][:200].clone() for n in ("lm_head.weight", "model.embed_tokens.weight")}))(
        folder
    )


UP = "model.layers.1.mlp.up_proj.weight"
CASES: dict[str, tuple[Edit, str]] = {
    "weights that are not there": (without_weights, "has a config.json but no weights: neither model.safetensors nor"),
    "a pickle": (pickled, "pytorch_model.bin"),
    "a part that is not there": (sharded, "lacks model-00002-of-00002.safetensors, one of the 2 files"),
    "an index cut short": (index_cut, "model.safetensors.index.json cannot be read"),
    "weights cut short": (cut(0.9), "model.safetensors cannot be read as safetensors"),
    "weights cut in their header": (cut(0.001), "model.safetensors cannot be read as safetensors"),
    "an empty file": (cut(0), "It has 0 bytes"),
    "a pointer of Git LFS": (pointer, "git lfs pull"),
    "no tokenizer": (without_tokenizer, "has no tokenizer that can be used"),
    "no tokenizer, unnoticed by transformers": (
        gpt2_without_tokenizer,
        "has no tokenizer that can be used: it knows no",
    ),
    "a broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"a": 1}'),
        "has no tokenizer that can be used",
    ),
    "a tokenizer larger than the embedding": (
        small_embedding,
        "has the token 299, and the model's embedding ends at 199",
    ),
    "an encoder": (bert, "is a BertModel, which has no causal language model head"),
    "an encoder-decoder": (t5, "is a T5ForConditionalGeneration, which has no causal language model head"),
    "a classifier": (configured(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
    "a quantised model": (
        configured(quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised (method gptq)",
    ),
    "a missing weight": (weights(lambda s: s.pop(UP)), f"lacks the weights of {UP}.\n"),
    "several missing weights": (
        weights(lambda s: [s.pop(n) for n in (UP, UP.replace("1", "2"), "lm_head.weight")]),
        "and 2 more.\n",
    ),
    "a weight of another shape": (
        weights(lambda s: s.update({UP: torch.zeros(4, 32)})),
        f"holds {UP} in shape (4, 32); its config.json asks for (48, 32)",
    ),
    "more layers than the settings give": (
        configured(num_hidden_layers=2, layer_types=None),
        "holds model.layers.2.input_layernorm.weight, for which its config.json has no place",
    ),
    "numbers that are none": (
        weights(lambda s: s[UP].__setitem__((0, 0), float("nan"))),
        f"holds {UP} with numbers that are not finite",
    ),
    "settings cut short": (lambda f: (f / "config.json").write_text('{"a":'), "The configuration of the model"),
    "settings of no model": (lambda f: (f / "config.json").write_text("{}"), "The configuration of the model"),
    "settings that cannot be": (configured(num_attention_heads=0), "integer modulo by zero"),
    "code of its own": (
        configured(model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}),
        "custom code which must be executed",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_cannot_serve_is_refused_by_what_it_lacks(case: str, good: Path, tmp_path: Path):
    edit, why = CASES[case]
    assert why in refused(good, tmp_path, edit)


def test_a_pickle_is_never_opened(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    assert "in safetensors format" in refused(good, tmp_path, pickled)


def test_the_first_missing_weight_is_the_first_as_people_count(good: Path, tmp_path: Path):
    def settings_for_eleven_layers(folder: Path) -> None:
        configured(num_hidden_layers=11)(folder)  # the weights are of three: 3 ... 10 are missing

    message = refused(good, tmp_path, settings_for_eleven_layers)
    assert "lacks the weights of model.layers.3.input_layernorm.weight and 71 more" in message  # 8 layers of 9 tensors


def test_a_model_that_reads_ahead_is_refused(tmp_path: Path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, is_causal=False
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert "sees the tokens that come after the one it reads" in refusal(tmp_path)


@pytest.mark.parametrize(
    "model", ["/no/such/path", "./nothere", "../a", "a/b/c", "two words", "~/nothere", "missing.gguf"]
)
def test_a_path_that_does_not_exist_is_refused(model: str):
    assert f"The model {model} does not exist" in refusal(model)


def test_weights_alone_are_no_model(good: Path):
    assert "is a file, and no GGUF file" in refusal(good / WEIGHTS)


@pytest.mark.parametrize("model", ["no/such-model", "nosuchmodel"])
def test_a_name_that_is_neither_here_nor_reachable_is_refused(model: str):
    message = refusal(model)
    assert f"The model {model!r} is no folder here, and the Hub cannot be reached" in message
    assert "HF_HUB_OFFLINE" in message


ANSWER: Any = SimpleNamespace(headers={}, request=None)  # what the Hub's errors read of a response


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        (RepositoryNotFoundError("404", response=ANSWER), "The Hub has no model 'no/such' that you can see"),
        (GatedRepoError("403", response=ANSWER), "only to those who agree to its terms"),
        (OfflineModeIsEnabled("offline"), "the Hub cannot be reached"),
        (ConnectionError("no route"), "the Hub cannot be reached"),
        (EOFError("odd"), "The configuration of the model 'no/such' could not be loaded: what transformers says"),
    ],
)
def test_why_the_hub_gave_no_model_is_said(cause: Exception, why: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("what transformers says") from cause

    monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
    assert why in refusal("no/such")


def test_a_lack_of_memory_is_not_called_a_broken_model(good: Path, monkeypatch: pytest.MonkeyPatch):
    from backflip.models import llama

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(llama, "from_state", fail)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(str(good))
