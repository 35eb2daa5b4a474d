"""Errors that are the user's to fix: printed without a traceback, each kind with its exit code.

Anything else that escapes is a bug of ours and keeps its traceback (exit code 1). A message says
where, what was expected, what was found and what to do.
"""


class InputError(Exception):
    """Base of every error that the user can act on."""

    exit_code = 2


class ConfigError(InputError):
    """A wrong command line or configuration."""

    exit_code = 2


class DataError(InputError):
    """A file or dataset that cannot be used."""

    exit_code = 3


class DeviceError(InputError):
    """A device or package that the job needs and the machine lacks."""

    exit_code = 4


class OutOfMemoryError(InputError):
    """The job did not fit into memory."""

    exit_code = 5


class DivergedError(InputError):
    """Training produced non-finite losses."""

    exit_code = 6


class Interrupted(InputError):
    """Stopped by Ctrl-C or SIGTERM, with everything saved."""

    exit_code = 130


class RunsFailed(InputError):
    """Some runs of a matrix failed; the exit code is that of the first."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
