"""Step times of the rows (times.csv), needed for rows that train for as long as another."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from medssl.bench.jobs import threads_of
from medssl.bench.matrix import Bench, BenchConfig
from medssl.bench.setup import prepared_dataset, write_splits
from medssl.engines import Engine, Job, run_locally, run_on_ray
from medssl.errors import ConfigError, Interrupted, RunsFailed
from medssl.files import whole_file
from medssl.progress import stop_requested


def timed(matrix: Bench, slots: Sequence[str | None], engine: Engine, device: str) -> Bench:
    """Measure the missing step times and return the matrix with them.

    `time_rows` runs in a process of its own, and nothing else runs meanwhile.

    Raises:
        ConfigError: runs exist whose number of steps came from times that are no longer in times.csv.
        Interrupted: the measurement was stopped.
        RunsFailed: the measurement failed.
    """
    begun = [str(cell) for cell in matrix.cells if matrix.is_untimed(cell) and matrix.run(cell).exists()]
    if begun:
        raise ConfigError(
            f"{matrix.times_file}: has no step times for runs that were begun already, such as {begun[0]}; restore the "
            "file, or remove these runs"
        )
    print(f"measuring the time of a training step: {', '.join(matrix.untimed())}", file=sys.stderr, flush=True)
    words = ("bench", matrix.out / "bench.yaml", "--out", matrix.out, "--times", "--device", device)
    log, threads = matrix.out / "logs" / "times.txt", threads_of(matrix.config, len(slots))
    job = Job("times", (tuple(map(str, words)),), log, threads)
    with stop_requested("stopping") as stop:
        ended = run_locally([job], slots[:1], stop) if engine == "local" else run_on_ray([job], stop)
        codes = [code for _, code in ended]
        if stop.is_set():
            raise Interrupted("stopped while measuring step times; repeat the command to continue")
    if any(codes):
        raise RunsFailed(f"measuring step times failed with exit code {codes[0]}; see {log}", codes[0])
    return Bench(matrix.config, matrix.out)


def time_rows(config: BenchConfig, out: Path, *, device: str = "auto") -> Path:
    """Measure the step times that are not in out/times.csv yet, write them there, and return the file's path.

    Rows that are added later are timed together with the `as_long_as` row. Their times are scaled so that the time of
    that row stays as it was measured first; the number of steps of the earlier rows therefore does not change.

    Raises:
        ConfigError: `as_long_as` is not set.
    """
    from medssl.clock import time_steps

    matrix = Bench(config, out)
    if config.as_long_as is None:
        raise ConfigError("as_long_as: not set, so no step times are needed; set it with --set as_long_as=ROW")
    write_splits(matrix, prepared_dataset(matrix))
    reference, missing = config.as_long_as, matrix.untimed()
    if missing:
        rows = dict.fromkeys([reference, *missing])
        found = time_steps({row: matrix.own_settings(row, matrix.cells[0]) for row in rows}, device)
        scale = matrix.times.get(reference, found[reference]) / found[reference]
        matrix.times |= {row: float(f"{scale * found[row]:.4g}") for row in missing}
    write_times(matrix)
    return matrix.times_file


def write_times(matrix: Bench) -> None:
    """Write times.csv: seconds per step, steps of the row's own runs, and steps that fit the time of `as_long_as`."""
    with whole_file(matrix.times_file) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("row", "seconds_per_step", "steps", "steps_same_time"))
        table.writerows((row, seconds, *matrix.steps_in_time(row)) for row, seconds in matrix.times.items())
