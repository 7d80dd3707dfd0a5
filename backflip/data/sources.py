"""Where rows come from: JSON lines, JSON, CSV and Parquet files, folders of them, and the Hub.

Files are read as they stand, without a copy in a cache and without guesses at types, so that a message
can name the line. Hub data sets, and folders that `datasets` wrote, are read by `datasets`.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from backflip.core.errors import DataError
from backflip.core.records import Split

KNOWN = "JSON lines (.jsonl), JSON (.json), CSV (.csv), Parquet (.parquet)"
CARD_TITLE = "# Judgements collected with Backflip"
"""By this line of its README.md a folder is known that Backflip exported: its votes are imported, not its answers,
nor what people wrote."""
DEMONSTRATIONS = "demonstrations"
"""Name, without its ending, of the file of written answers in such a folder."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]")
_SPLIT_NAMES: Mapping[str, Split | None] = {
    "train": None,
    "validation": "monitor",
    "valid": "monitor",
    "val": "monitor",
    "dev": "monitor",
    "monitor": "monitor",
    "test": "final",
    "final": "final",
}
"""What the parts of a data set usually are called; None leaves it to each row."""


class Row(NamedTuple):
    """One row as it stands in a source."""

    where: str
    """File and line, or data set and row."""
    values: dict[str, Any]
    split: Split | None
    """What its file or its part of the data set says; None when that says nothing."""


def read_rows(source: str, part: str | None = None) -> Iterator[Row | DataError]:
    """The rows of `source`: a file, a folder of files, or the id of a data set on the Hub.

    `part` names one split of a Hub data set, also with a slice as "train[:500]". A row that cannot be read
    while those after it can is given as the error it is.
    Raises: DataError when the source is not there or is no data set.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _folder(path, part)
        if path.exists():
            _no_part(part, source)
            return _file(path, None)
    except OSError as e:  # a name too long to be one, or a folder above that must not be entered
        raise _unreadable(source, e) from None
    if path.suffix.lower() not in _READERS and _HUB_ID.fullmatch(source):
        return _hub(source, part)
    raise DataError(
        f"{source[:200]} does not exist.\nNo file or folder has this name here, and it is no Hub id (owner/name).\n"
        "Check the path; relative paths begin at the folder you are in."
    )


def split_named(name: str) -> Split | None:
    """The split a file or part name speaks of: "test-00000-of-00001" is final; None when it is train.

    Raises: KeyError when it speaks of none.
    """
    words = re.split(r"[^a-z]+", name.lower())
    for word in words:
        if word in _SPLIT_NAMES:
            return _SPLIT_NAMES[word]
    raise KeyError(name)


def _no_part(part: str | None, source: str) -> None:
    if part is not None:
        raise DataError(
            f"--split {part} does not go with {source}: it is a file.\nOnly data sets on the Hub have named parts.\n"
            "Leave --split out; a column `split` says what each row is for."
        )


def _file(path: Path, split: Split | None) -> Iterator[Row | DataError]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} is no data set that can be read: its name ends in {path.suffix or 'nothing'}.\n"
            f"Known are {KNOWN}, folders of such files, and Hub ids.\nSave it as one of these."
        )
    return reader(path, split)


def _folder(path: Path, part: str | None) -> Iterator[Row | DataError]:
    """All files of a known kind below a folder, by name; a folder of `datasets` as it was saved.

    Of a folder that Backflip exported only the votes: the answers beside them are no judgements.
    """
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved(path, part)
    _no_part(part, str(path))
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix.lower() in _READERS)
    if _exported(path):
        files = [f for f in files if f.parent != path or f.stem not in ("samples", DEMONSTRATIONS)]
    if not files:
        raise DataError(
            f"{path} holds no file of a known kind.\nKnown are {KNOWN}.\nGive the folder that holds the files."
        )
    return _files(files)


def _exported(path: Path) -> bool:
    """Whether a folder is a data set that Backflip wrote."""
    card = path / "README.md"
    with _told(card):
        return card.is_file() and CARD_TITLE in card.read_text("utf-8", errors="replace")


def _files(files: list[Path]) -> Iterator[Row | DataError]:
    for file in files:
        try:
            split = split_named(file.stem)
        except KeyError:
            split = None
        yield from _file(file, split)


def _json_lines(path: Path, split: Split | None) -> Iterator[Row | DataError]:
    """One object a line, or one list of objects in the whole file."""
    with _told(path), path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        file.seek(0)
        if start == b"[":
            yield from _json_list(path, file.read(), split)
            return
        for number, line in enumerate(file, 1):
            raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if raw.strip():
                where = f"{path}, line {number}"
                try:
                    yield _object(_parsed(raw.rstrip(b"\r\n"), where), where, split)
                except DataError as e:
                    yield e


def _json_list(path: Path, raw: bytes, split: Split | None) -> Iterator[Row | DataError]:
    values = _parsed(raw.removeprefix(b"\xef\xbb\xbf"), str(path))
    for number, value in enumerate(values, 1):
        try:
            yield _object(value, f"{path}, row {number}", split)
        except DataError as e:
            yield e


def _parsed(raw: bytes, where: str) -> Any:
    """One JSON value. Raises: DataError that says where it goes wrong."""
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise _not_utf8(where, e) from None
    except json.JSONDecodeError as e:
        at = f"column {e.colno}" if e.lineno == 1 else f"line {e.lineno}, column {e.colno}"
        raise DataError(
            f"{where}, {at} is not JSON: {e.msg}.\nA bracket or quote may be missing, or the file is cut off.\n"
            "Correct it, or leave such rows out with --skip-bad."
        ) from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets thousands deep
        raise DataError(
            f"{where} is not JSON that can be read.\nIt holds a number or a nesting beyond all measure.\n"
            "Correct it, or leave such rows out with --skip-bad."
        ) from None


def _object(value: Any, where: str, split: Split | None) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{where} is JSON, but no object in braces.\nEvery row names its columns.\n"
            'Write it like {"prompt": "...", "chosen": "...", "rejected": "..."}'
        )
    return Row(where, value, split)


def _csv(path: Path, split: Split | None) -> Iterator[Row | DataError]:
    """A header, then one row a line (quoted cells may hold line breaks); an empty cell says nothing."""
    try:
        with _told(path), path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, strict=True)
            for row in lines:
                where = f"{path}, line {lines.line_num}"
                if None in row:
                    yield DataError(
                        f"{where} has more cells than the header.\nA comma in a text may stand outside quotes.\n"
                        'Put texts in quotes ("..."), or leave such rows out with --skip-bad.'
                    )
                else:
                    yield Row(where, {k: v for k, v in row.items() if v}, split)
    except UnicodeDecodeError:
        raise _line_not_utf8(path) from None
    except csv.Error as e:
        raise DataError(
            f"{path} is not CSV that can be read: {e}.\nA quote may be missing, or a cell is too long.\n"
            "Correct it, or save the table as JSON lines."
        ) from None


def _parquet(path: Path, split: Split | None) -> Iterator[Row | DataError]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise _no_package(str(path), "pyarrow") from None
    try:
        with _told(path), ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(1000):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", values, split)
    except (ArrowException, ValueError) as e:
        raise DataError(
            f"{path} is not Parquet that can be read: {_first(e)}.\nThe file may be cut off, or be of another kind.\n"
            "Fetch or write it again."
        ) from None


_READERS: Mapping[str, Callable[[Path, Split | None], Iterator[Row | DataError]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _hub(source: str, part: str | None) -> Iterator[Row | DataError]:
    """A data set on the Hub, kept by `datasets` in its cache."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    datasets = _datasets(source)
    from huggingface_hub.errors import HfHubHTTPError

    datasets.disable_progress_bars()
    try:
        found: Any = datasets.load_dataset(source, split=part)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, HfHubHTTPError) as e:
        raise DataError(
            f"{source} could not be read from the Hub: {_first(e)}.\n"
            "It is no file here; the Hub may be out of reach, the name or --split wrong, or the data set private.\n"
            "Check the spelling and the network, or download it and give the files."
        ) from None
    return _parts(found, source)


