"""Errors a user can cure: printed as one message, without a traceback.

A message states the fact, the likely cause and the cure, in that order.
"""


class BackflipError(Exception):
    """A fault the user can cure; the command line prints it plainly and exits with `exit_code`.

    >>> import backflip
    >>> try:
    ...     backflip.open_run("nowhere")
    ... except backflip.BackflipError as e:
    ...     print(e)
    nowhere holds no run: it has no plan.toml.
    Give a run's folder, or none to mean the newest below runs/.
    """

    exit_code = 2


class ConfigError(BackflipError):
    """A plan, prompt file or option that does not fit; names file, key, value and what fits."""


class UnknownKeyError(ConfigError):
    """A plan with a key that this version does not know."""


class DataError(BackflipError):
    """Input that cannot be used (empty, malformed, too long)."""


class BusyError(BackflipError):
    """Another process holds the run folder."""


class Paused(BackflipError):
    """A step waits for people. Nothing is wrong: start again once they have answered.

    >>> import backflip
    >>> try:
    ...     backflip.run_rounds("runs/mine")
    ... except backflip.Paused as e:
    ...     print(e)
    """

    exit_code = 0
