"""Long work: in processes, with a bar and the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from medssl.errors import OutOfMemoryError

T = TypeVar("T")


@contextmanager
def mapper(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield a `map` that works in so many processes; below two, in this one.

    Raises:
        OutOfMemoryError: a process was killed.
    """
    if workers < 2:
        yield map
        return
    # Spawned, not forked: the caller may hold threads, locks or a GPU.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool.map
    except BrokenProcessPool:
        raise OutOfMemoryError(
            "a worker process ended without a word, most often because memory ran out; use fewer workers, or 0 "
            '(in a script of your own, workers need the guard `if __name__ == "__main__":`)'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def tracked(title: str, names: Sequence[str], results: Iterable[T]) -> list[T]:
    """The results, one for each name, shown as they come."""
    done = []
    with track(title, len(names)) as advance:
        for name, result in zip(names, results, strict=True):
            done.append(result)
            advance(name)
    return done


@contextmanager
def track(title: str, total: int, *, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Yield a function to call once per finished item with a word about it.

    Off a terminal a line is printed at most every ten seconds, and at the end.
    """
    if sys.stderr.isatty():
        with progress_bar() as bar:
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


@contextmanager
def stop_requested(words: str = "") -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, saying `words`; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def ask(signum: int, frame: Any) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        if words:
            print(words, file=sys.stderr, flush=True)

    previous = {}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            previous[signum] = signal.signal(signum, ask)
    except ValueError:
        pass  # not in the main thread: whoever runs us there handles signals
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def progress_bar() -> Any:
    """A rich bar on stderr: title, bar, count, time left, and the task's field `note`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=Console(stderr=True),
    )  # fmt: skip
