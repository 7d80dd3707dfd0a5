"""A saved reward model as Hugging Face loads it. This file is copied into its folder: it needs nothing of Backflip.

score = (features - mean) / scale @ weight + bias, where the features are the final hidden state at the
answer's last token, the mean over the answer's tokens of a middle layer's hidden states, and five plain
figures of the tokens themselves: how long, how much of it comes from the request, how little is said twice.
"""

import inspect
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

TOKEN_FEATURES = 5
"""Figures that `token_features` gives."""


def token_features(request: Sequence[int], answer: Sequence[int], frame: Collection[int]) -> list[float]:
    """Five figures of an answer's tokens, which a hidden state tells only roughly.

    log length, its square, the share and the log count of the answer's distinct tokens that the request holds
    (those of `frame`, the chat template's own, left out), and the share of its tokens that are distinct.
    Raises: ValueError when the answer has no tokens.
    """
    if not answer:
        raise ValueError("an answer has no tokens: nothing to score")
    own = set(answer)
    shared = len(own & set(request) - set(frame))
    length = math.log(len(answer))
    return [length, length**2, shared / len(own), math.log1p(shared), len(own) / len(answer)]


class BackflipRewardConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """What a saved reward is made of."""

    model_type = "backflip_reward"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        layer: int = 1,
        header: Sequence[int] = (),
        stops: Sequence[int] = (),
        frame: Sequence[int] = (),
        members: int = 0,
        **kwargs: Any,
    ) -> None:
        """`backbone`: the language model's configuration. `layer`: whose hidden states are averaged.

        `header`: the tokens that open an answer in the chat template, empty where there is none.
        `stops`: the tokens that end an answer. `frame`: the tokens the template puts around any request.
        `members`: rewards fitted besides on resampled prompts, which tell how unsure the reward is.
        """
        self.backbone, self.layer = backbone, layer
        self.header, self.stops, self.frame, self.members = list(header), list(stops), list(frame), members
        super().__init__(**{"num_labels": 1} | kwargs)


class Head(nn.Module):
    """Standardise, then one linear layer; in float32 whatever the backbone's type."""

    def __init__(self, features: int, members: int = 0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(features), requires_grad=False)
        self.linear = nn.Linear(features, 1)
        if members:
            self.members = nn.Linear(features, members)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 1) scores of (B, F) features."""
        out: Tensor = self.linear((features - self.mean) / self.scale)
        return out

    def spread(self, features: Tensor) -> Tensor:
        """(B,) standard deviation over the members of the scores of (B, F) features."""
        out: Tensor = self.members((features - self.mean) / self.scale).std(1)
        return out


class BackflipRewardModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Scores answers; `logits` (B, 1) is the reward."""

    config_class = BackflipRewardConfig
    base_model_prefix = "backbone"
    _keep_in_fp32_modules_strict = {"head"}  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: BackflipRewardConfig) -> None:
        super().__init__(config)
        inner: Any = AutoConfig.for_model(**(config.backbone or {"model_type": "llama"}))
        self.backbone = AutoModel.from_config(inner)  # type: ignore[no-untyped-call]
        self.head = Head(2 * int(inner.hidden_size) + TOKEN_FEATURES, config.members)
        self.takes_positions = "position_ids" in inspect.signature(self.backbone.forward).parameters
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        answer_mask: Tensor | None = None,
        **unused: Any,
    ) -> SequenceClassifierOutput:
        """Score sequences of request and answer.

        Shapes: all (B, T); attention_mask is 1 on real tokens (None: all are), answer_mask 1 on the answer's,
        its stop token included. Without answer_mask an answer is what follows the last header of the chat
        template, up to its first stop token. Padding may stand on either side; its token does not matter.
        Raises: ValueError when an answer cannot be found or has no tokens.
        """
        return SequenceClassifierOutput(logits=self.head(self.features(input_ids, attention_mask, answer_mask)))

    def spread(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, answer_mask: Tensor | None = None
    ) -> Tensor:
        """(B,) how unsure the reward is of each answer: the standard deviation over its ensemble; 0 without one.

        Arguments and errors as in `forward`.
        """
        if not self.config.members:
            return torch.zeros(len(input_ids), device=input_ids.device)
        return self.head.spread(self.features(input_ids, attention_mask, answer_mask))

    def features(self, input_ids: Tensor, attention_mask: Tensor | None, answer_mask: Tensor | None) -> Tensor:
        """(B, F) what the head reads; see `forward`."""
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        answer = self.find_answers(input_ids, real) if answer_mask is None else answer_mask.bool() & real
        if not bool(answer.any(1).all()):
            raise ValueError("an answer has no tokens: nothing to score")
        kwargs: dict[str, Any] = {"attention_mask": real.long(), "use_cache": False, "output_hidden_states": True}
        if self.takes_positions:
            kwargs["position_ids"] = (real.long().cumsum(1) - 1).clamp_min(0)
        out = self.backbone(input_ids=input_ids, **kwargs)
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (columns * answer).argmax(1)
        final = out.last_hidden_state[torch.arange(len(last), device=last.device), last].float()
        middle = out.hidden_states[self.config.layer].float()
        pooled = torch.where(answer[..., None], middle, 0.0).sum(1) / answer.sum(1, keepdim=True)
        figures = torch.tensor(self.figures(input_ids, real, answer), device=final.device)
        return torch.cat([final, pooled, figures], 1)

    def figures(self, input_ids: Tensor, real: Tensor, answer: Tensor) -> list[list[float]]:
        """`token_features` of each row; the request is what stands before the answer."""
        rows = []
        for ids, kept, marked in zip(input_ids.tolist(), real.tolist(), answer.tolist(), strict=True):
            first = marked.index(True)
            request = [i for i, k in zip(ids[:first], kept[:first], strict=True) if k]
            rows.append(token_features(request, [i for i, m in zip(ids, marked, strict=True) if m], self.config.frame))
        return rows

    def find_answers(self, input_ids: Tensor, real: Tensor) -> Tensor:
        """(B, T) bool, True on each row's answer: after the last header, up to the first stop token.

        Raises: ValueError when a row holds no header, or the model has no chat template.
        """
        header = [int(i) for i in self.config.header]
        if not header:
            raise ValueError("this model has no chat template: say with answer_mask which tokens are the answer")
        stops = set(self.config.stops)
        answer = torch.zeros_like(real)
        for row, (ids, kept) in enumerate(zip(input_ids.tolist(), real.tolist(), strict=True)):
            places = [i for i, k in enumerate(kept) if k]
            text = [ids[i] for i in places]
            starts = [i for i in range(len(text) - len(header) + 1) if text[i : i + len(header)] == header]
            if not starts:
                raise ValueError(f"row {row} has no answer: the chat template's answer header is not in it")
            begin = starts[-1] + len(header)
            end = next((i + 1 for i in range(begin, len(text)) if text[i] in stops), len(text))
            answer[row, places[begin:end]] = True
        return answer
