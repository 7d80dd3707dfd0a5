"""What a plan's keys mean, read from the docstrings under the fields: written once, beside the code."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from textwrap import dedent, fill
from typing import Any, Literal, get_args, get_origin, get_type_hints

from backflip.cycle.plan import Plan, plan_toml

WIDTH = 108
HEAD = """\
# A plan for Backflip: every key with its default. Leave out whatever you do not change.
# Start it with: backflip run {path}
"""


def commented_plan(path: str, plan: Plan) -> str:
    """A plan as TOML, each key under a comment that explains it; `path` is what a user will call it."""
    return f"{HEAD.format(path=path)}\n{plan_toml(plan, docs=plan_docs())}"


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
