"""From a TOML file to frozen dataclasses. Every error names file, key, value and what fits."""

import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from backflip.core.errors import ConfigError, UnknownKeyError

T = TypeVar("T")

_SCALARS = {int: "a whole number", float: "a number", str: 'a text in quotes, like "this"', bool: "true or false"}
_LONGEST_VALUE = 80


class Unfit(ValueError):
    """Raised by a config's `__post_init__`: `key` (dotted when it lies in a table), and what would fit."""

    def __init__(self, key: str, fits: str) -> None:
        super().__init__(f"{key}: {fits}")
        self.key, self.fits = key, fits


def require(ok: bool, key: str, fits: str) -> None:
    """Refuse a value: `require(self.clip > 0, "clip", "a number above 0")`."""
    if not ok:
        raise Unfit(key, fits)


def read_toml(path: Path) -> dict[str, Any]:
    """The file as nested dicts. Raises ConfigError when it is missing, unreadable or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.\nWrite a commented plan with: backflip init {path}") from None
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}.\nGive the path of a plan file.") from None
    except (ValueError, RecursionError) as e:  # no TOML, no UTF-8, a number or a nesting beyond all measure
        raise ConfigError(f"{path} is not valid TOML: {e}.\nStrings need quotes; each key stands once.") from None


def build(cls: type[T], values: Mapping[str, Any], source: str, prefix: str = "") -> T:
    """Build the frozen dataclass `cls` from `values`, checking names, types and ranges.

    Fields may be int, float, str, bool, Literal, Optional and unions of these, tuples, dict[str, ...] and
    other dataclasses; a field of another type is a fault in `cls`.

    Raises: ConfigError naming `source`, the dotted key, the value and what fits; TypeError for a faulty `cls`.
    """
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UnknownKeyError(f"{source}: unknown key {prefix}{key}.\n{_suggest(key, list(known), prefix)}")
    got: dict[str, Any] = {}
    for name, f in known.items():
        if name in values:
            got[name] = _fit(hints[name], values[name], source, prefix + name)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{source}: {prefix}{name} is missing.\nIt must be {_spell(hints[name])}.")
    try:
        return cls(**got)
    except Unfit as e:
        stands = _stands(known, got, e.key)
        raise ConfigError(f"{source}: {prefix}{e.key}{stands} does not fit.\nIt must be {e.fits}.") from None


def _suggest(key: str, known: list[str], prefix: str) -> str:
    """What the writer of an unknown key may have meant."""
    near = get_close_matches(key.lower(), known, n=1)
    if near:
        return f"Did you mean {prefix}{near[0]}?"
    return f"Known here: {', '.join(known)}."


def _stands(known: Mapping[str, Field[Any]], got: Mapping[str, Any], key: str) -> str:
    """How the refused `key` stands: " = 3", " = 3 (the default)", or nothing when it is no single value."""
    first, *rest = key.split(".")
    if first in got:
        value, note = got[first], ""
    elif first in known:
        f = known[first]
        value, note = (f.default_factory() if f.default_factory is not MISSING else f.default), " (the default)"
    else:
        return ""
    for name in rest:
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return f" = {_show(value)}{note}"


def _fit(kind: Any, value: Any, source: str, key: str) -> Any:
    """`value` as `kind`, or a ConfigError that says what fits."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, Mapping):
            return build(kind, value, source, f"{key}.")
    elif origin in (types.UnionType, typing.Union):
        return _fit_union(args, value, source, key)
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return _fit_tuple(args, value, source, key)
    elif origin is dict:
        if isinstance(value, Mapping):
            return {str(k): _fit(args[1], v, source, f"{key}.{k}") for k, v in value.items()}
    elif origin is typing.Literal:
        if any(value == a and type(value) is type(a) for a in args):
            return value
    elif kind in _SCALARS:
        if _is_scalar(kind, value):
            return kind(value)
    else:
        raise TypeError(f"{key}: a config field cannot be {kind}")
    raise ConfigError(f"{source}: {key} = {_show(value)} does not fit.\nIt must be {_spell(kind)}.")


def _is_scalar(kind: Any, value: Any) -> bool:
    """Whether `value` may stand for an int, float, str or bool; true is not a number, nan and inf fit nowhere."""
    if isinstance(value, bool):
        return kind is bool
    if kind in (str, bool):
        return isinstance(value, kind)
    if kind is int:
        return isinstance(value, int)
    if isinstance(value, int):
        return abs(value) < 2**1023  # what a float can hold
    return isinstance(value, float) and math.isfinite(value)


def _fit_union(options: tuple[Any, ...], value: Any, source: str, key: str) -> Any:
    """`value` as the first of `options` that takes it; None only where it is an option."""
    real = [a for a in options if a is not type(None)]
    if value is None and len(real) < len(options):
        return None
    if len(real) == 1:
        return _fit(real[0], value, source, key)
    for option in real:
        try:
            return _fit(option, value, source, key)
        except ConfigError:
            continue
    fits = " or ".join(_spell(option) for option in real)
    raise ConfigError(f"{source}: {key} = {_show(value)} does not fit.\nIt must be {fits}.")


def _fit_tuple(args: tuple[Any, ...], value: list[Any] | tuple[Any, ...], source: str, key: str) -> tuple[Any, ...]:
    """`value` as `tuple[X, ...]` or as a tuple of fixed length, item by item."""
    kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(kinds) != len(value):
        raise ConfigError(f"{source}: {key} = {_show(value)} does not fit.\nIt must be a list of {len(kinds)}.")
    return tuple(_fit(kind, v, source, f"{key}[{i}]") for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))


def _show(value: Any) -> str:
    """A value as it stands in the file, shortened when it is long."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        shown = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in value)
        text = f'"{"".join(shown)}"'
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(_show(v) for v in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _spell(kind: Any) -> str:
    """A type in a newcomer's words."""
    origin, args = get_origin(kind), get_args(kind)
    if kind in _SCALARS:
        return _SCALARS[kind]
    if origin is typing.Literal:
        return "one of " + ", ".join(_show(a) for a in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_spell(a) for a in args if a is not type(None))
    if origin is tuple and args[-1] is Ellipsis:
        return f"a list, each {_spell(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}"
    return "a table ([section])"
