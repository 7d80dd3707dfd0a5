"""Tiny random models, a word-level tokenizer and a chat for tests: seeded, float32, no network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from backflip.core.records import Answer, Prompt
from backflip.models.adapters import Adapter, new_adapter, upper_layers
from backflip.models.chat import Chat
from backflip.models.generic import Generic
from backflip.models.llama import Llama, from_state
from backflip.models.trunk import Trunk

VOCABULARY = 300  # more than one block of the sampler, and no multiple of it
UNK, BOS, EOS, USER, ASSISTANT, STOP = range(6)
SPECIAL = ["<unk>", "<bos>", "<eos>", "<user>", "<assistant>", "<stop>"]
TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<user> ' if m['role'] == 'user' else '<assistant> ' }}{{ m['content'] }} <eos> "
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLAIN = ("llama", "llama-tied", "llama3-rope", "mistral", "qwen2", "qwen3")
OWN = (*PLAIN, "mistral-window", "qwen3-window", "gemma3")


def hf_model(family: str, *, layers: int = 3, vocabulary: int = VOCABULARY, **more: Any) -> PreTrainedModel:
    """A random model whose weights are large enough for its probabilities to differ."""
    torch.manual_seed(0)
    if family == "gpt2":
        small = {"n_embd": 32, "n_layer": layers, "n_head": 4, "vocab_size": vocabulary, "n_positions": 64}
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**small | more))
    else:
        shape: dict[str, Any] = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": vocabulary, "max_position_embeddings": 64,
        }  # fmt: skip
        model = {
            "llama": lambda: LlamaForCausalLM(LlamaConfig(**shape | more)),
            "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**shape | {"tie_word_embeddings": True} | more)),
            "llama3-rope": lambda: LlamaForCausalLM(LlamaConfig(**shape | {"rope_parameters": LLAMA3} | more)),
            "mistral": lambda: MistralForCausalLM(MistralConfig(**shape | {"sliding_window": None} | more)),
            "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shape | more)),
            "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape | {"head_dim": 12} | more)),
            "mistral-window": lambda: MistralForCausalLM(MistralConfig(**shape | {"sliding_window": 5} | more)),
            "qwen3-window": lambda: Qwen3ForCausalLM(Qwen3Config(**shape | QWEN_WINDOW | more)),
            "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**shape | GEMMA | more)),
        }[family]()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.eval()


QWEN_WINDOW = {"head_dim": 12, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
GEMMA = {"head_dim": 12, "sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 20}
"""Windows shorter than most of the texts below, in some of the layers; scores are not scaled by the heads' width."""
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def llama_of(hf: PreTrainedModel) -> Llama:
    """Our forward over a Hugging Face model's weights."""
    return from_state(hf.config, hf.state_dict(), torch.float32, "cpu")


def trunk_of(family: str, **more: Any) -> tuple[Trunk, PreTrainedModel]:
    """The trunk for a family, and the oracle with the same weights."""
    hf = hf_model(family, **more)
    return (llama_of(hf) if family in OWN else Generic(hf_model(family, **more))), hf


def tokenizer(*, template: bool = True, bos: bool = True, pad: str | None = "<eos>") -> PreTrainedTokenizerFast:
    """Words w6 ... w299 and six special tokens; the pad token is the end-of-turn token."""
    words = {w: i for i, w in enumerate(SPECIAL)} | {f"w{i}": i for i in range(len(SPECIAL), VOCABULARY)}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    names = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": pad} | ({"bos_token": "<bos>"} if bos else {})
    out = PreTrainedTokenizerFast(
        tokenizer_object=core,
        additional_special_tokens=["<user>", "<assistant>", "<stop>"],
        clean_up_tokenization_spaces=False,
        **names,
    )
    if template:
        out.chat_template = TEMPLATE
    return out


def chat(*, stops: Sequence[int] = (EOS, STOP), context: int = 64, **more: Any) -> Chat:
    """The chat side of a tiny model."""
    tok = tokenizer(**more)
    return Chat(tok, tuple(stops), context, templated=bool(tok.chat_template))


def prompt(id: str, text: str) -> Prompt:
    """A training prompt."""
    return Prompt(id=id, split="train", text=text)


def answer(prompt_id: str, tokens: Sequence[int], index: int = 0) -> Answer:
    """An answer nobody sampled: its log-probabilities are 0."""
    return Answer(
        prompt_id=prompt_id, index=index, policy="p", tokens=np.array(tokens, dtype=np.int64),
        logp=np.zeros(len(tokens), dtype=np.float32), ended=tokens[-1] in (EOS, STOP), text="",
    )  # fmt: skip


RAGGED = [prompt("short", "w9"), prompt("long", "w9 w10 w11 w12 w13 w14"), prompt("middle", "w20 w8 w21")]
ASKED = [RAGGED[0], RAGGED[1], RAGGED[1], RAGGED[2], RAGGED[0], RAGGED[1]]
ANSWERS = [
    answer("short", [30, 31, EOS]),
    answer("long", [EOS]),  # nothing but the end of the turn, which is the pad token
    answer("long", [STOP, 40, EOS, EOS, 41, UNK, 42], 1),  # stop tokens first and in the middle
    answer("middle", [50, 51, 52, 53, 54]),  # cut short
    answer("short", [60], 1),
    answer("long", [299, 298, STOP], 2),
]
"""Ragged prompts out of order, several answers to some, stop tokens in odd places, pad = end of turn."""


def trained(trunk: Trunk, seed: int = 1, size: float = 0.2, rank: int = 3, share: float = 1.0) -> Adapter:
    """An adapter that changes something in the top `share` of the layers: B is random too."""
    adapter = new_adapter(upper_layers(trunk.linear_shapes(), share), rank=rank, alpha=6.0, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for b in adapter.b.values():
            b.copy_(torch.randn(b.shape, generator=draw) * size)
    return adapter


def oracle_logits(hf: PreTrainedModel, text: Sequence[int]) -> torch.Tensor:
    """(T, V) logits of one sequence, alone and unpadded."""
    with torch.no_grad():
        out: torch.Tensor = hf(input_ids=torch.tensor([list(text)])).logits[0]
    return out


def oracle_logp(
    hf: PreTrainedModel, before: Sequence[int], tokens: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """(T,) log-probabilities of `tokens` after `before` by a plain Hugging Face forward."""
    logits = oracle_logits(hf, [*before, *tokens])[len(before) - 1 : -1]
    return torch.log_softmax(logits / temperature, 1).gather(1, torch.tensor(list(tokens))[:, None])[:, 0]
