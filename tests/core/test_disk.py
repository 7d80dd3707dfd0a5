"""A disk that takes no more, in the words of every library that meets it."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from backflip.core.disk import disk_told, no_room
from backflip.core.errors import BackflipError, ConfigError
from backflip.core.new_file import write_new


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("File too large (os error 27)"),  # what tokenizers raises
        OSError("100 requested and 12 written"),  # what numpy's tofile raises
    ],
)
def test_a_full_disk_is_recognised(error: Exception) -> None:
    assert no_room(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
        SafetensorError("Error while deserializing header: incomplete metadata"),
        Exception("No such file or directory (os error 2)"),
        ValueError("100 requested"),
    ],
)
def test_another_fault_is_not_blamed_on_the_disk(error: Exception) -> None:
    assert not no_room(error)
    with pytest.raises(type(error)) as raised, disk_told(Path("x")):
        raise error
    assert raised.value is error


def test_what_numpy_says_on_a_full_disk_is_recognised() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="written") as raised:
        np.zeros(1000).tofile(full)
    assert no_room(raised.value)


class Full(io.StringIO):
    """A file whose disk is full, or whose writer is interrupted."""

    error: BaseException = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), BackflipError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_new_file_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: type[BaseException]
) -> None:
    real = Path.open

    def made(self: Path, *args: Any, **more: Any) -> Any:
        real(self, *args, **more).close()
        full = Full()
        full.error = error
        return full

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", made)
        with pytest.raises(expected):
            write_new(tmp_path / "new.txt", "text")
    assert list(tmp_path.iterdir()) == []
    write_new(tmp_path / "new.txt", "text")
    assert (tmp_path / "new.txt").read_text() == "text"


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(ConfigError, match=r"old\.txt exists and is left as it is"):
        write_new(tmp_path / "old.txt", "new")
    assert (tmp_path / "old.txt").read_text() == "old"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Its folder may not exist"):
        write_new(tmp_path / "nowhere" / "new.txt", "new")
