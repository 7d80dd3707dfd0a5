"""Errors a user can cure: printed as one message, without a traceback.

A message states the fact, the likely cause and the cure, in that order.
"""


class BackflipError(Exception):
    """A fault the user can cure; the command line prints it plainly and exits with `exit_code`."""

    exit_code = 2


class ConfigError(BackflipError):
    """A plan, prompt file or option that does not fit; names file, key, value and what fits."""


class DataError(BackflipError):
    """Input that cannot be used (empty, malformed, too long)."""


class BusyError(BackflipError):
    """Another process holds the run folder."""


class Paused(BackflipError):
    """A step waits for people. Nothing is wrong: start again once they have answered."""

    exit_code = 0