def _saved(path: Path, part: str | None) -> Iterator[Row | DataError]:
    """A folder written by `datasets` (`save_to_disk`)."""
    datasets = _datasets(str(path))
    try:
        found: Any = datasets.load_from_disk(str(path))
        return _parts(found if part is None else found[part], str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, datasets.exceptions.DatasetsError) as e:
        raise DataError(
            f"{path} could not be read as a folder of the package datasets: {_first(e)}.\n"
            "A file in it is missing or damaged, or --split names no part of it.\nSave it again."
        ) from None


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise _no_package(source, "datasets") from None
    return datasets


def _no_package(source: str, package: str) -> DataError:
    return DataError(
        f"{source} cannot be read: the package {package} is not installed.\n"
        "It is left out of a plain install, because it is large.\nInstall it with: pip install 'backflip[data]'"
    )


def _parts(found: Any, source: str) -> Iterator[Row | DataError]:
    """The rows of one part, or of all parts of a data set whose names say what they are for."""
    if not hasattr(found, "items"):
        return _numbered(found, source, None)
    try:
        splits = {name: split_named(name) for name in found}
    except KeyError:
        raise DataError(
            f"{source} has the parts {', '.join(found)}.\nNot all of these names say what a part is for.\n"
            f"Choose one with --split, as in: --split {next(iter(found))}"
        ) from None
    return (row for name, split in splits.items() for row in _numbered(found[name], f"{source} ({name})", split))


def _numbered(rows: Any, source: str, split: Split | None) -> Iterator[Row]:
    return (Row(f"{source}, row {n}", dict(values), split) for n, values in enumerate(rows, 1))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn a disk's refusal into a DataError."""
    try:
        yield
    except OSError as e:
        raise _unreadable(str(path), e) from None


def _unreadable(source: str, e: OSError) -> DataError:
    return DataError(
        f"{source[:200]} cannot be read: {e.strerror or _first(e)}.\nYou may lack the right to, or the disk is gone.\n"
        "Check the path and your rights on it."
    )


def _not_utf8(where: str, e: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{where} is not UTF-8 (byte {e.start + 1}).\nIt was saved in another encoding, such as Latin-1 or UTF-16.\n"
        "Save the file as UTF-8."
    )


def _line_not_utf8(path: Path) -> DataError:
    """The error for a text file that is not UTF-8 somewhere."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as e:
            return _not_utf8(f"{path}, line {number}", e)
    raise AssertionError("a file that cannot be decoded has a line that cannot")


def _first(e: Exception) -> str:
    """The first line of an error, without its full stop."""
    lines = str(e).strip().splitlines()
    return (lines[0][:300].rstrip(".") if lines else type(e).__name__) or type(e).__name__
