"""Training one run in several processes, as torchrun starts them; with a single process, nothing changes.

Each process holds the same networks and takes its share of every batch. What the processes must agree on without
waiting for a GPU (when to stop, scores of validation cases) goes over gloo; gradients on GPUs go over NCCL.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from medssl.device import choose_device
from medssl.errors import DeviceError, Interrupted
from medssl.parts import processes
from medssl.signals import hangups

PATIENCE = timedelta(minutes=30)
"""Longest time that a process waits for the others; the slowest share of a validation must take less."""

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, and yield the device of this process.

    Args:
        device: as for `choose_device`; `auto` and `cuda` become the GPU of this process's local rank.

    Raises:
        DeviceError: fewer GPUs than processes on this machine, or another process of the run ended.
    """
    if not is_launched():
        chosen = choose_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        yield chosen
        return
    # Imported before there is a group: the functions keep the group that exists at import as their default for good.
    from torch.distributed.nn import functional  # noqa: F401
    from torch.distributed.rendezvous import rendezvous

    chosen = _own_device(device)
    # Each start has its own prefix: restarted processes must not read the addresses of lost ones.
    store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"start-{restarts()}", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    previous = signal.getsignal(signal.SIGTERM)
    _on_sigterm(_close)
    try:
        yield chosen
    except BaseException as error:
        _on_sigterm(signal.SIG_IGN)  # the launcher may send one before the message is printed
        if isinstance(error, Interrupted):
            _leave()
        if not isinstance(error, RuntimeError) or not _is_lost_peer(error):
            raise
        # The other processes may be gone, so nothing here may wait for them.
        raise DeviceError(
            f"process {processes.rank()} of {processes.count()}: another process of this training ended or cannot be "
            f"reached; its own message says why. Go on with --resume.\n({str(error).splitlines()[0][:200]})"
        ) from None
    _leave()
    _on_sigterm(previous)


class _Closed(RuntimeError):
    """The launcher is ending this process, as it ends all processes when one is lost."""


def _close(signum: int, frame: Any) -> None:
    """Handle SIGTERM outside the training loop: end with a message. In the loop, SIGTERM asks to stop and save."""
    signal.signal(signum, signal.SIG_IGN)
    raise _Closed("SIGTERM came from the launcher")


def _on_sigterm(handler: Any) -> None:
    with suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
        for signum in (signal.SIGTERM, *hangups()):  # torchrun hands both on
            signal.signal(signum, handler)


def _leave() -> None:
    """Leave the group and end its threads; a thread that freed a tensor while Python ends would abort the process."""
    dist.destroy_process_group()
    gc.collect()  # networks that average gradients hold the group in reference cycles


def _own_device(device: str) -> torch.device:
    """Return the device of this process, one of those that torchrun started."""
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device {device}: torchrun gives each process its own GPU; leave out --device, or use cpu")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if torch.cuda.device_count() < here():
            raise DeviceError(
                f"{here()} processes were started on this machine, which has {torch.cuda.device_count()} GPUs; "
                "lower --nproc-per-node, or train on the CPU with --device cpu"
            )
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return choose_device(device)


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def launched() -> int:
    """Return how many processes torchrun started for this run, also before they join."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def here() -> int:
    """Return how many processes of this run are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else 1


def launch() -> str | None:
    """Return what distinguishes this launch of torchrun from others; None if nothing does."""
    name = os.environ.get("TORCHELASTIC_RUN_ID") if is_launched() else None
    return None if name == "none" else name


def restarts() -> int:
    """Return how often torchrun restarted this process after a failure (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes files and prints messages."""
    return processes.rank() == 0


def gathered(values: list[T]) -> list[T]:
    """Return the lists of all processes joined to one, in the order of their ranks."""
    if processes.count() == 1:
        return values
    lists: list[Any] = [None] * processes.count()
    dist.all_gather_object(lists, values)
    return [value for one in lists for value in one]


def wait_for_all() -> None:
    """Return once every process has called this."""
    gathered([None])


class StopVote:
    """Tells whether any process was asked to stop. The answer is that of the step before, so no step waits for it."""

    def __init__(self) -> None:
        self._before: tuple[Any, torch.Tensor] | None = None

    def __call__(self, asked: bool) -> bool:
        """Vote; all processes call this after the same step and get the same answer."""
        if processes.count() == 1:
            return asked
        before, votes = self._before, torch.tensor([int(asked)])
        self._before = dist.all_reduce(votes, async_op=True), votes
        if before is None:
            return False
        before[0].wait()
        return bool(before[1].item())

    def close(self) -> None:
        """Wait for the last vote."""
        if self._before is not None:
            self._before[0].wait()
        self._before = None


def _is_lost_peer(error: RuntimeError) -> bool:
    said = str(error).lower()
    return isinstance(error, (dist.DistError, _Closed)) or any(
        w in said for w in ("gloo", "nccl", "connection closed by peer")
    )
