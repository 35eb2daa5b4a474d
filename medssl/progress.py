"""Long work in several processes, shown with a progress bar on a terminal and in plain lines elsewhere."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

from medssl.errors import OutOfMemoryError
from medssl.signals import ALL, hangups
from medssl.words import duration, visible

T = TypeVar("T")
R = TypeVar("R")
_KILL_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG


@contextmanager
def mapper(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield a `map` that works in so many processes; in this one if `workers` is below 2.

    Raises:
        OutOfMemoryError: a process was killed.
    """
    if workers < 2:
        yield map
        return
    with _processes(workers) as pool:
        yield pool.map


def as_finished(work: Callable[[T], R], items: Sequence[T], workers: int) -> Generator[tuple[T, R], None, None]:
    """Yield each item with the result of `work`, in the order in which they finish.

    The work is done in so many processes; in this one if `workers` is below 2. Closing the iterator waits for the items
    in progress and drops the others.

    Raises:
        OutOfMemoryError: a process was killed.
    """
    if workers < 2:
        yield from ((item, work(item)) for item in items)
        return
    with _processes(workers) as pool:
        waiting = {pool.submit(work, item): item for item in items}
        for done in as_completed(waiting):
            yield waiting.pop(done), done.result()


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned, not forked: the caller may hold threads, locks or a GPU.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    others = multiprocessing.active_children()
    is_patient = True
    try:
        try:
            yield pool
        except KeyboardInterrupt:
            is_patient = False
            raise
        finally:
            pool.shutdown(wait=is_patient, cancel_futures=True)
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
        raise
    except BrokenProcessPool:
        raise OutOfMemoryError(
            "a worker process ended without a message, most often because memory ran out; use fewer workers, or 0 "
            '(in a script of your own, workers need the guard `if __name__ == "__main__":`)'
        ) from None


def _begin_worker() -> None:
    """Ignore Ctrl-C, which a terminal sends to every process; the parent decides what to do."""
    for signum in (signal.SIGINT, *hangups()):
        signal.signal(signum, signal.SIG_IGN)
    die_with_parent()


def ignore_signals() -> None:
    """Ignore signals that a terminal or a launcher sends to every process; the parent handles them."""
    for signum in ALL:
        signal.signal(signum, signal.SIG_IGN)


def die_with_parent() -> None:
    """On Linux, let this process end when its parent is killed, so that it does not go on writing unnoticed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)


def tracked(title: str, names: Sequence[str], results: Iterable[T]) -> list[T]:
    """Return the results, one for each name, and show progress as they come."""
    done = []
    with track(title, len(names)) as advance:
        for name, result in zip(names, results, strict=True):
            done.append(result)
            advance(name)
    return done


class Advance(Protocol):
    """Reports a finished item, or with a `share` below 1 how much of an item is done."""

    def __call__(self, note: str, share: float = 1) -> None: ...


@contextmanager
def track(title: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """Yield the function to call for each finished item with a short note, and for parts of one with a `share` below 1.

    If the output is not a terminal, a line with the time left is printed at most every ten seconds, and one at the end.
    """
    finished = done
    if sys.stderr.isatty():
        with progress_bar() as bar:
            task = bar.add_task(title, total=total, completed=done, note="")

            def show(note: str, share: float = 1) -> None:
                nonlocal finished
                bar.update(task, completed=finished + share, note=_named(note, share))
                finished += share == 1

            yield show
        return
    begun = printed = time.monotonic()

    def say(note: str, share: float = 1) -> None:
        nonlocal finished, printed
        reached, now = finished + share, time.monotonic()
        finished += share == 1
        if now - printed > 10 and reached < total:
            printed = now
            left = duration((now - begun) / (reached - done) * (total - reached))
            print(f"{title}: {finished} of {total} ({_named(note, share)}), {left} left", file=sys.stderr, flush=True)

    yield say
    if total:
        print(f"{title}: {finished} of {total}", file=sys.stderr, flush=True)


def _named(note: str, share: float) -> str:
    note = visible(note)
    return note if share == 1 else f"{note}, {share:.0%}"


@contextmanager
def stop_requested(words: str = "") -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C, SIGTERM or SIGHUP sets, printing `words`; a second Ctrl-C raises
    KeyboardInterrupt."""
    stop = threading.Event()

    def ask(signum: int, frame: Any) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        with suppress(OSError, RuntimeError):  # the reader is gone, or the signal came while a line was written
            if words:
                print(words, file=sys.stderr, flush=True)

    previous = {}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM, *hangups()):
            previous[signum] = signal.signal(signum, ask)
    except ValueError:
        pass  # not in the main thread: the caller handles signals
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def progress_bar() -> Any:
    """Return a rich progress bar on stderr: title, bar, count, time left, and the task's field `note`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=Console(stderr=True),
    )  # fmt: skip
