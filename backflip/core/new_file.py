"""A text file that a user asked for: new, and whole or not there."""

import errno
from pathlib import Path

from backflip.core.disk import disk_error, no_room
from backflip.core.errors import ConfigError


def write_new(path: Path, text: str) -> None:
    """Write `text` to the new file `path`.

    Raises: ConfigError when it exists or its folder does not; BackflipError when the disk cannot take it.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        raise ConfigError(
            f"{path} exists and is left as it is.\nNothing that is there is ever written over.\nGive another name."
        ) from None
    except OSError as e:
        if no_room(e) and e.errno != errno.EACCES:
            raise disk_error(path, e, "Free some space, or give a path on another disk.") from None
        raise ConfigError(
            f"{path} cannot be written: {e.strerror}.\nIts folder may not exist, or not be yours to write to.\n"
            "Give a path in a folder that exists."
        ) from None
