"""The signals that ask a command to save and end. Standard library alone, because this is loaded first."""

from __future__ import annotations

import signal

_HANGUP = getattr(signal, "SIGHUP", None)  # where a terminal or a connection is lost; Windows has none
ALL = tuple(signum for signum in (signal.SIGINT, signal.SIGTERM, _HANGUP) if signum is not None)
"""Signals that may be sent to every process of a command."""


def hangups() -> tuple[signal.Signals, ...]:
    """Return SIGHUP, or nothing if it is ignored, as under nohup, or does not exist."""
    return () if _HANGUP is None or signal.getsignal(_HANGUP) == signal.SIG_IGN else (_HANGUP,)
