"""Which signals ask a command to save and end; standard library alone, for it is loaded first."""

from __future__ import annotations

import signal

_HANGUP = getattr(signal, "SIGHUP", None)  # where a terminal or a connection is lost; Windows has none
ALL = tuple(signum for signum in (signal.SIGINT, signal.SIGTERM, _HANGUP) if signum is not None)
"""What may be sent to every process of a command."""


def hangups() -> tuple[signal.Signals, ...]:
    """SIGHUP; nothing where it is to be ignored, as under nohup, or is unknown."""
    return () if _HANGUP is None or signal.getsignal(_HANGUP) == signal.SIG_IGN else (_HANGUP,)
