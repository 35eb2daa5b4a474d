"""Check cores, memory, shared memory and the folder to work in."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medssl.doctor.findings import Finding
from medssl.machine import available_cpus, available_memory
from medssl.words import gib

SHARED = Path("/dev/shm")
LITTLE = 5 * 2**30
"""Free bytes on a disk below which a dataset and a run may not fit."""
AMPLE = 4
"""How many times the batches of the default settings should fit into shared memory, so that larger ones fit, too."""


def machine(env: dict[str, Any]) -> Iterator[Finding]:
    """Report the cores and memory that this process may use."""
    cores, memory = available_cpus(), available_memory()
    free = "unknown" if memory is None else gib(memory)
    found = f"cores {cores}, torch threads {env['threads'] or 'unknown'}, free memory {free}"
    yield Finding("ok", "machine", found, values={"cores": cores, "memory": memory})


def shared_memory(on_gpu: bool) -> Iterator[Finding]:
    """Check whether the batches of reader processes fit; only training on GPUs with large datasets uses readers."""
    if not SHARED.is_dir():
        return
    from medssl.data.patches import MEMORY_LIMIT

    free = shutil.disk_usage(SHARED).free
    readers, needed = shared_by_default()
    values = {"free": free, "needed": needed}
    limit = gib(MEMORY_LIMIT)
    rule = f"{gib(free)} free; {readers} readers of a dataset larger than {limit} need {gib(needed)} by default"
    fix = "start the container with --shm-size 16g or --ipc=host, or train with --set train.workers=0, which is slower"
    if free >= AMPLE * needed:
        yield Finding("ok", str(SHARED), rule, values=values)
    elif not on_gpu:
        yield Finding("note", str(SHARED), rule, "training on the CPU needs no readers", values)
    elif free >= needed:
        yield Finding("note", str(SHARED), f"{rule}, and more for larger patches or several channels", fix, values)
    else:
        yield Finding("fault", str(SHARED), rule, fix, values)


def shared_by_default() -> tuple[int, int]:
    """Return how many processes read patches for a GPU by default, and the bytes of their one-channel batches in shared
    memory."""
    import torch

    from medssl.data.patches import AHEAD
    from medssl.trainer import TrainConfig, choose_workers

    config = TrainConfig()
    readers = choose_workers(config.workers, torch.device("cuda"), in_memory=False)
    labelled, unlabelled = config.labelled_batch * (4 + 1), config.unlabelled_batch * 4  # float32, and a uint8 label
    return 2 * readers, (AHEAD * readers + 1) * (labelled + unlabelled) * math.prod(config.patch)


def folder_findings(folder: Path) -> Iterator[Finding]:
    """Check whether a folder exists, can be written to, and has space."""
    folder = folder.resolve()
    try:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            yield Finding("fault", "disk", f"{folder} {what}", "create it, or name another folder")
            return
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        fix = "choose another folder, or make it writable (in a container, for the user that runs it)"
        yield Finding("fault", "disk", f"{folder} cannot be written to ({(error.strerror or '').lower()})", fix)
        return
    free = shutil.disk_usage(folder).free
    is_little = free < LITTLE
    fix = "prepared scans and runs take several GiB; free some, or name another folder" if is_little else ""
    yield Finding("note" if is_little else "ok", "disk", f"{gib(free)} free in {folder}", fix, {"free": free})
