"""The job behind `medssl bench`: a matrix of runs, each trained, applied to the test cases and scored.

    out/prepared/             the dataset, unless the settings name one that is prepared already
    out/splits/NAME.json      one per labelled count and draw; all share their validation and test cases
    out/bench.yaml            the bench settings of the latest call
    out/configs/NAME.yaml     the resolved settings of a run, as `medssl train` takes them
    out/runs/NAME/            the run, its predictions in test/ and its scores.csv
    out/logs/NAME.txt         the output of the run's commands
    out/times.csv             with `as_long_as`: seconds per step of each row, and the steps that follow from them
    out/runs.csv, out/report  a row per run, and the comparison; both are updated as runs end
    out/comparison.csv        a row per method and labelled count, with intervals, tests and verdicts on Dice
    out/comparison-hd95.csv   the same on HD95
    out/cases.csv             a row per run and test case, from which all intervals and tests are computed
    out/curves.csv            validation Dice of each row at each step

Finished runs are kept; the same command continues with the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from medssl.bench.jobs import make_job, slots_of, threads_of
from medssl.bench.matrix import Bench, BenchConfig, Cell
from medssl.bench.setup import (
    finished,
    prepared_dataset,
    refuse_changed,
    refuse_foreign,
    write_configs,
    write_splits,
    write_untrained,
)
from medssl.bench.tables import outcome, print_comparison, write_comparison, write_table
from medssl.bench.times import timed
from medssl.comparison import load_runs
from medssl.engines import Engine, Job, run_locally, run_on_ray
from medssl.errors import Interrupted, RunsFailed
from medssl.files import alone_in
from medssl.progress import stop_requested, track
from medssl.report import write_report

REPORT_SECONDS = 300.0
"""Minimum time between two reports, since writing one takes time from the runs."""


def bench(config: BenchConfig, out: Path, *, engine: Engine = "local", device: str = "auto") -> Path:
    """Run the unfinished part of a matrix, write its table and report, and return the path of the report.

    A failed run does not stop the others; the same call tries it again.

    Raises:
        ConfigError: the settings are wrong, `out` holds runs with other settings, or another process works in it.
        DataError: the dataset cannot be prepared or split as asked.
        Interrupted: Ctrl-C or SIGTERM arrived; the runs were saved.
        RunsFailed: some runs failed; the others are finished.
    """
    with alone_in(out):
        return _finish(Bench(config, out), engine, device)


def _finish(matrix: Bench, engine: Engine, device: str) -> Path:
    config, out = matrix.config, matrix.out
    refuse_foreign(out)
    dataset = prepared_dataset(matrix)
    refuse_changed(matrix, dataset)
    write_splits(matrix, dataset)
    write_configs(matrix)
    if done := finished(matrix):
        load_runs(done)  # fails early if a finished run is damaged
    slots = slots_of(matrix, device)
    if matrix.untimed():
        matrix = timed(matrix, slots, engine, device)
        write_configs(matrix)
    todo = [cell for cell in matrix.cells if not matrix.is_done(cell)]
    jobs = {cell: make_job(matrix, cell, dataset.root, device, threads_of(config, len(slots))) for cell in todo}
    codes = work(matrix, {cell: job for cell, job in jobs.items() if not matrix.sources(cell)}, slots, engine)
    if Interrupted.exit_code not in codes.values():
        ready = [cell for cell in jobs if matrix.sources(cell) and all(map(matrix.is_done, matrix.sources(cell)))]
        for cell in ready:
            write_untrained(matrix, cell)
        codes |= work(matrix, {cell: jobs[cell] for cell in ready}, slots, engine)

    table, page = write_table(matrix, codes), out / "report" / "report.html"
    if finished(matrix):
        page = publish(matrix)
        print_comparison(write_comparison(matrix))
    print(f"table in {table}", file=sys.stderr, flush=True)
    failed = {cell: code for cell, code in codes.items() if code}
    if Interrupted.exit_code in failed.values():
        left = sum(not matrix.is_done(cell) for cell in matrix.cells)
        raise Interrupted(
            f"stopped: {left} of {len(matrix.cells)} runs unfinished; their state is saved in {out}, repeat the "
            "command to continue"
        )
    if failed:
        lines = [f"  {cell}: exit code {code}, see {matrix.log(cell)}" for cell, code in failed.items()]
        message = f"{len(failed)} of {len(matrix.cells)} runs failed; repeat the command to try them again\n"
        raise RunsFailed(message + "\n".join(lines), next(iter(failed.values())))
    return page


def work(matrix: Bench, jobs: Mapping[Cell, Job], slots: Sequence[str | None], engine: Engine) -> dict[Cell, int]:
    """Run the jobs on an engine, print a line as each ends, and return their exit codes."""
    cells = {job.name: cell for cell, job in jobs.items()}
    codes: dict[Cell, int] = {}
    published = time.monotonic()
    total, done = len(matrix.cells), sum(map(matrix.is_done, matrix.cells))
    if not jobs:
        return codes
    with stop_requested("stopping: each run saves its state first") as stop, track("runs", total, done=done) as advance:
        todo = list(jobs.values())
        for job, code in run_locally(todo, slots, stop) if engine == "local" else run_on_ray(todo, stop):
            cell = cells[job.name]
            codes[cell] = code
            if code == Interrupted.exit_code:  # saved, or not started
                continue
            advance(str(cell))
            print(f"{cell}: {outcome(matrix, cell, code)}", file=sys.stderr, flush=True)
            write_table(matrix, codes)
            if not code and time.monotonic() - published > REPORT_SECONDS:
                publish(matrix)
                published = time.monotonic()
    return codes


def publish(matrix: Bench) -> Path:
    """Write the report on the finished runs and return its path."""
    done = {cell.method for cell in matrix.cells if matrix.is_done(cell)}
    references = [name for name in matrix.config.references if name in done]
    return write_report(finished(matrix), matrix.out / "report", overwrite=True, title=matrix.data().name,
                        references=references)  # fmt: skip
