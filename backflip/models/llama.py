"""One forward for Llama and its like (SmolLM, Mistral, Qwen 2 and 3, Gemma 3): sampling, scoring, training.

Plain tensors and functions; what the families do differently is data of `families`. Hugging Face's implementation is
the oracle in the tests. Knows nothing of tokenizers, rewards or optimisers.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from backflip.models.adapters import Adapter, adapted_linear, changed_weight
from backflip.models.attention import attend
from backflip.models.cache import Cache
from backflip.models.families import (
    ACTIVATIONS,
    FAMILIES,
    Look,
    Norm,
    activation,
    attention_scale,
    embedding_scale,
    looks,
    norm,
    ropes,
    rotary,
)
from backflip.models.linear import linear
from backflip.models.packed import Packed, answer_attention, pack, prompt_attention
from backflip.models.trunk import Decoder, Hidden


@dataclass(frozen=True, eq=False)
class Layer:
    """Weights of one block; q, k, v and gate, up are fused row-wise. Biases and norms are None where absent.

    `after1` and `after2` norm what attention and MLP add to the stream.
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    o: Tensor
    gate_up: Tensor
    down: Tensor
    norm1: Norm
    norm2: Norm
    after1: Norm | None = None
    after2: Norm | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None


class Sight(NamedTuple):
    """What the layers of one `Look` need to read a batch.

    (N, 1, D) cosines and sines of the positions; what prompts see (Tp, Tp), None where it is all that came before;
    what answers see (B, 1, Ta, Tp + Ta), None without answers. Both masks are bool.
    """

    rope: tuple[Tensor, Tensor]
    prompts: Tensor | None
    answers: Tensor | None


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")
FUSED = {"qkv": ATTENTION, "o": ("self_attn.o_proj",), "gate_up": MLP, "down": ("mlp.down_proj",)}
"""Our field -> the Hugging Face layers it holds, in row order."""


def _layer_names(index: int, parts: Sequence[str]) -> list[str]:
    return [f"model.layers.{index}.{p}" for p in parts]


