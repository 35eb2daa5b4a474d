"""`medssl` and `python -m medssl`: the command, or what to do where a package that it needs does not load."""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def main() -> None:
    """Run a command. A package that does not load ends in one line and exit code 4; the doctor goes on without it.

    SIGTERM is as Ctrl-C, which a command may answer by saving.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from medssl.cli import main as run_command

        run_command()
    except KeyboardInterrupt:  # as packages load
        print("medssl: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from medssl.doctor import diagnose, fault_behind, print_findings

        fault = fault_behind(error)
        if fault is None:
            raise
        print(f"medssl: {fault.found}; {fault.fix}", file=sys.stderr)
        if sys.argv[1:2] == ["doctor"]:  # with its defaults: options may be what cannot be read
            print_findings(diagnose(Path()))
        sys.exit(4)


if __name__ == "__main__":
    main()
