"""How long a step of each row takes, for rows that train as long as another: times.csv."""

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
    """The matrix once it is known how long a step of each row takes: `time_rows` in a process of its own, alone.

    Raises:
        ConfigError: there are runs whose steps came from times that are gone.
        Interrupted, RunsFailed: it was stopped, or the steps cannot be timed.
    """
    begun = [str(cell) for cell in matrix.cells if matrix.is_untimed(cell) and matrix.run(cell).exists()]
    if begun:
        raise ConfigError(f"{matrix.times_file}: lacks rows of which there are runs, such as {begun[0]}; put the file "
                          "back, or remove these runs")  # fmt: skip
    print(f"timing a step of {', '.join(matrix.untimed())}", file=sys.stderr, flush=True)
    words = ("bench", matrix.out / "bench.yaml", "--out", matrix.out, "--times", "--device", device)
    log, threads = matrix.out / "logs" / "times.txt", threads_of(matrix.config, len(slots))
    job = Job("times", (tuple(map(str, words)),), log, threads)
    with stop_requested("stopping") as stop:
        ended = run_locally([job], slots[:1], stop) if engine == "local" else run_on_ray([job], stop)
        codes = [code for _, code in ended]
        if stop.is_set():
            raise Interrupted("stopped while steps were timed; repeat to go on")
    if any(codes):
        raise RunsFailed(f"steps could not be timed: exit code {codes[0]}, see {log}", codes[0])
    return Bench(matrix.config, matrix.out)


def time_rows(config: BenchConfig, out: Path, *, device: str = "auto") -> Path:
    """Measure how long a step of each row takes that is not in out/times.csv yet, and write them there.

    Rows that join others later are timed beside the row that gives the time, and what it takes now is set to what it
    took then, so that the steps of the others stay.
    """
    from medssl.clock import time_steps

    matrix = Bench(config, out)
    if config.as_long_as is None:
        raise ConfigError("as_long_as: names no row, so no times are needed; add --set as_long_as=ROW")
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
    """times.csv: seconds of a step, steps of the row's own runs, and steps that take as long as the reference's."""
    with whole_file(matrix.times_file) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("row", "seconds_per_step", "steps", "steps_same_time"))
        table.writerows((row, seconds, *matrix.steps_in_time(row)) for row, seconds in matrix.times.items())
