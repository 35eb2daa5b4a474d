"""The job behind `medssl bench`: a matrix of runs, each trained, used on the test cases and scored.

    out/prepared/             the dataset, unless the settings name one that is prepared already
    out/splits/NAME.json      one per labelled count and draw; all share their validation and test cases
    out/bench.yaml            what was asked for last
    out/configs/NAME.yaml     the resolved settings of a run, as `medssl train` takes them
    out/runs/NAME/            the run, its predictions in test/ and its scores.csv
    out/logs/NAME.txt         what the run's commands said
    out/times.csv             with `as_long_as`: how long a step of each row takes, and the steps that follow
    out/runs.csv, out/report  a row per run, and the comparison, written again as runs end
    out/comparison.csv        a row per method and labelled count, with intervals, tests and verdicts
    out/cases.csv             a row per run and test case, of which all intervals and tests are made
    out/curves.csv            validation Dice of each row, step by step

What is finished stays; the same command goes on with the rest.
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
"""The least time between two reports, which take time from the runs."""


def bench(config: BenchConfig, out: Path, *, engine: Engine = "local", device: str = "auto") -> Path:
    """Run what is missing of a matrix, then write its table and report; the report's path comes back.

    A failed run does not stop the others; the same call tries it again.

    Raises:
        ConfigError: settings that do not fit, `out` holds runs of other settings, or another process is at work in it.
        DataError: the dataset cannot be prepared or divided as asked.
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
        load_runs(done)  # what is damaged is told before more is trained
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
            f"stopped with {left} of {len(matrix.cells)} runs unfinished, saved in {out}; repeat to go on"
        )
    if failed:
        lines = [f"  {cell}: exit code {code}, see {matrix.log(cell)}" for cell, code in failed.items()]
        message = f"{len(failed)} of {len(matrix.cells)} runs failed; repeat the command to try them again\n"
        raise RunsFailed(message + "\n".join(lines), next(iter(failed.values())))
    return page


def work(matrix: Bench, jobs: Mapping[Cell, Job], slots: Sequence[str | None], engine: Engine) -> dict[Cell, int]:
    """Let an engine work on the jobs, and tell of each that ends; their exit codes."""
    cells = {job.name: cell for cell, job in jobs.items()}
    codes: dict[Cell, int] = {}
    published = time.monotonic()
    total, done = len(matrix.cells), sum(map(matrix.is_done, matrix.cells))
    if not jobs:
        return codes
    with stop_requested("stopping: the runs save") as stop, track("runs", total, done=done) as advance:
        todo = list(jobs.values())
        for job, code in run_locally(todo, slots, stop) if engine == "local" else run_on_ray(todo, stop):
            cell = cells[job.name]
            codes[cell] = code
            if code == Interrupted.exit_code:  # saved, or not begun
                continue
            advance(str(cell))
            print(f"{cell}: {outcome(matrix, cell, code)}", file=sys.stderr, flush=True)
            write_table(matrix, codes)
            if not code and time.monotonic() - published > REPORT_SECONDS:
                publish(matrix)
                published = time.monotonic()
    return codes


def publish(matrix: Bench) -> Path:
    """Write the report on the runs that are finished."""
    done = {cell.method for cell in matrix.cells if matrix.is_done(cell)}
    references = [name for name in matrix.config.references if name in done]
    return write_report(finished(matrix), matrix.out / "report", overwrite=True, title=matrix.data().name,
                        references=references)  # fmt: skip
