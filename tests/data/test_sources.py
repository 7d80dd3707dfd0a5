"""Rows from every kind of source, and one clear message for each that cannot be read."""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backflip.core.errors import DataError
from backflip.data.sources import Row, read_rows, split_named

ROWS = [{"prompt": "one", "completion": "a"}, {"prompt": "two", "completion": "b"}]


def values(source: Path | str, part: str | None = None) -> list[dict[str, Any]]:
    out = []
    for row in read_rows(str(source), part):
        assert isinstance(row, Row), row
        out.append(row.values)
    return out


def all_or_raise(source: Path) -> None:
    for row in read_rows(str(source)):
        if isinstance(row, DataError):
            raise row


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_same_rows_come_from_every_kind_of_file(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    files = [
        write(tmp_path / "d.jsonl", lines(ROWS)),
        write(tmp_path / "d.json", json.dumps(ROWS)),
        write(tmp_path / "marked.jsonl", b"\xef\xbb\xbf" + lines(ROWS).encode()),
        write(tmp_path / "blank.jsonl", "\n" + lines(ROWS).replace("\n", "\r\n\n")),
        write(tmp_path / "d.csv", 'prompt,completion\none,a\n"two",b\n'),
        tmp_path / "d.parquet",
    ]

    assert [values(f) for f in files] == [ROWS] * 6


def test_a_folder_gives_its_files_by_name_and_their_names_say_the_split(tmp_path: Path) -> None:
    write(tmp_path / "train-00000.jsonl", lines(ROWS[:1]))
    write(tmp_path / "deep" / "validation.jsonl", lines(ROWS[1:]))
    write(tmp_path / "README.md", "not data")

    rows = list(read_rows(str(tmp_path)))

    assert [(r.values["prompt"], r.split) for r in rows if isinstance(r, Row)] == [("two", "monitor"), ("one", None)]


def test_a_folder_saved_by_datasets_is_read_part_by_part(tmp_path: Path) -> None:
    parts = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    parts.save_to_disk(str(tmp_path / "saved"))

    rows = [r for r in read_rows(str(tmp_path / "saved")) if isinstance(r, Row)]

    assert [(r.values["prompt"], r.split) for r in rows] == [("one", None), ("two", None), ("one", "final")]
    assert values(tmp_path / "saved", "test") == ROWS[:1]
    with pytest.raises(DataError, match=r"(?s)could not be read as a folder of the package datasets.*--split"):
        read_rows(str(tmp_path / "saved"), "nope")


def test_a_hub_that_is_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'somebody/preferences' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)

    with pytest.raises(DataError, match=r"(?s)could not be read from the Hub: Couldn't reach.*Check the spelling"):
        read_rows("somebody/preferences")


def test_a_hub_id_is_loaded_by_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, split: str | None) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)

    assert values("somebody/preferences", "train[:2]") == ROWS
    assert asked == [("somebody/preferences", "train[:2]")]


def test_without_the_package_the_way_to_install_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(DataError, match=r"pyarrow is not installed[\s\S]*pip install 'backflip\[data\]'"):
        list(read_rows(str(write(tmp_path / "d.parquet", b"PAR1"))))
    with pytest.raises(DataError, match="datasets is not installed"):
        read_rows("somebody/preferences")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.jsonl", '{"a": 1}\n{"a": \n', r"d\.jsonl, line 2, column 7 is not JSON: .*\n.*cut off.*\n.*--skip-bad"),
        ("d.jsonl", b'{"a": 1}\n\xff\xfe\n', r"d\.jsonl, line 2 is not UTF-8 \(byte 1\)"),
        ("d.jsonl", "3\n", r"line 1 is JSON, but no object in braces"),
        ("d.json", '[{"a": 1}, 2]', r"d\.json, row 2 is JSON, but no object"),
        ("d.jsonl", "[" * 100_000, r"nesting beyond all measure"),
        ("d.jsonl", '{"a": ' + "9" * 5000 + "}", r"beyond all measure"),
        ("d.csv", b"prompt\n\xff\n", r"d\.csv, line 2 is not UTF-8"),
        ("d.csv", "prompt\na,b\n", r"line 2 has more cells than the header"),
        ("d.csv", 'prompt\n"a"b\n', r"is not CSV that can be read"),
        ("d.parquet", "PAR1 nothing", r"d\.parquet is not Parquet that can be read"),
        ("d.txt", "hello", r"(?s)its name ends in \.txt.*Known are JSON lines"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(DataError, match=words):
        all_or_raise(file)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.jsonl", r"nowhere\.jsonl does not exist"),
        ("x" * 5000, "cannot be read|does not exist"),
        (".", "holds no file of a known kind"),
    ],
)
def test_a_source_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        read_rows(source)


def test_a_part_is_refused_for_files(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", lines(ROWS))
    for source in (file, tmp_path):
        with pytest.raises(DataError, match="--split train does not go with"):
            read_rows(str(source), "train")


@pytest.mark.parametrize(
    ("name", "split"),
    [("train-00001-of-00002", None), ("validation", "monitor"), ("my_test_set", "final"), ("Dev", "monitor")],
)
def test_usual_names_of_parts_are_understood(name: str, split: str | None) -> None:
    assert split_named(name) == split


def test_other_names_are_not_guessed_at() -> None:
    with pytest.raises(KeyError):
        split_named("attestation")
