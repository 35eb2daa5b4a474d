"""Run long work on this machine, one job per GPU, or on a Ray cluster.

A job is a list of `medssl` commands, each in a process of its own, so that a run that fails or fills the memory does
not stop others. An engine yields jobs with their exit codes as they end.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from medssl.errors import DeviceError, Interrupted, OutOfMemoryError
from medssl.progress import die_with_parent

T = TypeVar("T")
R = TypeVar("R")
Engine = Literal["local", "ray"]

LOST = 1
"""Exit code of a run whose machine or process was lost too often."""
RETRIES = 5
"""How often Ray restarts a run whose machine or process was lost."""


@dataclass(frozen=True)
class Job:
    """Commands to run in order; the first that fails ends the job."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    """The arguments after `medssl` of each."""
    log: Path
    """File to which the output of the commands is appended."""
    threads: int
    """CPU threads of each command, also reserved in Ray."""


def run_locally(jobs: Sequence[Job], slots: Sequence[str | None], stop: threading.Event) -> Iterator[tuple[Job, int]]:
    """Run jobs on this machine, as many at a time as there are slots.

    Args:
        slots: the value of CUDA_VISIBLE_DEVICES in each; None leaves the environment alone.
        stop: once set, running commands are asked to save and end, and no other is started.
    """
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)

    def work(job: Job) -> int:
        slot = free.get()
        try:
            return execute(job, gpu=slot, stop=stop)
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(slots), "runs") as pool:
        waiting = {pool.submit(work, job): job for job in jobs}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def run_on_ray(jobs: Sequence[Job], stop: threading.Event) -> Iterator[tuple[Job, int]]:
    """Run jobs on the Ray cluster that RAY_ADDRESS names, or on one started on this machine; a GPU each if it has any.

    All machines must see the folders of the bench at the same paths. A run whose machine is lost is restarted on
    another, where it continues from its last save.

    Raises:
        DeviceError: Ray is not installed, or its cluster cannot be reached.
    """
    ray = _connect(None)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    # A worker serves one run: its memory is freed afterwards, and its process group is its own.
    task = ray.remote(num_gpus=gpus, max_retries=RETRIES, max_calls=1)(_execute_remotely)
    waiting = {task.options(num_cpus=job.threads).remote(job): job for job in jobs}
    asked = False
    while waiting:
        if stop.is_set() and not asked:
            asked = True
            for reference in waiting:
                ray.cancel(reference, force=False)
        for reference in ray.wait(list(waiting), timeout=1)[0]:
            job = waiting.pop(reference)
            try:
                yield job, ray.get(reference)
            except ray.exceptions.TaskCancelledError:
                yield job, Interrupted.exit_code
            except ray.exceptions.RayError as error:
                _note(job, f"lost: {error}")
                yield job, Interrupted.exit_code if asked else LOST


def as_finished_on_ray(
    work: Callable[[T], R], items: Sequence[T], *, address: str | None, memory: int
) -> Generator[tuple[T, R], None, None]:
    """Like `progress.as_finished`, on a Ray cluster; an item whose machine is lost is worked on again elsewhere.

    All machines must see the files that `work` uses at the same paths. Closing the iterator stops the rest.

    Args:
        address: of the cluster; None takes RAY_ADDRESS, or starts a cluster on this machine.
        memory: bytes that an item needs, so that Ray places no more of them on a machine than fit.

    Raises:
        DeviceError: Ray is not installed, or its cluster cannot be reached.
        OutOfMemoryError: the process of an item was lost too often.
    """
    ray = _connect(address)
    largest = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    task = ray.remote(num_cpus=1, memory=int(min(memory, largest)), max_retries=RETRIES)(work)
    waiting = {task.remote(item): item for item in items}
    try:
        while waiting:
            for reference in ray.wait(list(waiting))[0]:
                yield waiting[reference], ray.get(reference)
                del waiting[reference]
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise OutOfMemoryError(f"a process on the cluster was lost {RETRIES + 1} times: {error}") from None
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _connect(address: str | None) -> Any:
    """Connect to a Ray cluster and return the package ray."""
    try:
        import ray
    except ImportError:
        raise DeviceError("--engine ray: the package ray is missing; pip install 'medssl[ray]'") from None
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        place = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise DeviceError(f"--engine ray: no cluster at {place}: {error}") from None
    return ray


def execute(job: Job, *, gpu: str | None = None, stop: threading.Event | None = None) -> int:
    """Run the commands of a job; return the exit code of the one that failed, or 0."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    for words in job.commands:
        if stop is not None and stop.is_set():
            return Interrupted.exit_code
        _note(job, f"medssl {' '.join(words)}")
        with job.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "medssl", *words], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,  # Windows has none
            )  # fmt: skip
            code = _wait(process, stop)
        if code:
            is_asked = stop is not None and stop.is_set() and code == -signal.SIGTERM  # before Python could handle it
            if is_asked or code > 0:
                return Interrupted.exit_code if is_asked else code
            _note(job, f"ended by signal {-code}" + (", most often because memory ran out" if code == -9 else ""))
            return OutOfMemoryError.exit_code if code == -9 else 1
    return 0


def _execute_remotely(job: Job) -> int:
    return execute(job)


def _wait(process: subprocess.Popen[bytes], stop: threading.Event | None) -> int:
    """Wait for a process and return its exit code; ask it to save and end when `stop` is set or this process is
    interrupted."""
    asked = False
    while True:
        try:
            return process.wait(0.5)
        except subprocess.TimeoutExpired:
            if stop is not None and stop.is_set() and not asked:
                asked = True
                process.terminate()
        except BaseException:  # this is how Ray cancels a task
            process.terminate()
            process.wait()
            raise


def _note(job: Job, text: str) -> None:
    with job.log.open("a", encoding="utf-8") as log:
        log.write(f"# {text}\n")
