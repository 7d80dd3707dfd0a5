"""One forward for the Llama family (Llama, SmolLM, Mistral, Qwen 2 and 3): sampling, scoring, training.

Plain tensors and functions. Hugging Face's implementation is the oracle in the tests. Knows nothing of
tokenizers, rewards or optimisers.
"""

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from backflip.models.adapters import Adapter, adapted_linear, changed_weight
from backflip.models.attention import attend
from backflip.models.linear import linear
from backflip.models.packed import Packed, pack
from backflip.models.trunk import Decoder, Hidden

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def supports(config: Any) -> bool:
    """Whether this forward computes what the Hugging Face model of `config` computes."""
    if config.model_type not in FAMILIES or config.hidden_act != "silu":
        return False
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    biased = getattr(config, "mlp_bias", False) or getattr(config, "attention_bias", False)
    rope = config.rope_parameters
    fixed = rope["rope_type"] not in ("dynamic", "longrope")  # those change with the longest text seen
    return not windowed and not biased and fixed and rope.get("partial_rotary_factor", 1.0) in (None, 1.0)


@dataclass(frozen=True, eq=False)
class Layer:
    """Weights of one block; q, k, v and gate, up are fused row-wise. Biases and q/k norms are None where absent."""

    norm1: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")
FUSED = {"qkv": ATTENTION, "o": ("self_attn.o_proj",), "gate_up": MLP, "down": ("mlp.down_proj",)}
"""Our field -> the Hugging Face layers it holds, in row order."""


def _layer_names(index: int, parts: Sequence[str]) -> list[str]:
    return [f"model.layers.{index}.{p}" for p in parts]