class Llama:
    """A Llama-family model as plain tensors (see `Trunk` for the methods' contracts)."""

    refills = True

    def __init__(self, config: Any, embedding: Tensor, blocks: Sequence[Layer], norm: Norm, head: Tensor) -> None:
        self.config = config
        self.embedding, self.blocks, self.norm, self.output = embedding, tuple(blocks), norm, head
        self.layers, self.hidden_size = len(blocks), int(config.hidden_size)
        self.vocabulary, self.context = int(config.vocab_size), int(config.max_position_embeddings)
        self.dtype, self.device = embedding.dtype, embedding.device
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.head_dim = int(getattr(config, "head_dim", None) or self.hidden_size // self.heads)
        self.looks = looks(config)
        self.rotary = {k: rotary(r, self.head_dim, self.context).to(self.device) for k, r in ropes(config).items()}
        self.activation = ACTIVATIONS[activation(config)]
        self.embedding_scale, self.scale = embedding_scale(config, self.dtype), attention_scale(config)
        shapes = self.linear_shapes()
        self.fused = [
            {f: {n: shapes[n][0] for n in _layer_names(i, parts)} for f, parts in FUSED.items()}
            for i in range(self.layers)
        ]
        """Per block and field, the Hugging Face layers it holds with their rows."""
        self._last: tuple[weakref.ref[Adapter], tuple[int, ...], Llama] | None = None

    # --- scoring and training -------------------------------------------------------------------------

    def hidden(
        self,
        batch: Packed,
        adapter: Adapter | None = None,
        *,
        keep: Sequence[int] = (),
        checkpoint: bool = False,
        after: tuple[int, Tensor] | None = None,
    ) -> Hidden:
        """Hidden states of every token; see `Trunk.hidden`."""
        first, x = (0, self._embed(batch.ids)) if after is None else after
        sights, changed, kept = self._sights(batch), self.merged(adapter), {}
        for i in range(first, self.layers):
            if i in keep:
                kept[i] = x
            if checkpoint and torch.is_grad_enabled():
                x = recompute(changed._block, x, i, batch, sights[self.looks[i]], adapter, use_reentrant=False)
            else:
                x = changed._block(x, i, batch, sights[self.looks[i]], adapter)
        final = self.norm(x)
        return Hidden(final, kept | ({self.layers: final} if self.layers in keep else {}))

    def _embed(self, ids: Tensor) -> Tensor:
        """(N, H) of tokens (N,)."""
        x = F.embedding(ids, self.embedding)
        return x if self.embedding_scale is None else x * self.embedding_scale

    def _sights(self, batch: Packed) -> dict[Look, Sight]:
        """What each kind of layer needs to read the batch; a window that holds every text is none."""
        turns = {name: self._rope(name, batch.positions) for name in self.rotary}
        windows = {look: look.window for look in self.looks}
        if any(windows.values()):
            longest = int(batch.positions.max()) + 1
            windows = {look: w if w is not None and w < longest else None for look, w in windows.items()}
        masks = {w: (prompt_attention(batch, w), answer_attention(batch, w)) for w in set(windows.values())}
        return {look: Sight(turns[look.rope], *masks[w]) for look, w in windows.items()}

    def _block(self, x: Tensor, index: int, batch: Packed, sight: Sight, adapter: Adapter | None) -> Tensor:
        w = self.blocks[index]
        q, k, v = self._qkv(x, w, index, sight.rope, adapter)
        attended = self._attend(q, k, v, batch, sight)
        return self._feed(x, attended, w, index, adapter)

    def _qkv(
        self, x: Tensor, w: Layer, index: int, rope: tuple[Tensor, Tensor], adapter: Adapter | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, heads, D) queries, (N, kv, D) keys and values of the block's normed input."""
        h = adapted_linear(w.norm1(x), w.qkv, w.qkv_bias, adapter, self.fused[index]["qkv"])
        h = h.view(x.shape[0], -1, self.head_dim)
        qk, v = h[:, : self.heads + self.kv_heads], h[:, self.heads + self.kv_heads :]
        if w.q_norm is not None and w.k_norm is not None:
            qk = torch.cat([w.q_norm(qk[:, : self.heads]), w.k_norm(qk[:, self.heads :])], 1)
        cos, sin = rope
        left, right = qk.chunk(2, -1)
        qk = qk * cos + torch.cat([-right, left], -1) * sin
        return qk[:, : self.heads], qk[:, self.heads :], v

    def _feed(self, x: Tensor, attended: Tensor, w: Layer, index: int, adapter: Adapter | None) -> Tensor:
        """The residual sums after attention: output projection and gated MLP."""
        out = adapted_linear(attended, w.o, None, adapter, self.fused[index]["o"])
        x = x + (out if w.after1 is None else w.after1(out))
        h = adapted_linear(w.norm2(x), w.gate_up, None, adapter, self.fused[index]["gate_up"])
        gate, up = h.chunk(2, -1)
        out = adapted_linear(self.activation(gate) * up, w.down, None, adapter, self.fused[index]["down"])
        return x + (out if w.after2 is None else w.after2(out))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, batch: Packed, sight: Sight) -> Tensor:
        """(N, heads * D): prompts attend to themselves, answers to their prompt and themselves."""

        def spread(t: Tensor, rows: Tensor) -> Tensor:
            return t[rows].transpose(1, 2)

        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        pk, pv = spread(k, batch.prompt_rows), spread(v, batch.prompt_rows)
        seen = attend(spread(q, batch.prompt_rows), pk, pv, sight.prompts, scale)
        out = [seen.transpose(1, 2)[batch.prompt_mask]]
        if sight.answers is not None:
            own = batch.answer_prompt
            ak = torch.cat([pk[own], spread(k, batch.answer_rows)], 2)
            av = torch.cat([pv[own], spread(v, batch.answer_rows)], 2)
            seen = attend(spread(q, batch.answer_rows), ak, av, sight.answers, scale)
            out.append(seen.transpose(1, 2)[batch.answer_mask])
        return torch.cat(out).reshape(q.shape[0], -1)

    def _rope(self, name: str, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, D) cosines and sines by the rotary parameters of this name."""
        cos, sin = self.rotary[name](self.embedding[:1], positions[None])
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
                new: dict[str, Any] = {}
                for field, layers in self.fused[i].items():
                    if any(n in adapter.b for n in layers):
                        new[field] = changed_weight(getattr(w, field), adapter, layers)
                blocks.append(replace(w, **new))
        model = Llama(self.config, self.embedding, blocks, self.norm, self.output)
        self._last = (weakref.ref(adapter), versions, model)
        return model

    # --- decoding -------------------------------------------------------------------------------------

    def start(self, rows: int, room: int) -> Decoder:
        """See `Trunk.start`."""
        return LlamaDecoder(self, rows, room)

    def read(self, prompts: Sequence[Sequence[int]], store: Callable[[int, Tensor, Tensor], None]) -> Tensor:
        """Read P prompts; returns the logits (P, V) of what comes next.

        `store` is given each layer's index, keys and values, (P, kv, longest prompt, D).
        """
        batch = pack(prompts, device=self.device)
        x, sights = self._embed(batch.ids), self._sights(batch)
        for i, w in enumerate(self.blocks):
            sight = sights[self.looks[i]]
            q, k, v = self._qkv(x, w, i, sight.rope, None)
            store(i, k[batch.prompt_rows].transpose(1, 2), v[batch.prompt_rows].transpose(1, 2))
            x = self._feed(x, self._attend(q, k, v, batch, sight), w, i, None)
        last = batch.prompt_rows.gather(1, batch.prompt_mask.sum(1, keepdim=True) - 1)[:, 0]
        return linear(self.norm(x[last]), self.output)

    def decode(self, tokens: Tensor, rows: Tensor, cache: Cache, bands: Sequence[tuple[int, int, int]]) -> Tensor:
        """One token a sequence: writes its keys and values into the rows of the cache, returns logits (R, V)."""
        positions, group = cache.lengths[rows], self.heads // self.kv_heads
        turns = {name: self._rope(name, positions) for name in self.rotary}
        masks = {window: cache.past(window) for window in {look.window for look in self.looks}}
        x = self._embed(tokens)
        for i, (w, look) in enumerate(zip(self.blocks, self.looks, strict=True)):
            q, k, v = self._qkv(x, w, i, turns[look.rope], None)
            keys, values, mask = cache.keys[i], cache.values[i], masks[look.window]
            keys[rows, :, positions] = k
            values[rows, :, positions] = v
            all_q = q.new_zeros(len(keys), self.kv_heads, group, self.head_dim)
            all_q[rows] = q.reshape(len(tokens), self.kv_heads, group, self.head_dim)
            for a, b, top in bands:
                all_q[a:b] = F.scaled_dot_product_attention(
                    all_q[a:b], keys[a:b, :, :top], values[a:b, :, :top], attn_mask=mask[a:b, :, :, :top],
                    scale=self.scale,
                )  # fmt: skip
            x = self._feed(x, all_q[rows].view(len(tokens), -1), w, i, None)
        return linear(self.norm(x), self.output)

    # --- weights by their Hugging Face names ----------------------------------------------------------

    def state(self) -> Mapping[str, Tensor]:
        """Unfused weights; see `Trunk.state`."""
        out = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm.weight}
        if not self.config.tie_word_embeddings:
            out["lm_head.weight"] = self.output
        for i, w in enumerate(self.blocks):
            at = f"model.layers.{i}."
            names = FAMILIES[self.config.model_type].norms
            out |= {f"{at}{name}.weight": getattr(w, field).weight for field, name in names.items()}
            for field, layers in self.fused[i].items():
                rows = list(layers.values())
                out |= {f"{n}.weight": t for n, t in zip(layers, getattr(w, field).split(rows), strict=True)}
                if field == "qkv" and w.qkv_bias is not None:
                    parts = w.qkv_bias.split_with_sizes(rows)
                    out |= {f"{n}.bias": t for n, t in zip(layers, parts, strict=True)}
        return out


class LlamaDecoder:
    """Sequences in a key-value cache (see `Decoder`)."""

    def __init__(self, model: Llama, rows: int, room: int) -> None:
        self.model, self.room = model, room
        self.cache = Cache(model.layers, rows, (model.kv_heads, model.head_dim), model.embedding)
        self.last: tuple[list[int], int, Tensor] | None = None
        """The prompt read last, a row that holds it, and the logits (1, V) after it."""

    def admit(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        """Read the prompts, each once, into rows; see `Decoder.admit`."""
        self.cache.widen(max(map(len, prompts)) + self.room)
        first, known = [], 0
        if self.last is not None and self.last[0] == list(prompts[0]):
            known = 1
            self.cache.again(self.last[1], len(prompts[0]), slots[: repeats[0]])
            first.append(self.last[2].expand(repeats[0], -1))
        if prompts[known:]:
            first.append(self._read(slots[sum(repeats[:known]) :], prompts[known:], repeats[known:]))
        self.cache.seat(slots, [len(p) for p, times in zip(prompts, repeats, strict=True) for _ in range(times)])
        return torch.cat(first)

    def _read(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        rows = torch.tensor(slots, device=self.model.device)
        of = torch.repeat_interleave(torch.tensor(repeats)).to(rows.device)

        def store(layer: int, keys: Tensor, values: Tensor) -> None:
            self.cache.keys[layer][rows, :, : keys.shape[2]] = keys[of]
            self.cache.values[layer][rows, :, : keys.shape[2]] = values[of]

        logits = self.model.read(prompts, store)
        self.last = (list(prompts[-1]), slots[-1], logits[-1:].clone())
        return logits[of]

    def step(self, tokens: Tensor, rows: Sequence[int]) -> Tensor:
        """Append one token to each of the sequences; see `Decoder.step`."""
        going = torch.tensor(rows, device=tokens.device)
        self.cache.open_next(going)
        logits = self.model.decode(tokens, going, self.cache, self.cache.bands(rows))
        self.cache.lengthen(rows)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop the other sequences; see `Decoder.keep`."""
        self.cache.keep(rows)
        self.last = None


def from_state(config: Any, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str) -> Llama:
    """Build the model from weights under their Hugging Face names."""

    def take(name: str) -> Tensor:
        return state[name].to(device=device, dtype=dtype)

    def maybe(name: str) -> Tensor | None:
        return take(name) if name in state else None

    blocks = []
    for i in range(int(config.num_hidden_layers)):
        at = f"model.layers.{i}."
        parts: dict[str, Any] = {
            field: torch.cat([take(f"{n}.weight") for n in _layer_names(i, layers)]) for field, layers in FUSED.items()
        }
        biases = [b for n in _layer_names(i, ATTENTION) if (b := maybe(f"{n}.bias")) is not None]
        names = FAMILIES[config.model_type].norms
        parts |= {field: norm(take(f"{at}{name}.weight"), config) for field, name in names.items()}
        blocks.append(Layer(qkv_bias=torch.cat(biases) if biases else None, **parts))
    embedding = take("model.embed_tokens.weight")
    head = embedding if config.tie_word_embeddings else take("lm_head.weight")
    return Llama(config, embedding, blocks, norm(take("model.norm.weight"), config), head)
