import json
from collections import Counter
from pathlib import Path

import pytest

from backflip.core.errors import DataError
from backflip.tasks.prompt_file import load_prompt_file, split_of

REST = '{"prompt": "b", "split": "monitor"}\n{"prompt": "c", "split": "final"}\n'


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "own.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_full_line_is_read_as_it_stands(tmp_path: Path):
    line = {"prompt": " Thank her. ", "id": "x", "split": "train", "topic": "thank", "form": "sentence", "source": "me"}

    first = load_prompt_file(written(tmp_path, json.dumps(line) + "\n" + REST))[0]

    assert (first.id, first.split, first.text, first.topic, first.form) == (
        "x",
        "train",
        "Thank her.",
        "thank",
        "sentence",
    )


def test_a_byte_order_mark_and_windows_line_ends_and_empty_lines_are_read(tmp_path: Path):
    raw = b"\xef\xbb\xbf" + ('{"prompt": "ä", "split": "train"}\n\n' + REST).replace("\n", "\r\n").encode()

    assert [p.text for p in load_prompt_file(written(tmp_path, raw))] == ["ä", "b", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', r"own.jsonl, line 2, column 15 is not JSON"),
        ("hello", "line 2, column 1 is not JSON"),
        ('["a"]', "line 2 is JSON, but not an object"),
        ("[" * 100_000, "line 2 is not JSON that can be read"),
        ('{"prompt": ' + "1" * 5000 + "}", "line 2 is not JSON that can be read"),
        ('{"text": "a"}', "line 2: prompt is missing"),
        ('{"prompt": "  "}', "line 2: prompt is empty"),
        ('{"prompt": 7}', "line 2: prompt = 7 does not fit.\nIt must be a text"),
        (
            '{"prompt": "a", "split": "test"}',
            'line 2: split = "test" does not fit.\nIt must be one of train, mon',
        ),
        ('{"prompt": "a", "topic": ["x"]}', r"line 2: topic = \['x'\] does not fit"),
        (
            '{"prompt": "a", "form": "sonnet"}',
            'line 2: form = "sonnet" does not fit.\nIt must be one of list, or',
        ),
        ('{"prompt": "a", "id": "one"}', "line 2: the same id one stands in line 1"),
        ('{"prompt": "first"}', "line 2: the same prompt stands in line 1"),
        (r'{"prompt": "\ud800"}', "line 2: prompt holds half a character"),
        ('{"prompt": "\xff"}'.encode("latin-1"), "line 2 is not UTF-8"),
    ],
)
def test_a_bad_line_is_refused_by_number(tmp_path: Path, line: str | bytes, message: str):
    raw = line if isinstance(line, bytes) else line.encode()
    path = written(tmp_path, b'{"prompt": "first", "id": "one", "split": "train"}\n' + raw + b"\n" + REST.encode())

    with pytest.raises(DataError, match=message):
        load_prompt_file(path, forms=("list", ""))


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str):
    with pytest.raises(DataError, match="own.jsonl holds no prompts"):
        load_prompt_file(written(tmp_path, text))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="gone.jsonl does not exist"):
        load_prompt_file(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        load_prompt_file(tmp_path)


def test_a_file_that_leaves_a_split_empty_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no prompt for the split train \(2 in all\)"):
        load_prompt_file(written(tmp_path, REST))


def test_prompts_without_a_split_are_divided_60_20_20_by_their_text():
    counts = Counter(split_of(f"Request number {i}") for i in range(2000))

    # standard deviation of 1200: sqrt(2000 * 0.6 * 0.4) = 22; of 400: 18
    assert counts["train"] == pytest.approx(1200, abs=66)
    assert counts["monitor"] == pytest.approx(400, abs=54)
    assert counts["final"] == pytest.approx(400, abs=54)


def test_a_prompt_keeps_its_split_and_id_when_the_file_changes(tmp_path: Path):
    rows = [json.dumps({"prompt": f"Request number {i}"}) for i in range(40)]
    whole = {p.text: p for p in load_prompt_file(written(tmp_path, "\n".join(rows)))}

    fewer = load_prompt_file(written(tmp_path, "\n".join(reversed(rows[5:]))))

    assert len(fewer) == 35
    assert all(whole[p.text] == p for p in fewer)


def test_a_prompt_has_the_same_split_on_every_machine():
    # drawn once and written down
    assert [split_of(f"Request number {i}") for i in range(4)] == ["monitor", "final", "train", "final"]
