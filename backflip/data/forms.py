"""Which form a data set has, and each row of it as a record."""

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

from backflip.core.errors import DataError
from backflip.core.records import Split
from backflip.data.messages import answer_of, asked, messages_of, prompt_of, split_common
from backflip.data.records import (
    Demonstration,
    Form,
    Messages,
    Preference,
    RaterKind,
    Record,
    Request,
    Thumb,
    fault,
)
from backflip.data.sources import split_named

COLUMNS: Mapping[Form, tuple[tuple[str, ...], ...]] = {
    "preferences": (("chosen", "rejected"),),
    "thumbs": (("prompt", "completion", "label"),),
    "demonstrations": (("messages",), ("prompt", "completion")),
    "prompts": (("prompt",),),
}
"""What each form needs, in the order in which forms are tried; one of the alternatives is enough."""
_YES, _NO = ("true", "1", "yes", "up"), ("false", "0", "no", "down", "-1")


def recognise(values: Mapping[str, Any], source: str) -> Form:
    """The form of a data set, from its first row. Raises: DataError naming the columns there are."""
    columns = {name for name, value in values.items() if value is not None}
    if len(one := columns & {"chosen", "rejected"}) == 1:
        [there] = one
        raise DataError(
            f"{source} is one-sided: it has {there} answers and nothing they were compared with. {_found(values)}\n"
            "A preference is a choice between two answers to a prompt.\n"
            "Give both chosen and rejected; good answers alone are demonstrations: call that column completion."
        )
    form = next((f for f, needs in COLUMNS.items() if any(columns >= set(need) for need in needs)), None)
    if form is None:
        raise DataError(
            f"{source} has no form that is known. {_found(values)}\nKnown forms: {_known()}.\n"
            "Rename the columns to those of the form that is meant."
        )
    return "prompts" if form == "demonstrations" and _asks(values.get("messages")) else form


def require_columns(values: Mapping[str, Any], form: Form, source: str) -> None:
    """Refuse a data set that cannot be of the form `form`. Raises: DataError naming the columns there are."""
    if form == "prompts" and ({"messages", "prompt"} & set(values) or set(values) >= {"chosen", "rejected"}):
        return
    if any(set(values) >= set(need) for need in COLUMNS[form]):
        return
    needed = " or ".join(", ".join(need) for need in COLUMNS[form])
    raise DataError(
        f"{source} cannot be read as {form}: it needs the columns {needed}.\n{_found(values)}\n"
        f"Rename its columns, or say with --as what it holds: {', '.join(COLUMNS)}."
    )


def read_row(form: Form, values: Mapping[str, Any], where: str, split: Split | None = None) -> Record:
    """One row as the record it is; `split` counts where the row names none. Raises: DataError."""
    row = {name: value for name, value in values.items() if value is not None}
    return _READ[form](row, where, _split(row.get("split"), where) or split)


def _request(row: Mapping[str, Any], where: str, split: Split | None) -> Request:
    """Any form holds prompts."""
    if "messages" in row:
        turns = messages_of(row["messages"], where, "messages")
        prompt = asked(turns[:-1] if len(turns) > 1 and turns[-1][0] == "assistant" else turns, where, "messages")
    elif "prompt" not in row and {"chosen", "rejected"} <= row.keys():
        prompt = split_common(row["chosen"], row["rejected"], where)[0]
    else:
        prompt = prompt_of(row.get("prompt"), where)
    return Request(where=where, prompt=prompt, split=split)


def _preference(row: Mapping[str, Any], where: str, split: Split | None) -> Preference:
    prompt, chosen, rejected = _sides(row, where)
    if chosen == rejected:
        raise fault(where, "chosen is equal to rejected", "Two equal answers cannot be told apart.")
    first = row.get("shown_first")
    if first not in (None, "chosen", "rejected"):
        raise fault(where, "shown_first does not fit", "It must be chosen or rejected, or left out.")
    strength, said = _strength(row.get("strength")), _says_something(row.get("strength"))
    return Preference(
        where=where, prompt=prompt, chosen=chosen, rejected=rejected, rater=_rater(row, where),
        rater_kind=_rater_kind(row, where), tie=_truth(row.get("tie", False), where, "tie"),
        strength=strength, strength_ignored=said and strength is None, split=split, shown_first=first,
        chosen_ended=_truth(row.get("chosen_ended", True), where, "chosen_ended"),
        rejected_ended=_truth(row.get("rejected_ended", True), where, "rejected_ended"),
        pair=_name(row.get("pair")), ranking=_name(row.get("ranking")), reason=_name(row.get("reason")),
        at=_seconds(row.get("at")), latency_s=_seconds(row.get("latency_s")),
    )  # fmt: skip