class Llama:
    """A Llama-family model as plain tensors (see `Trunk` for the methods' contracts)."""

    def __init__(self, config: Any, embedding: Tensor, blocks: Sequence[Layer], norm: Tensor, head: Tensor) -> None:
        self.config = config
        self.embedding, self.blocks, self.norm, self.output = embedding, tuple(blocks), norm, head
        self.layers, self.hidden_size = len(blocks), int(config.hidden_size)
        self.vocabulary, self.context = int(config.vocab_size), int(config.max_position_embeddings)
        self.dtype, self.device = embedding.dtype, embedding.device
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.head_dim = int(getattr(config, "head_dim", None) or self.hidden_size // self.heads)
        self.eps = float(config.rms_norm_eps)
        self.rotary = LlamaRotaryEmbedding(config).to(self.device)
        shapes = self.linear_shapes()
        self.fused = [
            {f: {n: shapes[n][0] for n in _layer_names(i, parts)} for f, parts in FUSED.items()}
            for i in range(self.layers)
        ]
        """Per block and field, the Hugging Face layers it holds with their rows."""
        self._last: tuple[weakref.ref[Adapter], tuple[int, ...], Llama] | None = None

    # --- scoring and training -------------------------------------------------------------------------

    def hidden(
        self, batch: Packed, adapter: Adapter | None = None, *, keep: Sequence[int] = (), checkpoint: bool = False
    ) -> Hidden:
        """Hidden states of every token; see `Trunk.hidden`."""
        x = F.embedding(batch.ids, self.embedding)
        rope, masks = self._rope(batch.positions), answer_attention(batch)
        changed = self.merged(adapter)
        kept = {}
        for i in range(self.layers):
            if i in keep:
                kept[i] = x
            if checkpoint and torch.is_grad_enabled():
                x = recompute(changed._block, x, i, batch, rope, masks, adapter, use_reentrant=False)
            else:
                x = changed._block(x, i, batch, rope, masks, adapter)
        final = self._rms(x, self.norm)
        return Hidden(final, kept | ({self.layers: final} if self.layers in keep else {}))

    def _block(
        self,
        x: Tensor,
        index: int,
        batch: Packed,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        adapter: Adapter | None,
    ) -> Tensor:
        w = self.blocks[index]
        q, k, v = self._qkv(x, w, index, rope, adapter)
        attended = self._attend(q, k, v, batch, mask)
        return self._feed(x, attended, w, index, adapter)

    def _qkv(
        self, x: Tensor, w: Layer, index: int, rope: tuple[Tensor, Tensor], adapter: Adapter | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, heads, D) queries, (N, kv, D) keys and values of the block's normed input."""
        h = adapted_linear(self._rms(x, w.norm1), w.qkv, w.qkv_bias, adapter, self.fused[index]["qkv"])
        h = h.view(x.shape[0], -1, self.head_dim)
        qk, v = h[:, : self.heads + self.kv_heads], h[:, self.heads + self.kv_heads :]
        if w.q_norm is not None and w.k_norm is not None:
            q = F.rms_norm(qk[:, : self.heads], (self.head_dim,), w.q_norm, self.eps)
            k = F.rms_norm(qk[:, self.heads :], (self.head_dim,), w.k_norm, self.eps)
            qk = torch.cat([q, k], 1)
        cos, sin = rope
        left, right = qk.chunk(2, -1)
        qk = qk * cos + torch.cat([-right, left], -1) * sin
        return qk[:, : self.heads], qk[:, self.heads :], v

    def _feed(self, x: Tensor, attended: Tensor, w: Layer, index: int, adapter: Adapter | None) -> Tensor:
        """The residual sums after attention: output projection and gated MLP."""
        x = x + adapted_linear(attended, w.o, None, adapter, self.fused[index]["o"])
        h = adapted_linear(self._rms(x, w.norm2), w.gate_up, None, adapter, self.fused[index]["gate_up"])
        gate, up = h.chunk(2, -1)
        return x + adapted_linear(F.silu(gate) * up, w.down, None, adapter, self.fused[index]["down"])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, batch: Packed, mask: Tensor | None) -> Tensor:
        """(N, heads * D): prompts attend to themselves, answers to their prompt and themselves."""

        def spread(t: Tensor, rows: Tensor) -> Tensor:
            return t[rows].transpose(1, 2)

        pk, pv = spread(k, batch.prompt_rows), spread(v, batch.prompt_rows)
        scale = self.head_dim**-0.5
        seen = attend(spread(q, batch.prompt_rows), pk, pv, prompt_attention(batch), scale)
        out = [seen.transpose(1, 2)[batch.prompt_mask]]
        if mask is not None:
            own = batch.answer_prompt
            ak = torch.cat([pk[own], spread(k, batch.answer_rows)], 2)
            av = torch.cat([pv[own], spread(v, batch.answer_rows)], 2)
            seen = attend(spread(q, batch.answer_rows), ak, av, mask, scale)
            out.append(seen.transpose(1, 2)[batch.answer_mask])
        return torch.cat(out).reshape(q.shape[0], -1)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.hidden_size,), weight, self.eps)

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, D) cosines and sines."""
        cos, sin = self.rotary(self.embedding[:1], positions[None])
        return cos[0][:, None].to(self.dtype), sin[0][:, None].to(self.dtype)

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Output layer; see `Trunk.head`."""
        return self.output, None

    # --- adapters -------------------------------------------------------------------------------------

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Every linear layer of the blocks; see `Trunk.linear_shapes`."""
        h, d, m = self.hidden_size, self.head_dim, int(self.config.intermediate_size)
        sizes = {
            "self_attn.q_proj": (self.heads * d, h), "self_attn.k_proj": (self.kv_heads * d, h),
            "self_attn.v_proj": (self.kv_heads * d, h), "self_attn.o_proj": (h, self.heads * d),
            "mlp.gate_proj": (m, h), "mlp.up_proj": (m, h), "mlp.down_proj": (h, m),
        }  # fmt: skip
        return {f"model.layers.{i}.{name}": s for i in range(self.layers) for name, s in sizes.items()}

    def merged(self, adapter: Adapter | None) -> "Llama":
        """A copy with the adapter folded in; see `Trunk.merged`. The last one is kept until its adapter changes."""
        if adapter is None:
            return self
        versions = tuple(t._version for t in adapter.parameters())
        if self._last is not None and self._last[0]() is adapter and self._last[1] == versions:
            return self._last[2]
        blocks = []
        with torch.inference_mode(False), torch.no_grad():
            for i, w in enumerate(self.blocks):
                new = {}
                for field, layers in self.fused[i].items():
                    if any(n in adapter.b for n in layers):
                        new[field] = changed_weight(getattr(w, field), adapter, layers)
                blocks.append(replace(w, **new))
        model = Llama(self.config, self.embedding, blocks, self.norm, self.output)
        self._last = (weakref.ref(adapter), versions, model)
        return model

    # --- decoding -------------------------------------------------------------------------------------

    def start(self, prompts: Sequence[Sequence[int]], repeats: int, room: int) -> tuple[Decoder, Tensor]:
        """Read the prompts, each once; see `Trunk.start`."""
        batch = pack(prompts, device=self.device)
        lengths = batch.prompt_mask.sum(1)
        count, width = len(prompts) * repeats, int(lengths.max()) + room
        shape = (count, self.kv_heads, width, self.head_dim)
        keys = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self.blocks]
        values = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self.blocks]
        x, rope = F.embedding(batch.ids, self.embedding), self._rope(batch.positions)
        top = int(lengths.max())
        for i, w in enumerate(self.blocks):
            q, k, v = self._qkv(x, w, i, rope, None)
            keys[i][:, :, :top] = k[batch.prompt_rows].transpose(1, 2).repeat_interleave(repeats, 0)
            values[i][:, :, :top] = v[batch.prompt_rows].transpose(1, 2).repeat_interleave(repeats, 0)
            x = self._feed(x, self._attend(q, k, v, batch, None), w, i, None)
        last = batch.prompt_rows.gather(1, (lengths - 1)[:, None])[:, 0]
        logits = linear(self._rms(x[last], self.norm), self.output)
        cache = LlamaDecoder(self, keys, values, lengths.repeat_interleave(repeats))
        return cache, logits.repeat_interleave(repeats, 0)

    def decode(self, tokens: Tensor, keys: list[Tensor], values: list[Tensor], positions: Tensor) -> Tensor:
        """One token a sequence: writes its keys and values at `positions` (B,), returns logits (B, V)."""
        rows, top = torch.arange(len(tokens), device=self.device), int(positions.max()) + 1
        mask = torch.zeros(len(tokens), 1, 1, top, dtype=self.dtype, device=self.device)
        mask.masked_fill_((torch.arange(top, device=self.device)[None] > positions[:, None])[:, None, None], -math.inf)
        x, rope = F.embedding(tokens, self.embedding), self._rope(positions)
        group = self.heads // self.kv_heads
        for i, w in enumerate(self.blocks):
            q, k, v = self._qkv(x, w, i, rope, None)
            keys[i][rows, :, positions] = k
            values[i][rows, :, positions] = v
            q = q.reshape(len(tokens), self.kv_heads, group, self.head_dim)
            seen = F.scaled_dot_product_attention(q, keys[i][:, :, :top], values[i][:, :, :top], attn_mask=mask)
            x = self._feed(x, seen.reshape(len(tokens), -1), w, i, None)
        return linear(self._rms(x, self.norm), self.output)

    # --- weights by their Hugging Face names ----------------------------------------------------------

    def state(self) -> Mapping[str, Tensor]:
        """Unfused weights; see `Trunk.state`."""
        out = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not self.config.tie_word_embeddings:
            out["lm_head.weight"] = self.output
        for i, w in enumerate(self.blocks):
            at = f"model.layers.{i}."
            out[at + "input_layernorm.weight"], out[at + "post_attention_layernorm.weight"] = w.norm1, w.norm2
            for field, layers in self.fused[i].items():
                rows = list(layers.values())
                out |= {f"{n}.weight": t for n, t in zip(layers, getattr(w, field).split(rows), strict=True)}
                if field == "qkv" and w.qkv_bias is not None:
                    parts = w.qkv_bias.split_with_sizes(rows)
                    out |= {f"{n}.bias": t for n, t in zip(layers, parts, strict=True)}
            if w.q_norm is not None and w.k_norm is not None:
                out[at + "self_attn.q_norm.weight"], out[at + "self_attn.k_norm.weight"] = w.q_norm, w.k_norm
        return out


class LlamaDecoder:
    """Sequences in a preallocated key-value cache (see `Decoder`)."""

    def __init__(self, model: Llama, keys: list[Tensor], values: list[Tensor], lengths: Tensor) -> None:
        self.model, self.keys, self.values, self.lengths = model, keys, values, lengths

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every sequence; see `Decoder.step`."""
        logits = self.model.decode(tokens, self.keys, self.values, self.lengths)
        self.lengths = self.lengths + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop the other sequences; see `Decoder.keep`."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.lengths = self.lengths[rows]


