"""Whatever a plan file holds, it is a plan or is refused in plain words."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backflip.core.errors import BackflipError
from backflip.cycle.plan import Plan, plan_toml, read_plan, toml_value

CASES = 900
WHOLE = plan_toml(Plan())


def defaults(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, default) of every key that is no table."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from defaults(value, f"{path}{f.name}.")
        elif not (isinstance(value, tuple) and value and is_dataclass(value[0])):
            yield path + f.name, value


DEFAULTS = dict(defaults(Plan()))
KEYS = sorted(DEFAULTS)


def near(key: str) -> st.SearchStrategy[Any]:
    """Values of the kind that the key takes."""
    value = DEFAULTS[key]
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(1, 8)
    if isinstance(value, str):
        return st.just(value) | st.text('ab"\\\x7f\n\u00e9\U0001f600', min_size=1, max_size=8)
    return st.floats(0.01, 1.0) if isinstance(value, float) else st.just(value)


_TEXT = st.text(max_size=12) | st.sampled_from(
    ["cpu", "float32", "tldr", "postgresql://a:b@c/d", "wandb", "postgresql://["]
)
_VALUES = st.recursive(
    st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | _TEXT
    | st.sampled_from([10**400, -(10**30), 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=2),
    max_leaves=4,
)
_NAMES = st.sampled_from(KEYS) | st.sampled_from(KEYS).map(lambda k: k[:-1]) | st.text("abc_.", min_size=1, max_size=6)
_FITTING = st.sampled_from(KEYS).flatmap(lambda key: st.tuples(st.just(key), near(key)))
_LINES = (st.lists(_FITTING, max_size=5) | st.lists(st.tuples(_NAMES, _VALUES) | _FITTING, max_size=4)).map(
    lambda pairs: "".join(f"{name} = {toml_value(value)}\n" for name, value in pairs)
)


def outcome(folder: Path, content: bytes) -> str:
    """Whether the file is a plan that survives its own writing, or is refused; anything else goes through."""
    file = folder / "plan.toml"
    file.write_bytes(content)
    try:
        plan = read_plan(file)
    except BackflipError as e:
        if str(file) not in str(e) or len(str(e).splitlines()) not in (2, 3):
            raise AssertionError(f"no plain words: {e}") from e
        return "refused"
    (folder / "again.toml").write_text(plan_toml(plan), encoding="utf-8")
    assert read_plan(folder / "again.toml") == plan
    return "plan"


def test_keys_and_values_of_every_kind_are_taken_or_refused(tmp_path: Path) -> None:
    seen = {"plan": 0, "refused": 0}

    @settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
    @given(_LINES)
    def case(text: str) -> None:
        seen[outcome(tmp_path, text.encode("utf-8", "surrogatepass"))] += 1

    case()
    assert sum(seen.values()) >= CASES
    assert min(seen.values()) > CASES / 50  # both ways are walked


def test_a_damaged_plan_is_taken_or_refused(tmp_path: Path) -> None:
    spots = [m.start() for m in re.finditer(r"[=\[\]\"\n]", WHOLE)]

    @settings(max_examples=300, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(spots),
        st.integers(0, 8),
        st.binary(max_size=6) | _TEXT.map(lambda t: t.encode("utf-8", "replace")),
    )
    def case(at: int, out: int, put: bytes) -> None:
        whole = WHOLE.encode()
        outcome(tmp_path, whole[:at] + put + whole[at + out :])

    case()


def test_a_nesting_and_a_number_beyond_all_measure_are_refused(tmp_path: Path) -> None:
    for text in ("seed = " + "[" * 100_000, "seed = " + "9" * 5000):
        assert outcome(tmp_path, text.encode()) == "refused"


def test_text_outside_plain_latin_survives_its_own_writing(tmp_path: Path) -> None:
    assert outcome(tmp_path, 'model.name = "\u00e9 \U0001f600 \x80"'.encode()) == "plan"
