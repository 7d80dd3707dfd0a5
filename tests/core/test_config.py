"""From TOML to dataclasses: what is taken, what is refused, and what the refusal says."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from backflip.core.config import build, read_toml, require
from backflip.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Climb:
    rollouts: int = 512
    minibatch: int = 64
    clip: float = 0.2

    def __post_init__(self) -> None:
        require(0 < self.clip < 1, "clip", "a number between 0 and 1")
        require(self.rollouts % self.minibatch == 0, "minibatch", "a divisor of rollouts")


@dataclass(frozen=True, kw_only=True)
class Persona:
    name: str
    error: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Plan:
    rounds: int
    title: str = "a run"
    quiet: bool = False
    model: Literal["tiny", "large"] = "tiny"
    level: Literal[1, 2] = 1
    deadline_s: float | None = None
    device: int | str = "cpu"
    climb: Climb = field(default_factory=Climb)
    late: Climb | None = None
    personas: tuple[Persona, ...] = ()
    topics: tuple[str, ...] = ()
    interval: tuple[float, float] = (0.0, 1.0)
    weights: dict[str, float] = field(default_factory=dict)
    made_by: str = field(default="us", init=False)

    def __post_init__(self) -> None:
        require(self.rounds > 0, "rounds", "a whole number above 0")
        require(self.climb.rollouts <= 1024, "climb.rollouts", "at most 1024")
        require(not (self.quiet and self.rounds > 9), "rounds and quiet", "rounds below 10 when quiet")


def plan_from(text: str) -> Plan:
    return build(Plan, tomllib.loads(text), "plan.toml")


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as e:
        plan_from(text)
    return str(e.value)


def test_every_kind_of_field_is_read_as_its_type():
    plan = plan_from(
        """
        rounds = 3
        title = "jokes"
        quiet = true
        model = "large"
        level = 2
        deadline_s = 60
        device = 1
        topics = ["tea", "rain"]
        interval = [0.25, 1]
        [climb]
        rollouts = 96
        minibatch = 48
        [late]
        clip = 0.1
        [[personas]]
        name = "Ada"
        [[personas]]
        name = "Bo"
        error = 0
        [weights]
        warmth = 1
        """
    )

    assert plan == Plan(
        rounds=3,
        title="jokes",
        quiet=True,
        model="large",
        level=2,
        deadline_s=60.0,
        device=1,
        climb=Climb(rollouts=96, minibatch=48),
        late=Climb(clip=0.1),
        personas=(Persona(name="Ada"), Persona(name="Bo", error=0.0)),
        topics=("tea", "rain"),
        interval=(0.25, 1.0),
        weights={"warmth": 1.0},
    )


def test_what_the_file_leaves_out_keeps_its_default():
    assert plan_from("rounds = 1") == Plan(rounds=1)


def test_a_whole_number_becomes_a_float_where_one_is_wanted():
    plan = plan_from("rounds = 1\ndeadline_s = 60\ninterval = [0, 1]")

    assert [type(v) for v in (plan.deadline_s, *plan.interval)] == [float, float, float]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds = 1\nrouds = 2", "plan.toml: unknown key rouds.\nDid you mean rounds?"),
        ("rounds = 1\nTITLE = 'x'", "plan.toml: unknown key TITLE.\nDid you mean title?"),
        ("rounds = 1\ndeadline-s = 2", "plan.toml: unknown key deadline-s.\nDid you mean deadline_s?"),
        ("rounds = 1\n[climb]\nrolouts = 2", "plan.toml: unknown key climb.rolouts.\nDid you mean climb.rollouts?"),
        ("rounds = 1\n[climb]\nxyz = 2", "plan.toml: unknown key climb.xyz.\nKnown here: rollouts, minibatch, clip."),
        ("rounds = 1\n[[personas]]\nnmae = 'Bo'", "unknown key personas[0].nmae.\nDid you mean personas[0].name?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(text: str, said: str):
    assert said in refusal(text)


def test_a_field_the_class_makes_itself_is_not_a_key():
    assert "unknown key made_by" in refusal("rounds = 1\nmade_by = 'me'")


def test_a_missing_key_is_named_with_what_fits():
    assert refusal("title = 'x'") == "plan.toml: rounds is missing.\nIt must be a whole number."
    assert "personas[1].name is missing" in refusal("rounds = 1\npersonas = [{name = 'Ada'}, {error = 0.1}]")


@pytest.mark.parametrize(
    ("line", "shown", "fits"),
    [
        ("rounds = true", "rounds = true", "a whole number"),
        ("rounds = 2.0", "rounds = 2.0", "a whole number"),
        ("rounds = '2'", 'rounds = "2"', "a whole number"),
        ("title = 7", "title = 7", 'a text in quotes, like "this"'),
        ("quiet = 1", "quiet = 1", "true or false"),
        ("quiet = 'yes'", 'quiet = "yes"', "true or false"),
        ("model = 'huge'", 'model = "huge"', 'one of "tiny", "large"'),
        ("model = ['tiny']", 'model = ["tiny"]', 'one of "tiny", "large"'),
        ("level = true", "level = true", "one of 1, 2"),
        ("level = 1.0", "level = 1.0", "one of 1, 2"),
        ("deadline_s = true", "deadline_s = true", "a number"),
        ("deadline_s = 'soon'", 'deadline_s = "soon"', "a number"),
        ("deadline_s = nan", "deadline_s = nan", "a number"),
        ("deadline_s = inf", "deadline_s = inf", "a number"),
        ("device = 1.5", "device = 1.5", 'a whole number or a text in quotes, like "this"'),
        ("device = false", "device = false", 'a whole number or a text in quotes, like "this"'),
        ("climb = 3", "climb = 3", "a table ([section])"),
        ("late = 'x'", 'late = "x"', "a table ([section])"),
        ("weights = [1]", "weights = [1]", "a table ([section])"),
        ("weights = {warmth = 'x'}", 'weights.warmth = "x"', "a number"),
        ("topics = 'tea'", 'topics = "tea"', 'a list, each a text in quotes, like "this"'),
        ("topics = ['tea', 7]", "topics[1] = 7", 'a text in quotes, like "this"'),
        ("personas = {name = 'Ada'}", "personas = {'name': 'Ada'}", "a list, each a table ([section])"),
        ("personas = ['Ada']", 'personas[0] = "Ada"', "a table ([section])"),
        ("personas = [{name = 'Ada', error = true}]", "personas[0].error = true", "a number"),
        ("interval = [0.5]", "interval = [0.5]", "a list of 2"),
        ("interval = 0.5", "interval = 0.5", "a list of 2"),
        ("interval = [0.1, 0.2, 0.3]", "interval = [0.1, 0.2, 0.3]", "a list of 2"),
    ],
)
def test_a_wrong_type_is_refused_naming_file_key_value_and_what_fits(line: str, shown: str, fits: str):
    text = line if line.startswith("rounds") else f"rounds = 1\n{line}"

    assert refusal(text) == f"plan.toml: {shown} does not fit.\nIt must be {fits}."


def test_a_whole_number_too_big_for_a_float_is_refused():
    assert "deadline_s = 1000" in refusal(f"rounds = 1\ndeadline_s = 1{'0' * 400}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds = 0", "plan.toml: rounds = 0 does not fit.\nIt must be a whole number above 0."),
        ("rounds = 1\n[climb]\nclip = 2", "climb.clip = 2.0 does not fit.\nIt must be a number between 0 and 1."),
        ("rounds = 1\n[late]\nclip = 2", "late.clip = 2.0 does not fit.\nIt must be a number between 0 and 1."),
    ],
)
def test_a_value_out_of_range_is_refused_naming_file_key_value_and_what_fits(text: str, said: str):
    assert said in refusal(text)


def test_a_default_that_clashes_with_a_given_value_is_shown_as_the_default():
    said = refusal("rounds = 1\n[climb]\nrollouts = 100")

    assert said == "plan.toml: climb.minibatch = 64 (the default) does not fit.\nIt must be a divisor of rollouts."


def test_a_range_checked_from_outside_its_table_shows_the_value_too():
    said = refusal("rounds = 1\n[climb]\nrollouts = 2048")

    assert said == "plan.toml: climb.rollouts = 2048 does not fit.\nIt must be at most 1024."


def test_a_clash_of_two_keys_names_both_without_a_value():
    said = refusal("rounds = 10\nquiet = true")

    assert said == "plan.toml: rounds and quiet does not fit.\nIt must be rounds below 10 when quiet."


def test_a_long_value_is_shortened_to_one_line():
    said = refusal(f'rounds = 1\nmodel = """{"a" * 300}\nb"""')

    shown = said.partition("model = ")[2].partition(" does not fit")[0]
    assert len(shown) == 80
    assert shown.endswith("…")
    assert 'model = "a\\nb"' in refusal('rounds = 1\nmodel = """a\nb"""')


def test_none_is_taken_only_where_it_is_an_option():
    values: dict[str, Any] = {"rounds": 1, "deadline_s": None, "late": None}

    assert build(Plan, values, "plan.toml") == Plan(rounds=1)
    for key in ("title", "device"):
        with pytest.raises(ConfigError, match=f"{key} = None does not fit"):
            build(Plan, {"rounds": 1, key: None}, "plan.toml")


def test_a_field_of_a_type_toml_does_not_know_is_a_fault_in_the_code():
    @dataclass(frozen=True)
    class Odd:
        path: bytes = b""

    with pytest.raises(TypeError, match="path"):
        build(Odd, {"path": "x"}, "plan.toml")


def test_a_missing_file_is_refused_with_the_command_that_writes_one(tmp_path: Path):
    path = tmp_path / "plan.toml"

    with pytest.raises(ConfigError) as e:
        read_toml(path)

    assert str(e.value) == f"{path} does not exist.\nWrite a commented plan with: backflip init {path}"


def test_a_folder_in_place_of_a_plan_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)


@pytest.mark.parametrize("content", [b"rounds = ", b"rounds = 1\nrounds = 2", b"title = \xff", b"title = jokes"])
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path, content: bytes):
    path = tmp_path / "plan.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"plan\.toml is not valid TOML: "):
        read_toml(path)


def test_a_byte_order_mark_from_a_text_editor_is_skipped(tmp_path: Path):
    path = tmp_path / "plan.toml"
    path.write_bytes(b"\xef\xbb\xbfrounds = 1\r\n")

    assert read_toml(path) == {"rounds": 1}
