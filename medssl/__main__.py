"""`medssl` and `python -m medssl`: run the command, or say what to do if a package that it needs does not load."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from medssl.signals import hangups


def main() -> None:
    """Run a command. If a package does not load, print one line and exit with code 4; `doctor` still runs.

    SIGTERM and SIGHUP act like Ctrl-C, which a command may answer by saving.
    """
    for signum in (signal.SIGTERM, *hangups()):
        signal.signal(signum, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # text that the terminal cannot show must not end a job
    heard = sys.stderr
    if heard is not None:  # None if there is no standard error from the start
        sys.stderr = cast(TextIO, _Unbroken(heard))
    try:
        from medssl.cli import main as run_command

        run_command()
    except KeyboardInterrupt:  # while packages load
        print("medssl: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from medssl.doctor import diagnose, fault_behind, print_findings

        fault = fault_behind(error)
        if fault is None:
            raise
        print(f"medssl: {fault.found}; {fault.fix}", file=sys.stderr)
        if sys.argv[1:2] == ["doctor"]:  # with default options, because parsing them may be what fails
            print_findings(diagnose(Path()))
        sys.exit(4)
    finally:
        sys.stderr = heard


class _Unbroken:
    """A stream whose reader may be gone, as `tee` after Ctrl-C or a lost connection, without ending the job."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, RuntimeError):  # the latter if a signal comes while a line is written
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, RuntimeError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


if __name__ == "__main__":
    main()
