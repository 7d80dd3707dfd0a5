"""The server of a run's pages beside the run itself: a process of its own, started anew if it dies."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

from backflip.cli.terminal import Stopped
from backflip.core.errors import BackflipError

if TYPE_CHECKING:
    from backflip.cycle.tools import Watcher

PORT = 8000
TRAINS_AT = 10
"""Niceness of the training process, so that pages answer at once while it keeps every core busy."""
WITHIN_S = 60.0
"""How long a server may take to be there."""
MOST_DEATHS = 5
"""Times in a row that a server is started anew; one that lived for `WITHIN_S` counts as the first again."""


@contextmanager
def served_beside(root: Path, watcher: "Watcher") -> "Iterator[Pages]":
    """Serve the pages of the run in `root` for the block; a server that is there already is left as it is.

    Raises: BackflipError when the server does not come up.
    """
    from backflip.cycle.overview import serving

    pages = Pages(root, watcher)
    if serving(root) is not None:
        watcher.say(f"the pages of {root} are served already")
    else:
        pages.start()
    os.nice(TRAINS_AT)
    try:
        yield pages
    finally:
        pages.stop()


def _port() -> int:
    """The usual port, or any other when it is taken."""
    for wanted in (PORT, 0):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("127.0.0.1", wanted))
            return int(tried.getsockname()[1])
    return PORT


@final
class Pages:
    """The server's process, and who watches over it."""

    def __init__(self, root: Path, watcher: "Watcher") -> None:
        # the same port each time it is started anew: browsers keep unsent votes by address
        self._command = [sys.executable, "-m", "backflip", "rate", str(root), "--port", str(_port())]
        self._root, self._watcher = root, watcher
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it is there. Raises: BackflipError when it ends instead."""
        from backflip.cycle.overview import serving

        child = self._begin()
        until = time.monotonic() + WITHIN_S
        while serving(self._root) is None:
            if child.poll() is not None or time.monotonic() > until:
                self.stop()
                raise BackflipError(
                    f"The pages of {self._root} could not be served.\nThe lines above say why.\n"
                    f"Serve them yourself, then start the run again: backflip rate {self._root} --port 8001"
                )
            time.sleep(0.1)
        threading.Thread(target=self._watch, name="pages", daemon=True).start()

    def stay(self) -> None:
        """Keep serving once the run is finished. Raises: Stopped on Ctrl-C."""
        if self._child is None:
            return
        self._watcher.say("the run is finished; its pages stay up until Ctrl-C")
        try:
            self._stopping.wait()
        except KeyboardInterrupt:
            raise Stopped("stopped serving") from None

    def stop(self) -> None:
        """End the server, if it is ours: it casts what it has been sent, then ends."""
        self._stopping.set()
        child = self._child
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _begin(self) -> "subprocess.Popen[bytes]":
        # its words go where a run's progress goes; Ctrl-C reaches it through us alone
        self._child = subprocess.Popen(self._command, stdout=sys.stderr.fileno(), start_new_session=True)
        return self._child

    def _watch(self) -> None:
        """Start the server anew when it dies."""
        deaths, child = 0, self._child
        while child is not None:
            began = time.monotonic()
            code = child.wait()
            if self._stopping.is_set():
                return
            deaths = 1 if time.monotonic() - began > WITHIN_S else deaths + 1
            if deaths > MOST_DEATHS:
                self._watcher.say(f"the server of the pages died {deaths} times: start it with backflip rate")
                return
            self._watcher.say(f"the server of the pages died (code {code}); it is started anew")
            if self._stopping.wait(min(2.0 ** (deaths - 1), 10.0)):
                return
            child = self._begin()
