"""What the model families of the own forward do differently, as data. Hugging Face's code is the oracle in the tests.

Knows nothing of batches. A model that would be computed wrongly is named by `why_not` and left to Hugging Face.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
HEAD_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
GEMMA_NORMS = HEAD_NORMS | {
    "norm1": "input_layernorm", "after1": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm", "after2": "post_feedforward_layernorm",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How one Hugging Face model type differs from Llama."""

    norms: Mapping[str, str]
    """A block's norms: our field -> Hugging Face's name."""
    windows: Literal["never", "always", "by layer"]
    """Whether `sliding_window` counts: in no layer, in all, or in those whose layer type says so."""
    one_plus: bool = False
    """Norms multiply by 1 + weight, in float32."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the root of the hidden size, rounded as the weights are."""


FAMILIES = {
    "llama": Family(LLAMA_NORMS, "never"),
    "mistral": Family(LLAMA_NORMS, "always"),
    "qwen2": Family(LLAMA_NORMS, "by layer"),
    "qwen3": Family(LLAMA_NORMS | HEAD_NORMS, "by layer"),
    "gemma3_text": Family(GEMMA_NORMS, "by layer", one_plus=True, scaled_embedding=True),
}
"""By Hugging Face model type."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
LAYER_TYPES = {"full_attention", "sliding_attention"}
ALL_LAYERS = "all"
"""The name of the rotary parameters where every layer has the same."""


class Look(NamedTuple):
    """How a layer's attention looks back: with which rotary parameters, and over how many tokens (None: all)."""

    rope: str
    window: int | None


def why_not(config: Any) -> str | None:
    """What keeps the own forward from computing what Hugging Face's model of `config` does; None where nothing does.

    Words that go on from "The fast forward".
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        return "does not know this family"
    if activation(config) not in ACTIVATIONS:
        return f"has no activation {activation(config)}"
    if getattr(config, "mlp_bias", False) or getattr(config, "attention_bias", False):
        return "has no place for its biases"
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        return "does not cap logits as it does"
    if getattr(config, "use_bidirectional_attention", False):
        return "reads from left to right only"
    if family.windows == "by layer" and not set(config.layer_types) <= LAYER_TYPES:
        return f"knows only layers of {' and '.join(sorted(LAYER_TYPES))}"
    for rope in ropes(config).values():
        if rope["rope_type"] in ("dynamic", "longrope"):  # those change with the longest text seen
            return f"has no {rope['rope_type']} scaling of positions"
        if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            return "turns whole heads only"
    return None


def activation(config: Any) -> str:
    """The name of the activation of the gated MLP."""
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Hugging Face's rotary parameters by the name that `Look.rope` has."""
    rope = config.rope_parameters
    return {ALL_LAYERS: rope} if "rope_type" in rope else {k: v for k, v in rope.items() if k in config.layer_types}


def looks(config: Any) -> list[Look]:
    """How each layer looks back."""
    family, window = FAMILIES[config.model_type], getattr(config, "sliding_window", None) or None
    if family.windows == "by layer":
        kinds = list(config.layer_types)
    else:
        kinds = ["sliding_attention" if family.windows == "always" else "full_attention"] * config.num_hidden_layers
    names = ropes(config)
    return [Look(k if k in names else ALL_LAYERS, window if k == "sliding_attention" else None) for k in kinds]


def rotary(rope: Mapping[str, Any], head_dim: int, context: int) -> LlamaRotaryEmbedding:
    """What turns heads of `head_dim` numbers by Hugging Face's rotary parameters; `context` in tokens."""
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=context,
        rope_parameters=dict(rope),
    )
    return LlamaRotaryEmbedding(config)


def embedding_scale(config: Any, dtype: torch.dtype) -> float | None:
    """What embeddings are multiplied by, as `dtype` rounds it; None for nothing."""
    if not FAMILIES[config.model_type].scaled_embedding:
        return None
    return float(torch.tensor(config.hidden_size**0.5).to(dtype))


def attention_scale(config: Any) -> float | None:
    """What products of queries and keys are multiplied by; None for 1 / sqrt(head_dim)."""
    scalar = getattr(config, "query_pre_attn_scalar", None)
    return None if scalar is None else float(scalar) ** -0.5


@dataclass(frozen=True, eq=False)
class Norm:
    """A root-mean-square norm. `weight` is Hugging Face's, `gain` what the normed numbers are multiplied by."""

    weight: Tensor
    gain: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., len(weight)) -> the same shape and type; computed in the gain's type."""
        return F.rms_norm(x.to(self.gain.dtype), self.gain.shape, self.gain, self.eps).to(x.dtype)


def norm(weight: Tensor, config: Any) -> Norm:
    """The norm that a model of `config` makes of this weight."""
    plus = FAMILIES[config.model_type].one_plus
    return Norm(weight, 1.0 + weight.float() if plus else weight, float(config.rms_norm_eps))
