"""What a plan's keys mean, read from the docstrings under the fields: written once, beside the code."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from textwrap import dedent, fill
from typing import Any, Literal, get_args, get_origin, get_type_hints

from backflip.cycle.plan import Plan, plan_toml, toml_value

WIDTH = 108
HEAD = """\
# A plan for Backflip: every key with its default. Leave out whatever you do not change.
# Start it with: backflip run {path}
"""


def commented_plan(path: str, plan: Plan) -> str:
    """A plan as TOML, each key under a comment that explains it; `path` is what a user will call it."""
    return f"{HEAD.format(path=path)}\n{plan_toml(plan, docs=plan_docs())}"


PAGE = """\
# What each key of a plan does

A plan is one TOML file; every key may be left out. `backflip init` writes one with these words as comments, and
`backflip.plan_for` takes the same keys in Python. A key that is misspelt or a value that does not fit is refused by
name, together with what would fit.

*This page is written by `make docs` from the dataclasses that read the plan: change it there.*

## Keys that stand before any table

{top}{tables}
## What a run keeps once it has begun

Between two rounds a plan may change: edit `plan.toml` in the run's folder and carry the run on. These keys must stay:

{fixed}
From the next start on hold {at_once}; every other key holds from the next round on.
"""


def plan_page() -> str:
    """The page docs/plan.md: every key with its default and what it means, and which of them a run keeps."""
    from backflip.cycle.plan_changes import AT_ONCE, FIXED  # knows the store; a plan does not

    docs = plan_docs()
    fixed = "".join(f"- `{f'[{key}]' if key == 'sft' else key}`: {why}\n" for key, why in FIXED.items())
    at_once = ", ".join(f"`{key}`" for key in AT_ONCE)
    return PAGE.format(top=_key_rows(Plan(), docs), tables=_sections(Plan(), docs, ""), fixed=fixed, at_once=at_once)


def _sections(config: Any, docs: Mapping[tuple[type, str], str], path: str) -> str:
    """A section for every table in a dataclass, then for those inside it."""
    out = ""
    for f in fields(config):
        value, name = getattr(config, f.name), path + f.name
        several = isinstance(value, tuple)
        inner = value[0] if several and value else value
        if is_dataclass(inner):
            title = f"[[{name}]]" if several else f"[{name}]"
            parts = [f"## `{title}`", _one_line(docs[type(config), f.name]), _key_rows(inner, docs).rstrip()]
            out += "\n" + "\n\n".join(part for part in parts if part) + "\n" + _sections(inner, docs, f"{name}.")
    return out


def _key_rows(config: Any, docs: Mapping[tuple[type, str], str]) -> str:
    """A Markdown table of a dataclass's plain keys; empty when it has none."""
    rows = ""
    for f in fields(config):
        value = getattr(config, f.name)
        if not is_dataclass(value[0] if isinstance(value, tuple) and value else value):
            rows += f"| `{f.name}` | `{toml_value(value)}` | {_one_line(docs[type(config), f.name])} |\n"
    return rows and f"| key | default | what it does |\n|---|---|---|\n{rows}"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def plan_docs() -> dict[tuple[type, str], str]:
    """What every key of a plan means, by the dataclass that holds it and its name."""
    return _docs_of(Plan)


def _docs_of(config: type) -> dict[tuple[type, str], str]:
    hints, said = get_type_hints(config), _field_docstrings(config)
    out: dict[tuple[type, str], str] = {}
    for f in fields(config):
        text = said.get(f.name, "")
        if (inner := _config_in(hints[f.name])) is not None:
            text = text or inspect.getdoc(inner) or ""
            out |= _docs_of(inner)
        elif get_origin(hints[f.name]) is Literal:
            text += f"\nOne of: {', '.join(repr(a).replace(chr(39), chr(34)) for a in get_args(hints[f.name]))}."
        out[config, f.name] = "\n".join(fill(line, WIDTH) for line in text.splitlines())
    return out


def _config_in(hint: Any) -> type | None:
    """The dataclass that a field holds, alone or in a tuple; None when it holds plain values."""
    for one in (hint, *get_args(hint)):
        if isinstance(one, type) and is_dataclass(one):
            return one
    return None


def _field_docstrings(config: type) -> Mapping[str, str]:
    """The string under each field of a dataclass's source."""
    [definition] = ast.parse(dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    out = {}
    for one, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                out[one.target.id] = inspect.cleandoc(text.value)
    return out
