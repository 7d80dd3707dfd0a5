"""When a disk takes no more: how that is recognised, whatever library tells it, and what is said."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backflip.core.errors import BackflipError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the system says when a disk cannot take a file."""
FREE = "Free some space, then start again with the same command: it carries on."
_RUST = re.compile(r"\(os error (\d+)\)")
_SHORT = re.compile(r"^\d+ requested and \d+ written$")


def no_room(error: BaseException) -> bool:
    """Whether an exception says that the disk is full or must not be written.

    safetensors and tokenizers tell it in words ("os error 28"), numpy's `tofile` in how much it wrote.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in NO_ROOM
    words = str(error)
    return any(int(number) in NO_ROOM for number in _RUST.findall(words)) or bool(_SHORT.match(words))


def disk_error(path: Path, cause: BaseException, cure: str = FREE) -> BackflipError:
    """The message for a disk that cannot take `path`."""
    return BackflipError(
        f"{path} could not be saved: {cause}.\n"
        f"The disk is full or not writable; what was saved before is intact.\n{cure}"
    )


@contextmanager
def disk_told(path: Path, cure: str = FREE) -> Iterator[None]:
    """Tell plainly that the disk cannot take `path`. Raises: BackflipError in place of what the library raised."""
    try:
        yield
    except BackflipError:
        raise
    except Exception as e:
        if not no_room(e):
            raise
        raise disk_error(path, e, cure) from e