def _sides(row: Mapping[str, Any], where: str) -> tuple[Messages, str, str]:
    """(prompt, chosen, rejected)."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if "prompt" not in row:
        return split_common(chosen, rejected, where)
    prompt = prompt_of(row["prompt"], where)
    if len(prompt) == 1 and isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 2:
        whole = split_common(chosen, rejected, where)  # the prompt's text, and the conversation that leads to it
        if whole[0][-1] == prompt[0]:
            return whole
    return prompt, _side(row, prompt, where, "chosen"), _side(row, prompt, where, "rejected")


def _side(row: Mapping[str, Any], prompt: Messages, where: str, column: str) -> str:
    """One of the two answers. It may be empty only where the row says that it ended there."""
    value = row.get(column)
    if row.get(f"{column}_ended") is True and value == "":
        return ""
    return answer_of(value, prompt, where, column)


def _thumb(row: Mapping[str, Any], where: str, split: Split | None) -> Thumb:
    prompt = prompt_of(row.get("prompt"), where)
    return Thumb(
        where=where, prompt=prompt, answer=answer_of(row.get("completion"), prompt, where, "completion"),
        up=_truth(row.get("label"), where, "label"), rater=_rater(row, where), rater_kind=_rater_kind(row, where),
        split=split,
    )  # fmt: skip


def _demonstration(row: Mapping[str, Any], where: str, split: Split | None) -> Demonstration:
    if "messages" in row:
        turns = messages_of(row["messages"], where, "messages")
        if turns[-1][0] != "assistant":
            raise fault(where, "messages ends without an answer", "A demonstration ends with what the assistant says.")
        return Demonstration(where=where, prompt=asked(turns[:-1], where, "messages"), answer=turns[-1][1], split=split)
    prompt = prompt_of(row.get("prompt"), where)
    answer = answer_of(row.get("completion"), prompt, where, "completion")
    return Demonstration(where=where, prompt=prompt, answer=answer, split=split)


_READ: Mapping[Form, Callable[[Mapping[str, Any], str, Split | None], Record]] = {
    "preferences": _preference,
    "thumbs": _thumb,
    "demonstrations": _demonstration,
    "prompts": _request,
}


def _asks(messages: Any) -> bool:
    """Whether a list of messages ends with a question."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "user"


def _rater(row: Mapping[str, Any], where: str) -> str:
    value = row.get("rater", "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise fault(where, "rater does not fit", "It must be a text or a whole number that stands for one person.")
    text = f"{value:x}" if isinstance(value, int) and abs(value) > 10**18 else str(value).strip()
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise fault(where, "rater holds half a character (a lone surrogate)", "The text was cut inside an emoji.")
    return text


def _name(value: Any) -> str:
    """A text or a number by which the source calls something; columns of other kinds are not meant."""
    if isinstance(value, bool) or not isinstance(value, str | int) or _huge(value):
        return ""
    text = str(value)
    return "" if any("\ud800" <= c <= "\udfff" for c in text) else text


def _seconds(value: Any) -> float | None:
    """A time in seconds; None where a column of this name holds something else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or _huge(value):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _rater_kind(row: Mapping[str, Any], where: str) -> RaterKind | None:
    value = row.get("rater_kind")
    if value is not None and value not in get_args(RaterKind):
        raise fault(where, "rater_kind does not fit", f"It must be one of {', '.join(get_args(RaterKind))}.")
    return value


def _truth(value: Any, where: str, column: str) -> bool:
    """True or false, also as 1 and 0 and in words."""
    if isinstance(value, float) and value in (0.0, 1.0):
        return bool(value)
    word = str(value).strip().lower() if isinstance(value, bool | int | str) and not _huge(value) else ""
    if word not in _YES + _NO:
        raise fault(where, f"{column} is neither true nor false", "It must be true or false, or 1 or 0.")
    return word in _YES


def _strength(value: Any) -> int | None:
    """How sure the rater was, 1 to 3; None where a column of this name holds something else."""
    try:
        number = math.nan if isinstance(value, bool) or _huge(value) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    return int(number) if number in (1, 2, 3) else None


def _says_something(value: Any) -> bool:
    """Whether a cell is filled; NaN is how tables of numbers leave one empty."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _huge(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > 10**18


def _split(value: Any, where: str) -> Split | None:
    """The split a row names; "validation" is monitor, "test" is final."""
    if value is None:
        return None
    try:
        found = split_named(value) if isinstance(value, str) else None
    except KeyError:
        found = None
    if found is None and not (isinstance(value, str) and value.strip().lower() == "train"):
        raise fault(where, "split does not fit", "It must be train, monitor (or validation) or final (or test).")
    return found or "train"


def _known() -> str:
    return "; ".join(f"{form} ({' or '.join(', '.join(need) for need in needs)})" for form, needs in COLUMNS.items())


def _found(values: Mapping[str, Any]) -> str:
    """The columns there are."""
    names = [str(name)[:60] for name in values]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"The columns it has: {', '.join(names[:20]) or 'none'}{more}."
