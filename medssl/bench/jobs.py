"""The commands of a run, and the GPU and CPU threads that they use."""

from __future__ import annotations

import os
from pathlib import Path

from medssl.bench.matrix import Bench, BenchConfig, Cell
from medssl.engines import Job
from medssl.machine import available_cpus


def make_job(matrix: Bench, cell: Cell, prepared: Path, device: str, threads: int) -> Job:
    """Return the commands of a run: train, predict the test cases, evaluate. A row with `of` is not trained."""
    run, config, sources = matrix.run(cell), matrix.config, [matrix.run(source) for source in matrix.sources(cell)]
    protocol = matrix.settings[cell].protocol
    conventions = ("--convention", "strict", "--convention", protocol.convention) if protocol else ()
    chosen = matrix.network(cell)
    how = (*(() if chosen is None else ("--network", chosen)), *(("--mirror",) if matrix.mirrors(cell) else ()))
    training = ("train", matrix.config_file(cell), "--out", run, "--resume", "--device", device)
    first, *others = sources or [run]
    also = [word for other in others for word in ("--run", other)]
    commands = (
        *([] if sources else [training]),
        ("predict", first, *also, "--part", "test", "--checkpoint", config.checkpoint, *how, "--device", device,
         "--uncertainty", "-o", run / "test", "--overwrite"),
        ("evaluate", run / "test", prepared, "-o", run / "scores.csv", "--overwrite", "--workers", 0, *conventions),
    )  # fmt: skip
    words = tuple(tuple(map(str, command)) for command in commands)
    return Job(cell.name, words, matrix.log(cell), threads)


def slots_of(matrix: Bench, device: str) -> list[str | None]:
    """Return, for each run at a time, its GPU as CUDA_VISIBLE_DEVICES names it; None leaves the device as it is."""
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    count = matrix.config.parallel or max(1, len(gpus))
    return [gpus[i % len(gpus)] if len(gpus) > 1 else None for i in range(count)]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use: their names in CUDA_VISIBLE_DEVICES, or else their numbers."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",")] if named else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def threads_of(config: BenchConfig, at_a_time: int) -> int:
    """Return the CPU threads of each run: `threads`, else OMP_NUM_THREADS, else an equal share of the cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return config.threads or (int(said) if said.isdecimal() else 0) or max(1, available_cpus() // at_a_time)
