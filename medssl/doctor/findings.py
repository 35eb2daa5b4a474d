"""The findings of `medssl doctor`: a state, a topic and a sentence each, for a terminal, a pipe or JSON."""

from __future__ import annotations

import contextlib
import io
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medssl.environment import environment

State = Literal["ok", "note", "fault"]

_STYLES = {"ok": "green", "note": "yellow", "fault": "bold red"}
_INDENT = 17


@dataclass(frozen=True)
class Finding:
    """One thing about the machine or the installation."""

    state: State
    topic: str
    found: str
    fix: str = ""
    """What to do, if `found` does not say it."""
    values: dict[str, Any] = field(default_factory=dict)
    """The values behind `found`, for programs; sizes in bytes."""


def said(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what packages print when they load, so that it does not mix with the findings."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def print_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Print findings as they come, one per line (wrapped with an indent on a terminal), and count faults and notes."""
    seen = []
    show, width = _printer()
    for finding in findings:
        seen.append(finding)
        text = "; ".join(filter(None, (finding.found, finding.fix)))
        lines = [text]
        if width is not None:
            lines = textwrap.wrap(text, max(20, width - _INDENT), break_long_words=False, break_on_hyphens=False)
        show(f"{finding.state:5}", f"  {finding.topic:8}  " + f"\n{'':{_INDENT}}".join(lines), _STYLES[finding.state])
    show("", _count(seen), "")
    return seen


def as_plain(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the environment as in env.json, and the findings, as plain values."""
    with quiet():
        env = environment()
    return {
        "environment": env,
        "faults": sum(finding.state == "fault" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _printer() -> tuple[Callable[[str, str, str], None], int | None]:
    """Return a function that prints a word in a style and the rest of its line, and the width of the terminal (None if
    the output is not one)."""
    try:
        from rich.console import Console
        from rich.text import Text
    except Exception:  # it may be what is broken
        return lambda word, rest, style: print(word + rest, flush=True), None
    console = Console()

    def show(word: str, rest: str, style: str) -> None:
        console.print(Text.assemble((word, style), rest), soft_wrap=True)

    return show, console.width if console.is_terminal else None


def _count(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.state for finding in findings)
    faults, notes = (f"{counts[s] or 'no'} {s}{'' if counts[s] == 1 else 's'}" for s in ("fault", "note"))
    return f"{faults}, {notes}"