def prompt_attention(batch: Packed) -> Tensor:
    """(1, 1, Tp, Tp) bool: a prompt's token sees itself and what comes before."""
    width = batch.prompt_rows.shape[1]
    return torch.ones(1, 1, width, width, dtype=torch.bool, device=batch.ids.device).tril()


def answer_attention(batch: Packed) -> Tensor | None:
    """(B, 1, Ta, Tp + Ta) bool: what an answer token may see; None without answers.

    Its prompt's real tokens, and its own answer up to itself. Rows of padding see the prompt, so that no
    softmax is empty; nothing reads them.
    """
    if batch.answer_rows.numel() == 0:
        return None
    count, width = batch.answer_rows.shape
    prompt = batch.prompt_mask[batch.answer_prompt][:, None, :].expand(count, width, -1)
    causal = torch.ones(width, width, dtype=torch.bool, device=batch.ids.device).tril()
    own = causal[None] & batch.answer_mask[:, None, :]
    return torch.cat([prompt, own], 2)[:, None]


def from_state(config: Any, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str) -> Llama:
    """Build the model from weights under their Hugging Face names."""

    def take(name: str) -> Tensor:
        return state[name].to(device=device, dtype=dtype)

    def maybe(name: str) -> Tensor | None:
        return take(name) if name in state else None

    blocks = []
    for i in range(int(config.num_hidden_layers)):
        at = f"model.layers.{i}."
        fused = {f: torch.cat([take(f"{n}.weight") for n in _layer_names(i, parts)]) for f, parts in FUSED.items()}
        biases = [maybe(f"{n}.bias") for n in _layer_names(i, ATTENTION)]
        blocks.append(
            Layer(
                norm1=take(at + "input_layernorm.weight"),
                norm2=take(at + "post_attention_layernorm.weight"),
                qkv_bias=torch.cat([b for b in biases if b is not None]) if biases[0] is not None else None,
                q_norm=maybe(at + "self_attn.q_norm.weight"),
                k_norm=maybe(at + "self_attn.k_norm.weight"),
                **fused,
            )
        )
    embedding = take("model.embed_tokens.weight")
    head = embedding if config.tie_word_embeddings else take("lm_head.weight")
    return Llama(config, embedding, blocks, take("model.norm.weight"), head)
