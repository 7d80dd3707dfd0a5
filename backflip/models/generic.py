"""Any Hugging Face causal language model behind the `Trunk` protocol: the fallback for other families.

Adapters enter through `functional_call`, so that here too the role is an argument and no state changes.
Slower than the own forward: a prompt is computed once per answer.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backflip.models.adapters import Adapter
from backflip.models.packed import Packed
from backflip.models.trunk import Decoder, Hidden


class Generic:
    """A Hugging Face model (see `Trunk` for the methods' contracts)."""

    refills = False

    def __init__(self, model: PreTrainedModel) -> None:
        model.train(False)  # no dropout
        self.model = model.requires_grad_(False)
        config: Any = model.config
        self.config = config
        self.layers, self.hidden_size = int(config.num_hidden_layers), int(config.hidden_size)
        self.vocabulary = int(config.vocab_size)
        self.context = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        self.dtype, self.device = model.dtype, model.device
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.body_name = model.base_model_prefix
        self.linears = {
            name: m
            for name, m in model.named_modules()
            if isinstance(m, torch.nn.Linear | Conv1D) and name.startswith(f"{self.body_name}.")
        }

    def hidden(
        self,
        batch: Packed,
        adapter: Adapter | None = None,
        *,
        keep: Sequence[int] = (),
        checkpoint: bool = False,
        after: tuple[int, Tensor] | None = None,
    ) -> Hidden:
        """Hidden states of every token; see `Trunk.hidden`.

        `checkpoint` is left to the Hugging Face model, and `after` unused: every layer is computed.
        """
        rows, mask, where = _unpack(batch)
        ids = batch.ids[rows] * mask
        body: torch.nn.Module = getattr(self.model, self.body_name)
        kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
        kwargs["output_hidden_states"] = bool(keep)
        changed = {n.removeprefix(f"{self.body_name}."): t for n, t in self._changed(adapter).items()}
        out = functional_call(body, changed, (), kwargs)
        kept = {k: out.hidden_states[k][where] for k in keep}
        return Hidden(out.last_hidden_state[where], kept)

    def _changed(self, adapter: Adapter | None) -> dict[str, Tensor]:
        """Parameters the adapter replaces, differentiable."""
        if adapter is None:
            return {}
        out = {}
        for name in adapter.b:
            layer = self.linears[name]
            delta = adapter.delta(name)
            weight: Tensor = layer.weight
            out[f"{name}.weight"] = (weight.float() + (delta.T if isinstance(layer, Conv1D) else delta)).to(self.dtype)
        return out

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Output layer; see `Trunk.head`."""
        head: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return head.weight, getattr(head, "bias", None)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Every linear layer but the output layer; see `Trunk.linear_shapes`."""
        shapes = {}
        for name, layer in self.linears.items():
            rows, columns = layer.weight.shape
            shapes[name] = (int(columns), int(rows)) if isinstance(layer, Conv1D) else (int(rows), int(columns))
        return shapes

    def merged(self, adapter: Adapter | None) -> "Generic":
        """A copy with the adapter folded in; see `Trunk.merged`."""
        if adapter is None:
            return self
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            model.load_state_dict(self._changed(adapter), strict=False)
        return Generic(model)

    def start(self, rows: int, room: int) -> Decoder:
        """See `Trunk.start`. The cache grows as it is filled: neither number is needed."""
        return GenericDecoder(self)

    def state(self) -> Mapping[str, Tensor]:
        """The model's own state; see `Trunk.state`."""
        return dict(self.model.state_dict())


class GenericDecoder:
    """Sequences in Hugging Face's growing cache (see `Decoder`)."""

    def __init__(self, trunk: Generic) -> None:
        self.trunk = trunk
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=trunk.device)
        self.cache: Any = None

    def admit(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        """Read the prompts, left-padded, once per answer; see `Decoder.admit`. Raises: ValueError the second time."""
        if self.cache is not None:
            raise ValueError("the sequences of this cache cannot be replaced while others go on")
        each = [p for p, times in zip(prompts, repeats, strict=True) for _ in range(times)]
        texts = [text for _, text in sorted(zip(slots, each, strict=True), key=lambda pair: pair[0])]
        width, device = max(map(len, texts)), self.trunk.device
        ids = torch.tensor([[0] * (width - len(t)) + list(t) for t in texts], device=device)
        self.mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts], device=device)
        return self.read(ids)[list(slots)]

    def read(self, ids: Tensor) -> Tensor:
        """Read tokens (B, n) into the cache; logits (B, V) after the last."""
        kwargs: dict[str, Any] = {"attention_mask": self.mask, "past_key_values": self.cache, "use_cache": True}
        if self.trunk.takes_positions:
            kwargs["position_ids"] = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out: Any = self.trunk.model(input_ids=ids, **kwargs)
        self.cache = out.past_key_values
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def step(self, tokens: Tensor, rows: Sequence[int]) -> Tensor:
        """Append one token to each of the sequences, a masked one to the others; see `Decoder.step`."""
        going = torch.tensor(rows, device=tokens.device)
        ids, real = torch.zeros_like(self.mask[:, :1]), torch.zeros_like(self.mask[:, :1])
        ids[going, 0], real[going] = tokens, 1
        self.mask = torch.cat([self.mask, real], 1)
        return self.read(ids)[going]

    def keep(self, rows: Tensor) -> None:
        """Drop the other sequences; see `Decoder.keep`."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)


def has_plain_head(trunk: Generic) -> bool:
    """Whether the model's logits are its final hidden states times the output layer, and nothing else."""
    with torch.no_grad():
        ids = torch.arange(min(4, trunk.vocabulary), device=trunk.device)[None]
        hidden = getattr(trunk.model, trunk.body_name)(input_ids=ids).last_hidden_state
        logits: Tensor = trunk.model(input_ids=ids).logits
        return torch.allclose(torch.nn.functional.linear(hidden, *trunk.head()), logits, rtol=1e-2, atol=1e-2)


def looks_ahead(trunk: Generic) -> bool:
    """Whether a token's hidden state changes with what comes after it, as in an encoder."""
    with torch.no_grad():
        ids = torch.arange(min(4, trunk.vocabulary), device=trunk.device)[None]
        other = ids.clone()
        other[0, -1] = 0
        body = getattr(trunk.model, trunk.body_name)
        first, second = (body(input_ids=i).last_hidden_state[0, 0].float() for i in (ids, other))
        return not torch.allclose(first, second, rtol=1e-2, atol=1e-2)


def _unpack(batch: Packed) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """One padded row per answer with its prompt, and one per prompt without answers.

    Returns rows (S, T) of token indices, mask (S, T), and for every packed token its (sequence, position).
    """
    device = batch.ids.device
    answered = set(batch.answer_prompt.tolist())
    owners = batch.answer_prompt.tolist() + [p for p in range(len(batch.prompt_rows)) if p not in answered]
    lists, sequence = [], torch.zeros_like(batch.ids)
    for s, p in reversed(list(enumerate(owners))):
        tokens = batch.prompt_rows[p][batch.prompt_mask[p]]
        sequence[tokens] = s
        if s < len(batch.answer_rows):
            own = batch.answer_rows[s][batch.answer_mask[s]]
            sequence[own] = s
            tokens = torch.cat([tokens, own])
        lists.append(tokens)
    lists.reverse()
    rows = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)
    lengths = torch.tensor([len(t) for t in lists], device=device)
    mask = torch.arange(rows.shape[1], device=device)[None] < lengths[:, None]
    return rows, mask, (sequence, batch.positions)
