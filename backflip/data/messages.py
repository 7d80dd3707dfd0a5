"""Conversations in the forms they are written in: lists of messages, plain texts, transcripts, shared beginnings."""

import re
from typing import Any

from backflip.data.records import Messages, fault

ROLES = ("system", "user", "assistant")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def text_of(value: Any, where: str, column: str) -> str:
    """A text without its outer spaces. Raises: DataError when it is none, or has nothing in it."""
    if not isinstance(value, str):
        raise fault(where, f"{column} is {_kind(value)}", "It must be a text, or a list of messages.")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise fault(where, f"{column} holds half a character (a lone surrogate)", "The text was cut inside an emoji.")
    if not value.strip():
        raise fault(where, f"{column} is empty", "There is nothing in it that could be learnt from.")
    return value.strip()


def messages_of(value: Any, where: str, column: str) -> Messages:
    """A list of {"role", "content"} as (role, content) turns. Raises: DataError when it is none."""
    if not isinstance(value, list) or not value:
        raise fault(where, f"{column} is {_kind(value)}", 'It must be a list of {"role": ..., "content": ...}.')
    turns = []
    for n, message in enumerate(value, 1):
        place = f"{column}, message {n},"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise fault(where, f"{place} has no role of {', '.join(ROLES)}", "Who speaks decides what is learnt.")
        turns.append((str(message["role"]), text_of(message.get("content"), where, f"{place} content")))
    return tuple(turns)


def prompt_of(value: Any, where: str, column: str = "prompt") -> Messages:
    """A prompt: a text, a transcript, or messages that end with the user's.

    Raises: DataError when it is none of these.
    """
    if isinstance(value, str):
        turns = transcript(value, where, column)
        return asked(turns, where, column) if turns else (("user", text_of(value, where, column)),)
    return asked(messages_of(value, where, column), where, column)


def asked(turns: Messages, where: str, column: str) -> Messages:
    """`turns`, which must end with the user's. Raises: DataError when they do not."""
    if not turns or turns[-1][0] != "user":
        last = f"ends with what the {turns[-1][0]} says" if turns else "is empty"
        raise fault(where, f"the prompt in {column} {last}", "A prompt ends with the user, so that there is an answer.")
    return turns


def answer_of(value: Any, prompt: Messages, where: str, column: str) -> str:
    """An answer to `prompt`: a text, or messages that may begin with the prompt.

    Raises: DataError when it is not one message of the assistant.
    """
    if isinstance(value, str):
        turns = transcript(value, where, column)
        if not turns:
            return text_of(value, where, column)
    else:
        turns = messages_of(value, where, column)
    if len(turns) > 1 and turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0][0] != "assistant":
        raise fault(
            where,
            f"{column} is not one answer to the prompt",
            "After the prompt one message of the assistant must stand.",
        )
    return turns[0][1]


def split_common(chosen: Any, rejected: Any, where: str) -> tuple[Messages, str, str]:
    """(prompt, chosen, rejected) of two conversations or two texts that begin alike.

    Raises: DataError when they have no beginning in common, or more follows it than one answer.
    """
    if isinstance(chosen, list) and isinstance(rejected, list):
        sides = [messages_of(chosen, where, "chosen"), messages_of(rejected, where, "rejected")]
    else:
        texts = text_of(chosen, where, "chosen"), text_of(rejected, where, "rejected")
        sides = [t for side, c in zip(texts, ("chosen", "rejected"), strict=True) if (t := transcript(side, where, c))]
        if len(sides) < 2:
            return _split_texts(*texts, where)
    count = 0
    for one, other in zip(*(side[:-1] for side in sides), strict=False):
        if one != other:
            break
        count += 1
    prompt = sides[0][:count]
    if not prompt:
        raise fault(where, "there is no prompt", "chosen and rejected do not begin alike, and no column holds it.")
    prompt = asked(prompt, where, "chosen")
    first, second = (
        answer_of(_as_list(s), prompt, where, c) for s, c in zip(sides, ("chosen", "rejected"), strict=True)
    )
    return prompt, first, second


def _split_texts(chosen: str, rejected: str, where: str) -> tuple[Messages, str, str]:
    """Two texts that begin with the same words: those are the prompt."""
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    start = chosen[: max((i + 1 for i in range(same) if chosen[i].isspace()), default=0)]
    rest = chosen[len(start) :].strip(), rejected[len(start) :].strip()
    if not start.strip() or not all(rest):
        raise fault(
            where, "there is no prompt", "There is no column prompt, and chosen and rejected share no beginning."
        )
    return (("user", start.strip()),), *rest


def transcript(text: str, where: str, column: str) -> Messages:
    """The turns of a text in the manner of "\\n\\nHuman: ...\\n\\nAssistant: ..."; empty when it is no such text.

    A last turn of the assistant without words is the place of the answer, and left out.
    """
    marks = list(_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip() or marks[0][1] != "Human":
        return ()
    ends = [*(m.start() for m in marks[1:]), len(text)]
    turns = [(_SPEAKERS[m[1]], text[m.end() : end]) for m, end in zip(marks, ends, strict=True)]
    if len(turns) > 1 and turns[-1][0] == "assistant" and not turns[-1][1].strip():
        turns.pop()
    return tuple((role, text_of(said, where, column)) for role, said in turns)


def _as_list(turns: Messages) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def _kind(value: Any) -> str:
    """A value in words, for somebody who looks for it."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    shown = repr(value) if isinstance(value, bool | int | float) and abs(value) < 1e9 else ""
    return f"{shown or 'a ' + type(value).__name__}, which is no text"
