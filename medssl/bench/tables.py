"""The results of the runs: runs.csv, cases.csv, comparison.csv, comparison-hd95.csv, curves.csv, and the comparison on
a terminal."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl.bench.matrix import ALL, Bench, Cell
from medssl.comparison import comparison_table, load_runs, make_rows
from medssl.comparison.runs import Run, case_values
from medssl.errors import Interrupted
from medssl.files import whole_file
from medssl.logs import read_metrics, training_seconds
from medssl.score_file import digits, read_scores
from medssl.scores import summarise

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("method", "labelled", "draw", "seed", "status", "minutes", "steps", "val_dice", "dice", "hd95", "asd",
            "missed", "cases", "run")  # fmt: skip
CASE_COLUMNS = ("method", "labelled", "draw", "seed", "patient", "case", "dice", "hd95", "asd")


def write_table(matrix: Bench, codes: Mapping[Cell, int]) -> Path:
    """Write runs.csv, a row per run of the matrix in any state, and return its path."""
    path = matrix.out / "runs.csv"
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(_row(matrix, cell, codes.get(cell)) for cell in matrix.cells)
    return path


def write_comparison(matrix: Bench) -> list[list[str]]:
    """Write comparison.csv, comparison-hd95.csv, cases.csv and curves.csv, and return the cells of the first.

    comparison.csv has a row per method and labelled count, with its difference of Dice from each reference and a
    verdict; comparison-hd95.csv has the same of HD95.
    cases.csv has a row per run and test case, from which all intervals and tests are computed. curves.csv has the mean
    validation Dice of each row at each step, and its standard deviation over runs.
    """
    done = [cell for cell in matrix.cells if matrix.is_done(cell)]
    runs = load_runs([matrix.run(cell) for cell in done])
    rows = make_rows(runs)
    cells, distances = (comparison_table(rows, metric, matrix.config.references) for metric in ("dice", "hd95"))
    cases = [[*CASE_COLUMNS], *(line for cell, run in zip(done, runs, strict=True) for line in _of_cases(cell, run))]
    curves = [["row", "labelled", "step", "runs", "mean", "sd"]]
    for row in rows:
        for point in row.curve("val/dice"):
            sd = "" if point.sd is None else f"{point.sd:.4f}"
            curves.append([row.key.method, *map(str, (row.key.labelled, point.step, len(point.values))),
                           f"{point.mean:.4f}", sd])  # fmt: skip
    tables = {"comparison.csv": cells, "comparison-hd95.csv": distances, "cases.csv": cases, "curves.csv": curves}
    for name, lines in tables.items():
        with whole_file(matrix.out / name) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
    return cells


def _of_cases(cell: Cell, run: Run) -> list[list[str]]:
    """The cases of a run, each with the mean of each metric over the classes where it is defined."""
    facts = [cell.method, str(cell.labelled or ALL), str(cell.draw), str(cell.seed)]
    columns = [case_values(run, metric) for metric in CASE_COLUMNS[-3:]]
    return [
        [*facts, run.patients.get(case, case), case, *(digits(column.get(case)) for column in columns)]
        for case in sorted({score.case for score in run.scores or ()})
    ]


def print_comparison(cells: Sequence[Sequence[str]], console: Console | None = None) -> None:
    """Print a table with the Dice of each row, and below it, for each reference, a line per row with the verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    heads, draws = cells[0], cells[0].index("draws")
    several = ["draws"] if any(int(row[draws]) > 1 for row in cells[1:]) else []
    names = ("method", *several, "seeds", "minutes", "dice, %", "95 % interval", "sd of runs")
    console, shown = console or Console(), [*map(heads.index, names)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in shown:
        table.add_column(escape(heads[column]))
    for row in cells[1:]:
        table.add_row(*(escape(row[column]) for column in shown))
    console.print(table)
    for verdict in (i for i, head in enumerate(heads) if head.startswith("verdict")):
        console.print(escape(heads[verdict].removeprefix("verdict ")), highlight=False)
        for row in (row for row in cells[1:] if row[verdict]):
            console.print(escape(f"  {row[shown[0]]}: {row[verdict]}"), highlight=False, soft_wrap=True)


def _row(matrix: Bench, cell: Cell, code: int | None) -> dict[str, Any]:
    run, steps = matrix.run(cell), matrix.settings[cell].train.iterations
    facts = {"method": cell.method, "labelled": cell.labelled or ALL, "draw": cell.draw, "seed": cell.seed}
    row = {**facts, "steps": steps, "run": run.relative_to(matrix.out)}
    if not matrix.is_done(cell):
        waits = code in (None, 0, Interrupted.exit_code)
        return {**row, "status": "waiting" if waits else f"failed ({code})"}
    overall = summarise(read_scores(run / "scores.csv")).overall
    metrics = read_metrics(run / "metrics.csv")
    val = [each["val/dice"] for each in metrics if "val/dice" in each]
    chosen = (max(val) if matrix.config.checkpoint == "best" else val[-1]) if val else None
    numbers = {"minutes": training_seconds(metrics) / 60, "val_dice": chosen, "dice": overall.dice.mean,
               "hd95": overall.hd95.mean, "asd": overall.asd.mean}  # fmt: skip
    shown = {k: f"{v:.4g}" if k == "minutes" else f"{v:.4f}" for k, v in numbers.items() if v is not None}
    return {**row, **shown, "status": "done", "missed": overall.missed, "cases": overall.dice.n}


def outcome(matrix: Bench, cell: Cell, code: int) -> str:
    """Describe in a few words how a run ended."""
    if code:
        return f"exit code {code}, see {matrix.log(cell)}"
    row = _row(matrix, cell, code)
    return f"test Dice {row.get('dice', '-')} after {float(row['minutes']):.1f} minutes of training steps"
