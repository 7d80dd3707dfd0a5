"""Every known form of a row, plain and conversational, and one message for each fault."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backflip.core.errors import BackflipError, DataError
from backflip.data.forms import read_row, recognise
from backflip.data.records import Demonstration, Preference, Record, Request, Thumb
from backflip.data.sources import Row
from backflip.data.table import judgements, pair_thumbs, read_table, table_of, warnings_about

USER, BOT = ("user", "Say hello."), ("assistant", "Hello!")


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def read(row: dict[str, Any]) -> Record:
    return read_row(recognise(row, "rows"), row, "row 1")


def preference(**changes: Any) -> Preference:
    out = read({"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No.", **changes})
    assert isinstance(out, Preference)
    return out


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."},
        {"prompt": turns(USER), "chosen": turns(BOT), "rejected": turns(("assistant", "No."))},
        {"chosen": turns(USER, BOT), "rejected": turns(USER, ("assistant", "No."))},
        {"prompt": "Say hello.", "chosen": turns(USER, BOT), "rejected": turns(USER, ("assistant", "No."))},
        {"chosen": "\n\nHuman: Say hello.\n\nAssistant: Hello!", "rejected": "\n\nHuman: Say hello.\n\nAssistant: No."},
    ],
    ids=["plain", "messages", "shared beginning", "prompt and conversations", "transcripts"],
)
def test_a_preference_is_the_same_in_every_form(row: dict[str, Any]) -> None:
    out = read(row)

    assert isinstance(out, Preference)
    assert (out.prompt, out.chosen, out.rejected) == ((USER,), "Hello!", "No.")
    assert (out.rater, out.tie, out.strength, out.split) == ("", False, None, None)


def test_the_conversation_that_leads_to_a_prompt_is_part_of_it() -> None:
    again = ("user", "Again.")
    sides = [turns(USER, BOT, again, ("assistant", said)) for said in ("Hi!", "No.")]
    out = read({"prompt": "Again.", "chosen": sides[0], "rejected": sides[1]})

    assert isinstance(out, Preference)
    assert (out.prompt, out.chosen, out.rejected) == ((USER, BOT, again), "Hi!", "No.")


def test_extra_columns_are_kept() -> None:
    out = preference(rater=7, tie="yes", strength=2.0, split="validation", shown_first="rejected", rater_kind="judge")

    assert (out.rater, out.tie, out.strength, out.split) == ("7", True, 2, "monitor")
    assert (out.shown_first, out.rater_kind) == ("rejected", "judge")


def test_an_answer_may_be_empty_where_the_row_says_that_it_ended() -> None:
    assert preference(rejected="", rejected_ended=True).rejected == ""
    with pytest.raises(DataError, match="rejected is empty"):
        preference(rejected="", rejected_ended=False)


def test_a_row_that_lacks_a_side_is_told() -> None:
    with pytest.raises(DataError, match="rejected is missing"):
        read_row("preferences", {"prompt": "p", "chosen": "a"}, "row 1")


def test_columns_of_the_same_name_that_mean_something_else_are_left_alone() -> None:
    out = preference(pair=[1], reason=3.5, at="yesterday", latency_s=float("nan"), ranking=True)

    assert (out.pair, out.reason, out.at, out.latency_s, out.ranking) == ("", "", None, None, "")


def test_a_prompt_of_several_turns_is_kept_whole() -> None:
    said = (("system", "Be brief."), USER, BOT, ("user", "Again."))
    out = read({"prompt": turns(*said), "chosen": "Hi!", "rejected": "No."})

    assert isinstance(out, Preference)
    assert out.prompt == said


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "Say hello.", "completion": "Hello!", "label": True}, Thumb),
        ({"prompt": "Say hello.", "completion": "Hello!"}, Demonstration),
        ({"messages": turns(USER, BOT)}, Demonstration),
        ({"messages": turns(USER)}, Request),
        ({"prompt": "Say hello."}, Request),
        ({"prompt": turns(("system", "Be kind."), USER)}, Request),
    ],
)
def test_the_form_is_told_by_the_columns(row: dict[str, Any], kind: type) -> None:
    out = read(row)

    assert isinstance(out, kind)
    assert out.prompt[-1] == USER


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "x", "answer": "y"}, r"has no form that is known\. The columns it has: question, answer\."),
        ({"prompt": "p", "chosen": "a"}, "is one-sided: it has chosen answers and nothing they were compared with"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt is empty"),
        ({"prompt": "p", "chosen": "  ", "rejected": "b"}, "chosen is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen is equal to rejected"),
        ({"prompt": "p", "chosen": 3, "rejected": "a"}, "chosen is 3, which is no text"),
        ({"prompt": "p", "chosen": "a\ud800", "rejected": "b"}, "half a character"),
        ({"prompt": turns(USER, BOT), "chosen": "a", "rejected": "b"}, "ends with what the assistant says"),
        ({"prompt": [{"role": "bot", "content": "x"}], "chosen": "a", "rejected": "b"}, "has no role of system, user"),
        ({"prompt": "p", "chosen": turns(USER), "rejected": "b"}, "chosen is not one answer to the prompt"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "tie": "perhaps"}, "tie is neither true nor false"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "tie": 10**5000}, "tie is neither true nor false"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "split": "extra"}, "split does not fit"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "rater": ["x"]}, "rater does not fit"),
        ({"prompt": "p", "completion": "a", "label": "good"}, "label is neither true nor false"),
        ({"chosen": "Good day", "rejected": "Bad day"}, "there is no prompt"),
    ],
)
def test_a_row_that_does_not_fit_is_told_in_three_lines(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as told:
        read(row)
    assert len(str(told.value).splitlines()) == 3


@pytest.mark.parametrize("strength", [4, 0, 0.7, 1.5, 10**400, "much", True, [1], math.inf])
def test_a_strength_on_another_scale_is_left_out_and_told_once(strength: Any) -> None:
    column = [strength, 3, strength, math.nan]
    rows = [{"prompt": "p", "chosen": f"a{n}", "rejected": f"b{n}", "strength": said} for n, said in enumerate(column)]
    table = table_of((Row(f"row {n}", row, None) for n, row in enumerate(rows, 1)), "rows")

    assert [r.strength for r in table.records if isinstance(r, Preference)] == [None, 3, None, None]
    assert table.left_out == []
    assert [w for w in table.warnings if "strength" in w] == [
        "strength is not 1, 2 or 3 in 2 of 4 rows, first row 1: ignored there"
    ]


def test_a_prompt_only_file_given_as_preferences_names_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Say hello.", "topic": "hello"}\n')

    with pytest.raises(DataError, match=r"needs the columns chosen, rejected\.\nThe columns it has: prompt, topic"):
        read_table(str(file), "preferences")


def test_bad_rows_are_left_out_only_when_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a", "rejected": "a"}]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + "nonsense\n")

    with pytest.raises(DataError, match="line 2: chosen is equal to rejected"):
        read_table(str(file))
    table = read_table(str(file), skip_bad=True)
    assert len(table.records) == 1
    assert [w.partition(": ")[0].rpartition(", ")[2] for w in table.left_out] == ["line 2", "column 1 is not JSON"]


def test_one_sided_preferences_are_refused() -> None:
    rows = [preference(chosen="Yes.", rejected=f"No {n}.") for n in range(4)]

    with pytest.raises(DataError, match="one-sided: chosen is the same text in all 4 rows"):
        warnings_about(rows, "rows")
    assert warnings_about(rows[:3], "rows") == []


def test_a_side_that_is_always_longer_is_worth_a_warning() -> None:
    rows = [preference(prompt=f"p{n}", chosen=f"a much longer answer {n}", rejected=f"s{n}") for n in range(20)]

    assert warnings_about(rows, "rows") == [
        "every chosen answer is longer than the rejected one: a reward may learn length alone"
    ]
    assert warnings_about(rows[:-1], "rows") == []


def test_what_one_rater_says_twice_counts_once_and_what_contradicts_it_is_told() -> None:
    said = [
        preference(rater="ann"),
        preference(rater="ann"),
        preference(rater="bob"),
        preference(rater="ann", chosen="No.", rejected="Hello!"),
    ]
    out = judgements(said)

    assert [p.rater for p in out.kept] == ["ann", "bob"]
    assert out.repeated == 1
    assert len(out.against) == 1


def thumb(prompt: str, answer: str, up: bool, where: str, rater: str = "") -> Thumb:
    return Thumb(where=where, prompt=(("user", prompt),), answer=answer, up=up, rater=rater)


def test_liked_answers_meet_disliked_ones_of_the_same_prompt_and_rater() -> None:
    # p: two liked, three disliked make max(2, 3) pairs; q has liked ones only; ann's and bob's never meet
    thumbs = [thumb("p", f"good {n}", True, f"g{n}", "ann") for n in range(2)]
    thumbs += [thumb("p", f"bad {n}", False, f"b{n}", "ann") for n in range(3)]
    thumbs += [thumb("q", "good", True, "q", "ann"), thumb("p", "worst", False, "w", "bob")]

    pairs, left = pair_thumbs(thumbs)

    assert [(p.chosen, p.rejected) for p in pairs] == [("good 0", "bad 0"), ("good 1", "bad 1"), ("good 0", "bad 2")]
    assert left == 2


def test_labels_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(DataError, match="All 2 labels are true"):
        pair_thumbs([thumb("p", "good", True, "1"), thumb("p", "better", True, "2")])


def test_thumbs_that_never_meet_are_refused() -> None:
    with pytest.raises(DataError, match="No prompt has both"):
        pair_thumbs([thumb("p", "good", True, "1"), thumb("q", "bad", False, "2")])


_TEXTS = st.text(max_size=12)
_WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
_TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": _TEXTS}),
    max_size=4,
)
_NAMES = st.sampled_from(
    ["prompt", "chosen", "rejected", "completion", "label", "messages", "rater", "tie", "strength", "split",
     "shown_first", "chosen_ended", "rater_kind", "other"]
)  # fmt: skip


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(_NAMES, _WILD | _TURNS | _TEXTS, max_size=7))
def test_whatever_a_row_holds_it_is_read_or_refused_in_plain_words(row: dict[str, Any]) -> None:
    try:
        out = read(row)
    except BackflipError as e:
        told = str(e).splitlines()
    else:
        told = ["fact", "cure"] if out.prompt[-1][0] == "user" else []
    assert len(told) >= 2


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=60)
    | st.lists(st.dictionaries(_NAMES, _WILD, max_size=3), max_size=3).map(
        lambda rows: "".join(json.dumps(r) + "\n" for r in rows).encode()
    )
)
def test_whatever_a_file_holds_it_is_read_or_refused_in_plain_words(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "wild.jsonl"
    file.write_bytes(content)
    told = str(file)
    try:
        read_table(str(file), skip_bad=True)
    except BackflipError as e:
        told = str(e)
    assert str(file) in told
