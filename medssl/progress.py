"""Progress of long work: a bar with time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def track(title: str, total: int, *, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Yield a function to call once per finished item with a word about it.

    Off a terminal a line is printed at most every ten seconds, and at the end.
    """
    if sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(title, total=total, completed=done, note="")
            yield lambda note: bar.update(task, advance=1, note=note)
        return
    finished, printed = done, time.monotonic()

    def advance(note: str) -> None:
        nonlocal finished, printed
        finished += 1
        if time.monotonic() - printed > 10 and finished < total:
            printed = time.monotonic()
            print(f"{title}: {finished} of {total} ({note})", file=sys.stderr, flush=True)

    yield advance
    print(f"{title}: {finished} of {total}", file=sys.stderr, flush=True)


def _bar() -> Any:  # rich loads only where a bar is drawn
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=Console(stderr=True),
    )  # fmt: skip
