"""Reads a user's own prompts: one JSON object a line. Knows nothing about models or scores."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

from backflip.core.errors import DataError
from backflip.core.records import Prompt, Split
from backflip.core.rng import seed_of
from backflip.data.messages import asked, messages_of
from backflip.data.records import Messages

SPLITS: tuple[Split, ...] = get_args(Split)
EXAMPLE = '{"prompt": "Write one sentence about tea."}'


def load_prompt_file(path: Path, forms: Collection[str] | None = None) -> list[Prompt]:
    """The prompts in the JSONL file `path`, in its order.

    A line holds `prompt`, a text or a list of messages that ends with the user's, and, if you like, `id`,
    `split` (train, monitor, final), `topic` (words an answer ought to touch) and `form` (one of `forms`,
    where given); other keys are left alone, empty lines are skipped. Without a split, the prompt's text
    decides: 60% train, 20% monitor, 20% final, the same on every machine and whatever else the file holds.
    Raises: DataError naming file and line.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist.\n"
            f"It may have been moved or deleted, or be meant from another folder than {Path.cwd()}.\n"
            f"Put it there; a prompt file holds one line a prompt, like {EXAMPLE}"
        ) from None
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}.") from None
    prompts: list[Prompt] = []
    by_id: dict[str, int] = {}
    by_text: dict[str, int] = {}
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        prompt = _read_prompt(line, where, forms)
        content = str((prompt.text, prompt.history))
        for seen, key, what in ((by_text, content, "prompt"), (by_id, prompt.id, f"id {prompt.id}")):
            if key in seen:
                raise DataError(f"{where}: the same {what} stands in line {seen[key]}.\nRemove or change one of them.")
            seen[key] = number
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"{path} holds no prompts.\nWrite one line a prompt, like {EXAMPLE}")
    _require_every_split(prompts, path)
    return prompts


def split_of(text: str) -> Split:
    """The split of a prompt that names none: by a hash of its text, 60% train, 20% monitor, 20% final."""
    place = seed_of(0, "split", text) % 100
    return "train" if place < 60 else "monitor" if place < 80 else "final"


def _read_prompt(line: bytes, where: str, forms: Collection[str] | None) -> Prompt:
    """One line as a Prompt. Raises: DataError beginning with `where`."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise DataError(f"{where} is not UTF-8 (byte {e.start + 1}).\nSave the file as UTF-8.") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{where}, column {e.colno} is not JSON: {e.msg}.\nIt must look like {EXAMPLE}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{where} is not JSON that can be read.\nIt must look like {EXAMPLE}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is JSON, but not an object in braces.\nIt must look like {EXAMPLE}")
    history: Messages = ()
    if isinstance(row.get("prompt"), list):
        *before, (_, text) = asked(messages_of(row["prompt"], where, "prompt"), where, "prompt")
        history = tuple(before)
    else:
        text = _text_of(row, "prompt", where)
    if not text:
        fault = "is empty" if "prompt" in row else "is missing"
        raise DataError(f"{where}: prompt {fault}.\nThe line must look like {EXAMPLE}")
    split = _text_of(row, "split", where) or split_of(text)
    if split not in SPLITS:
        raise DataError(f'{where}: split = "{split}" does not fit.\nIt must be one of {", ".join(SPLITS)}.')
    wanted = _text_of(row, "form", where)
    if forms is not None and wanted not in forms:
        known = ", ".join(f for f in forms if f)
        raise DataError(f'{where}: form = "{wanted}" does not fit.\nIt must be one of {known}, or left out.')
    own_id = f"p{seed_of(0, 'prompt', text, *(part for turn in history for part in turn)):016x}"
    return Prompt(
        id=_text_of(row, "id", where) or own_id,
        split=split,
        text=text,
        topic=_text_of(row, "topic", where),
        form=wanted,
        history=history,
    )


def _text_of(row: dict[str, Any], key: str, where: str) -> str:
    """`row[key]` without its outer spaces; "" when it is not there. Raises: DataError when it is no text."""
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} = {value!r} does not fit.\nIt must be a text in quotes.")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(f"{where}: {key} holds half a character (a lone surrogate).\nSave the file as UTF-8.")
    return value.strip()


def _require_every_split(prompts: list[Prompt], path: Path) -> None:
    """Refuse a file that leaves a split without prompts: the run could not be judged."""
    for split in SPLITS:
        if not any(p.split == split for p in prompts):
            raise DataError(
                f"{path} holds no prompt for the split {split} ({len(prompts)} in all).\n"
                f'Add prompts, or write "split": "{split}" into some lines.'
            )
