"""Where the process begins: Ctrl-C and SIGTERM stop it cleanly from its first moment on, also while torch is imported.

Nothing heavy is imported here before the signals are taken over.
"""

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, final

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

STOPPED = "stopped"
CARRIES_ON = "stopped; the same command carries on"
CARRYING = ("run", "demo")
"""Commands that leave something to carry on."""
SHOW_CURSOR = "\x1b[?25h"


def stopped() -> str:
    """What is said after a stop. What command it was is read off the process: none may have begun yet."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    return CARRIES_ON if command in CARRYING else STOPPED


@final
class Stop:
    """Takes signals: the first one unwinds what is under way, a second one leaves at once.

    Leaving at once is safe, as a kill is: whatever a run writes is there whole or not at all.
    """

    number: int | None = None
    """The signal that came; None while none has."""
    over: bool = False
    """Whether the command has ended: signals change nothing then, while Python clears away."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal. Raises: KeyboardInterrupt."""
        if self.over:
            return
        if self.number is not None:
            self.leave()
        self.number = number
        raise KeyboardInterrupt

    def unraisable(self, hook: "UnraisableHookArgs") -> None:
        """Leave when the interrupt fell into code that swallows it, such as a `__del__` or a weak reference."""
        if self.number is not None and issubclass(hook.exc_type, KeyboardInterrupt):
            self.leave()
        sys.__unraisablehook__(hook)

    def leave(self) -> NoReturn:
        """End the process now."""
        os.write(2, f"{SHOW_CURSOR if os.isatty(2) else ''}{stopped()}\n".encode())
        os._exit(self.code)

    @property
    def code(self) -> int:
        """The exit code after the signal, as shells have it."""
        return 128 + (self.number or signal.SIGINT)


STOP = Stop()


def main() -> int:
    """Run the command in `sys.argv`; the process's exit code."""
    try:
        sys.unraisablehook = STOP.unraisable
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, STOP)
        from backflip.cli.main import main as run

        code = run()
        STOP.over = True
    except BaseException:  # what an import makes of an interrupt may be of any kind
        if STOP.number is None:
            raise
        STOP.over = True
        os.write(2, f"{stopped()}\n".encode())
        code = STOP.code
    return code if STOP.number is None else STOP.code
