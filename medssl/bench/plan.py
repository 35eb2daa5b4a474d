"""The job behind `medssl bench --plan`: the matrix and how long it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medssl.bench.matrix import ALL, Bench, BenchConfig, Cell
from medssl.logs import read_metrics, training_seconds
from medssl.words import how_many


@dataclass(frozen=True)
class PlanRow:
    """The runs of one method at one labelled count."""

    method: str
    labelled: int | None
    runs: int
    done: int
    steps: int | None
    """None: not measured yet, since a run must take as long as one of the `as_long_as` row. 0: a row with `of`."""
    seconds_per_step: float
    """Taken from the finished runs, else from times.csv, else measured now on noise."""
    seconds: float
    """Of one whole run."""


def plan(config: BenchConfig, out: Path, *, device: str = "auto") -> list[PlanRow]:
    """Return the matrix with the time of a training step of each row on this machine; nothing is written."""
    matrix = Bench(config, out)
    groups: dict[tuple[str, int | None], list[Cell]] = {}
    for cell in matrix.cells:
        groups.setdefault((cell.method, cell.labelled), []).append(cell)
    trained = [name for name, row in matrix.methods.items() if name not in matrix.same_time and row.of is None]
    seconds = {row: _seconds_of(matrix, row, device) for row in trained}
    given, rows = str(config.as_long_as), []
    for (method, labelled), cells in groups.items():
        done = sum(map(matrix.is_done, cells))
        if matrix.sources(cells[0]):
            rows.append(PlanRow(method, labelled, len(cells), done, 0, 0.0, 0.0))
            continue
        steps = None if matrix.is_untimed(cells[0]) else matrix.settings[cells[0]].train.iterations
        each = seconds[matrix.trained_as(method)]
        whole = (
            each * steps
            if steps is not None
            else seconds[given] * matrix.own_settings(given, cells[0]).train.iterations
        )
        rows.append(PlanRow(method, labelled, len(cells), done, steps, each, whole))
    return rows


def _seconds_of(matrix: Bench, row: str, device: str) -> float:
    if known := _known_seconds(matrix, row) or matrix.times.get(row):
        return known
    from medssl.clock import time_on_noise

    return time_on_noise(matrix.settings[next(c for c in matrix.cells if c.method == row)], device)


def _known_seconds(matrix: Bench, method: str) -> float | None:
    known = []
    for cell in matrix.cells:
        if cell.method == method and matrix.is_done(cell):
            known.append(
                training_seconds(read_metrics(matrix.run(cell) / "metrics.csv"))
                / matrix.settings[cell].train.iterations
            )
    return sum(known) / len(known) if known else None


def print_plan(rows: Sequence[PlanRow], at_a_time: int) -> None:
    """Print the matrix and the time that its unfinished runs will take."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("method", "labelled", "runs", "done", "steps", "s / step", "hours left"):
        table.add_column(column, justify="left" if column == "method" else "right")
    hours = []
    for row in rows:
        hours.append((row.runs - row.done) * row.seconds / 3600)
        steps = "to be measured" if row.steps is None else f"{row.steps:,}"
        table.add_row(row.method, str(row.labelled or ALL), str(row.runs), str(row.done), steps,
                      f"{row.seconds_per_step:.3f}", f"{hours[-1]:.2f}")  # fmt: skip
    console = Console()
    console.print(table)
    runs, done = sum(row.runs for row in rows), sum(row.done for row in rows)
    left = f"about {sum(hours) / at_a_time:.1f} hours of training steps left, {how_many(at_a_time, 'run')} at a time"
    console.print(f"{runs} runs, {done} done; {left} (without validation and prediction)", soft_wrap=True,
                  highlight=False)  # fmt: skip
