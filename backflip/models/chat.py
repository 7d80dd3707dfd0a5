"""From a request to tokens and back: chat template, stop tokens, text. Nothing is hard-coded to one model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from backflip.core.errors import DataError
from backflip.core.records import Prompt
from backflip.models.load import Loaded, generation_stops

Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Chat:
    """The tokenizer's side of a policy.

    `stops` are the ids that end an answer: the end-of-sequence token and whatever the generation config
    lists. The pad token may be one of them (in SmolLM2 it is): masks are explicit everywhere.
    """

    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    context: int
    templated: bool
    """False for a pure language model: prompts are continued as plain text."""

    def encode(self, prompt: Prompt, max_tokens: int = 0) -> list[int]:
        """Token ids up to where the answer begins.

        Raises: DataError when the prompt is empty, or with `max_tokens` of answer exceeds the model's context.
        """
        ids = self._ids(prompt.text, prompt.history)
        if not ids:
            raise DataError(
                f"Prompt {prompt.id} has no tokens: there is nothing to answer.\nWrite something, or drop it."
            )
        if len(ids) + max_tokens > self.context:
            raise DataError(
                f"Prompt {prompt.id} has {len(ids)} tokens; with {max_tokens} for the answer it exceeds the model's "
                f"context of {self.context}.\nShorten the prompt, or lower sampling.max_tokens."
            )
        return ids

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of an answer as the model would give it, a stop token at the end.

        With a chat template, whatever the template puts after an answer up to its first stop token is part of it.
        A pure language model answers on a line of its own.
        """
        if not self.templated:
            return [*self._tokens(f"\n{text}"), self._end]
        ids = self._tokens(self._turn(text) if self.continues else text)
        ends = [n for n, token in enumerate(ids) if token in self.stops]
        return ids[: ends[0] + 1] if ends else [*ids, self._end]

    @cached_property
    def continues(self) -> bool:
        """Whether a finished turn of the template begins as the template asks for one: answers are then read in it."""
        return self.templated and self._talk("!").startswith(self._opening)

    def closing(self) -> list[int]:
        """The tokens that the template puts after an answer; empty where it puts none."""
        mark = "!"
        return self._tokens(self._talk(mark).rpartition(mark)[2]) if self.templated else []

    @cached_property
    def _opening(self) -> str:
        """The template's text up to where an answer begins."""
        asked = [{"role": "user", "content": "?"}]
        return str(self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))

    def _talk(self, text: str) -> str:
        """The template's text of a whole exchange with this answer."""
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
        return str(self.tokenizer.apply_chat_template(talk, tokenize=False))

    def _turn(self, text: str) -> str:
        """An answer as it stands in the template, from where it begins to the end."""
        return self._talk(text).removeprefix(self._opening)

    @property
    def _end(self) -> int:
        """The stop token that is put where no template puts one. Raises: DataError when the model has none."""
        end = self.tokenizer.eos_token_id
        if end is None and not self.stops:
            raise DataError(
                "The model names no token that ends an answer.\n"
                "Its tokenizer has no eos_token, and its generation config no eos_token_id.\n"
                "Set eos_token in tokenizer_config.json to the token its chat template ends a turn with."
            )
        return int(self.stops[0] if end is None else end)

    def _tokens(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    @cached_property
    def frame(self) -> frozenset[int]:
        """The tokens that stand around any request: the template's words and the start token."""
        return frozenset(self._ids(""))

    def _ids(self, text: str, history: Turns = ()) -> list[int]:
        """Token ids of a request in its frame."""
        if self.templated:
            talk = [{"role": role, "content": said} for role, said in (*history, ("user", text))]
            try:
                full = str(self.tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False))
            except TemplateError as e:
                raise DataError(
                    f"The model's chat template refuses this conversation: {e}.\n"
                    "Many know no system turn, or want user and assistant to alternate.\n"
                    "Change the prompt, or choose another model."
                ) from None
            return self._tokens(full)
        start = self.tokenizer.bos_token_id
        said = "\n".join([*(content for _, content in history), text])
        return [*([] if start is None else [int(start)]), *self._tokens(said)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer without its stop token."""
        kept = list(tokens)
        if kept and kept[-1] in self.stops:
            kept.pop()
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()


def open_chat(loaded: Loaded) -> Chat:
    """The chat side of a loaded model."""
    tokenizer = loaded.tokenizer
    stops = {tokenizer.eos_token_id} | set(generation_stops(loaded.source))
    known = tuple(sorted(int(s) for s in stops if s is not None))
    return Chat(tokenizer, known, loaded.trunk.context, templated=bool(tokenizer.chat_template))
