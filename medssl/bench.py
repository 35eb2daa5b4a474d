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
    out/curves.csv            validation Dice of each row, step by step

What is finished stays; the same command goes on with the rest.
"""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from medssl.comparison import BASELINE, comparison_table, load_runs, make_rows, table_cells
from medssl.config import Settings, dump, found, load_yaml, merge, parse, update
from medssl.data.cases import DatasetConfig
from medssl.data.lists import read_published_split
from medssl.data.prepared import PreparedDataset, read_prepared
from medssl.data.splits import Part, Split, make_split, read_split, write_split
from medssl.engines import Engine, Job, run_locally, run_on_ray
from medssl.errors import ConfigError, DataError, Interrupted, RunsFailed
from medssl.files import whole_file
from medssl.logs import read_metrics, training_seconds
from medssl.machine import available_cpus
from medssl.predictor import Which
from medssl.prepare import prepare
from medssl.progress import stop_requested, track
from medssl.report import write_report
from medssl.run import RunConfig
from medssl.scores import read_scores, summarise

if TYPE_CHECKING:
    from rich.console import Console

ALL = "all"
"""Stands where a count of labelled cases would: every training case with its label."""
SAME_TIME = ", same time"
"""Ends the names of rows that train as long as the one of `as_long_as`."""
REPORT_SECONDS = 300.0
"""The least time between two reports, which take time from the runs."""

_COLUMNS = ("method", "labelled", "draw", "seed", "status", "minutes", "steps", "val_dice", "dice", "hd95", "asd",
            "missed", "cases", "run")  # fmt: skip


class MethodRow(Settings):
    """One method of the matrix, or a variant of one."""

    configs: tuple[Path, ...] = ()
    """Files over those of the bench; none stands for configs/method/NAME.yaml, NAME being the row's."""
    settings: dict[str, Any] = {}
    """Sections over the files."""
    network: Which | None = None
    """The network that is scored, in place of the one of the bench."""
    of: str | None = None
    """Train nothing, and score the runs of this row in another way: by another `network`, or several `runs` as one."""
    runs: PositiveInt = 1
    """With `of`: how many of its runs, of seeds that follow each other, have their class probabilities averaged. No run
    is in two of these means, and seeds that are left over are in none."""

    @model_validator(mode="after")
    def _trained_or_of_another(self) -> Self:
        if self.of is not None and (self.configs or self.settings):
            raise ValueError(f"of: {self.of} trains nothing, so it takes neither configs nor settings")
        if self.of is None and self.runs > 1:
            raise ValueError("runs: averages those of another row; name it with `of`")
        return self


class BenchConfig(Settings):
    """A bench file: what every run shares, and the axes of the matrix."""

    configs: tuple[Path, ...]
    """Files for every run, merged in this order: the dataset, then perhaps a size."""
    settings: dict[str, Any] = {}
    """Sections over the files, for every run."""
    source: Path | None = None
    """The raw dataset; not needed where data.root is prepared already."""
    methods: dict[str, MethodRow]
    """Rows of the comparison by name. A supervised row is added where there is none."""
    labelled: tuple[PositiveInt, ...]
    """How many train with their label."""
    all_labels: tuple[str, ...] = (BASELINE,)
    """Rows that also run with every training label: the ceiling."""
    as_long_as: str | None = None
    """A row whose time the others get as well: each runs once more as `NAME, same time`, with as many steps as take as
    long as this row's own."""
    references: tuple[str, ...] = (BASELINE,)
    """Rows that the others are compared with, each for itself."""
    draws: tuple[NonNegativeInt, ...] = (0,)
    """Seeds of the choice of labelled patients; validation and test patients are those of the first."""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Training seeds."""
    count: Literal["patients", "cases"] = "patients"
    """What `labelled`, `val` and `test` count."""
    val: PositiveInt | None = None
    test: PositiveInt | None = None
    published: Path | None = None
    """A file of configs/split/ whose lists take the place of draws. Where it has no validation patients, the last `val`
    of its training list are."""
    checkpoint: Literal["best", "last"] = "best"
    """The weights that are scored: those that validation chose, or those of the last step."""
    network: Which | None = None
    """The network that is scored; null: as each method's settings say."""
    parallel: PositiveInt | None = None
    """Runs at a time on this machine; null: one per GPU, and one on a CPU."""
    threads: PositiveInt | None = None
    """CPU threads of each run; null divides the cores."""

    @field_validator("methods", mode="before")
    @classmethod
    def _plain_names(cls, value: Any) -> Any:
        """A row may stand there without anything: `bcp:`."""
        return {k: v or {} for k, v in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    method: str
    labelled: int | None
    """None: all."""
    draw: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.method}__{self.split}__seed-{self.seed}".replace(" ", "-")

    @property
    def split(self) -> str:
        """The name of its split."""
        return f"{self.labelled or ALL}-labelled__draw-{self.draw}"

    def __str__(self) -> str:
        return f"{self.method}, {self.labelled or ALL} labelled, draw {self.draw}, seed {self.seed}"


class Bench:
    """A matrix and its folder."""

    def __init__(self, config: BenchConfig, out: Path) -> None:
        self.config, self.out = config, out
        rows = config.methods
        self.methods = {BASELINE: rows.get(BASELINE, MethodRow()), **{k: v for k, v in rows.items() if k != BASELINE}}
        self.same_time = self._same_time()
        self.methods |= {again: self.methods[name] for again, name in self.same_time.items()}
        self._check_names("all_labels", config.all_labels)
        self._check_names("references", config.references)
        self._check_rows_of_others()
        self.times = read_times(self.times_file) if self.same_time and self.times_file.exists() else {}
        self.cells = self._cells()
        self.settings = {cell: self._settings(cell) for cell in self.cells if not self.is_untimed(cell)}

    def run(self, cell: Cell) -> Path:
        """The folder of a run."""
        return self.out / "runs" / cell.name

    def split(self, cell: Cell) -> Path:
        """The file of its split."""
        return self.out / "splits" / f"{cell.split}.json"

    def config_file(self, cell: Cell) -> Path:
        """The file of its resolved settings."""
        return self.out / "configs" / f"{cell.name}.yaml"

    @property
    def times_file(self) -> Path:
        """The file of how long a step of each row takes."""
        return self.out / "times.csv"

    def log(self, cell: Cell) -> Path:
        """What its commands said."""
        return self.out / "logs" / f"{cell.name}.txt"

    def is_done(self, cell: Cell) -> bool:
        """Whether a run is trained and scored."""
        return (self.run(cell) / "scores.csv").exists()

    def data(self) -> DatasetConfig:
        """The dataset of all runs."""
        return next(iter(self.settings.values())).data

    def sources(self, cell: Cell) -> list[Cell]:
        """The runs whose predictions a run without a training of its own scores; none for one that trains."""
        row = self.methods[cell.method]
        if row.of is None:
            return []
        first = self.config.seeds.index(cell.seed)
        return [replace(cell, method=row.of, seed=seed) for seed in self.config.seeds[first : first + row.runs]]

    def network(self, cell: Cell) -> Which | None:
        """The network that is scored; None: as the run's settings say."""
        row = self.methods[cell.method]
        trained = self.methods[row.of or cell.method]
        return row.network or trained.network or self.config.network

    def trained_as(self, row: str) -> str:
        """The row whose settings these are, all but the steps."""
        return self.same_time.get(row, row)

    def own_settings(self, name: str, cell: Cell) -> RunConfig:
        """What a row's name stands for, with the seed and split of a run."""
        row = self.methods[name]
        files = [*self.config.configs, *(row.configs or [Path(f"configs/method/{name}.yaml")])]
        try:
            values = merge([found(path) for path in files])
            for sections in (self.config.settings, row.settings):
                update(values, sections)
            root = values.get("data", {}).get("root") or str(self.out / "prepared")
            update(values, {"name": name, "train": {"seed": cell.seed}})
            update(values, {"data": {"root": root, "splits": str(self.split(cell))}})
            return parse(RunConfig, values)
        except ConfigError as error:
            raise ConfigError(f"row {name}: {error}") from None

    def untimed(self) -> list[str]:
        """The rows of which it must be known, and is not, how long a step takes."""
        wanted = dict.fromkeys([*self.same_time.values(), str(self.config.as_long_as)]) if self.same_time else {}
        return [row for row in wanted if row not in self.times]

    def is_untimed(self, cell: Cell) -> bool:
        """Whether the steps of a run follow from times that are not known."""
        if sources := self.sources(cell):
            return self.is_untimed(sources[0])
        needed = {self.trained_as(cell.method), self.config.as_long_as}
        return cell.method in self.same_time and not needed <= self.times.keys()

    def steps_in_time(self, row: str) -> tuple[int, int]:
        """The steps of a row's own runs, and how many take as long as those of the row that gives the time."""
        reference = str(self.config.as_long_as)
        own, theirs = (self.own_settings(name, self.cells[0]).train.iterations for name in (row, reference))
        return own, max(1, round(theirs * self.times[reference] / self.times[row]))

    def _same_time(self) -> dict[str, str]:
        """The rows that run for the time of another, and the rows that they repeat."""
        reference = self.config.as_long_as
        if reference is None:
            return {}
        self._check_names("as_long_as", [reference])
        if self.methods[reference].of is not None:
            raise ConfigError(f"as_long_as: {reference} trains nothing; name a row that does")
        return {name + SAME_TIME: name for name, row in self.methods.items() if name != reference and row.of is None}

    def _check_names(self, key: str, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.methods]
        if unknown:
            raise ConfigError(f"{key}: {', '.join(unknown)} is no row; there are {', '.join(self.methods)}")

    def _check_rows_of_others(self) -> None:
        for name, row in self.methods.items():
            if row.of is None:
                continue
            self._check_names(f"methods.{name}.of", [row.of])
            if self.methods[row.of].of is not None:
                raise ConfigError(f"methods.{name}.of: {row.of} trains nothing; name a row that does")
            if name in self.config.all_labels and row.of not in self.config.all_labels:
                raise ConfigError(f"all_labels: has {name}, and not {row.of} that it scores")
            if row.runs > len(self.config.seeds):
                raise ConfigError(f"methods.{name}.runs: {row.runs}, and there are {len(self.config.seeds)} seeds")

    def _cells(self) -> list[Cell]:
        """The matrix; the first seed of everything comes before the second of anything."""
        config, cells = self.config, []
        for (place, seed), draw in itertools.product(enumerate(config.seeds), config.draws):
            rows = [name for name, row in self.methods.items()
                    if place % row.runs == 0 and place + row.runs <= len(config.seeds)]  # fmt: skip
            cells += [Cell(m, n, draw, seed) for n in sorted(config.labelled) for m in rows]
            if draw == config.draws[0]:
                cells += [Cell(m, None, draw, seed) for m in config.all_labels if m in rows]
        return cells

    def _settings(self, cell: Cell) -> RunConfig:
        """All settings of a run, those of a row at the same time with validations at the same places of the run."""
        if sources := self.sources(cell):
            return self._settings(sources[0]).model_copy(update={"name": cell.method})
        settings = self.own_settings(self.trained_as(cell.method), cell)
        if cell.method not in self.same_time:
            return settings
        own, steps = self.steps_in_time(self.trained_as(cell.method))
        every = settings.train.validate_every
        train = {"iterations": steps, "validate_every": every and max(1, round(every * steps / own))}
        return settings.model_copy(update={"name": cell.method, "train": settings.train.model_copy(update=train)})


def load_bench(path: Path, overrides: Sequence[str] = ()) -> BenchConfig:
    """Read a bench file; overrides are `key=value` as for a training."""
    return parse(BenchConfig, merge([found(path)], overrides))


def bench(config: BenchConfig, out: Path, *, engine: Engine = "local", device: str = "auto") -> Path:
    """Run what is missing of a matrix, then write its table and report; the report's path comes back.

    A failed run does not stop the others; the same call tries it again.

    Raises:
        ConfigError: settings that do not fit, or `out` holds runs of other settings.
        DataError: the dataset cannot be prepared or divided as asked.
        Interrupted: Ctrl-C or SIGTERM arrived; the runs were saved.
        RunsFailed: some runs failed; the others are finished.
    """
    matrix = Bench(config, out)
    dataset = prepared_dataset(matrix)
    write_splits(matrix, dataset)
    write_configs(matrix)
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
    _say(f"table in {table}")
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
            advance(str(cell))
            _say(f"{cell}: {_outcome(matrix, cell, code)}")
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


def finished(matrix: Bench) -> list[Path]:
    """The folders of the runs that are trained and scored."""
    return [matrix.run(cell) for cell in matrix.cells if matrix.is_done(cell)]


# ---- before the runs


def prepared_dataset(matrix: Bench) -> PreparedDataset:
    """The dataset that the settings name, or the bench's own, prepared now where it is not."""
    data, source = matrix.data(), matrix.config.source
    assert data.root is not None  # _settings gave one
    if source is not None and data.root == matrix.out / "prepared":
        return prepare(source, data.root, data)
    if source is None and not data.root.exists():
        raise ConfigError("nothing to run on: name the raw dataset with --set source=FOLDER, or a prepared one with "
                          "--set settings.data.root=FOLDER")  # fmt: skip
    return read_prepared(data.root)


def write_splits(matrix: Bench, dataset: PreparedDataset) -> None:
    """Write the splits that are not there yet, and check those that are."""
    config = matrix.config
    held = _held_out(config, dataset)
    for cell in matrix.cells:
        path = matrix.split(cell)
        if path.exists():
            split = read_split(path, dataset)
            if set(split.test) != set(held["test"]) or set(split.val) != set(held["val"]):
                raise ConfigError(
                    f"{path}: has other validation or test cases than are asked for; choose another --out"
                )
        else:
            write_split(path, _split_of(cell, config, dataset, held))


def _held_out(config: BenchConfig, dataset: PreparedDataset) -> dict[Part, tuple[str, ...]]:
    """Validation and test cases, the same for the whole matrix."""
    lists = _lists(config)
    for part in ("val", "test"):
        if part not in lists and getattr(config, part) is None:
            raise ConfigError(f"{part}: say how many {config.count}")
    base = make_split(
        dataset, labelled=1, val=config.val or 0, test=config.test or 0, seed=config.draws[0], unit=config.count,
        given={part: lists[part] for part in ("val", "test") if part in lists},
    )  # fmt: skip
    return {"val": base.val, "test": base.test}


def _lists(config: BenchConfig, labelled: int = 1) -> dict[Part, list[str]]:
    """Published names by part; nothing where the matrix is drawn."""
    if config.published is None:
        return {}
    lists = read_published_split(found(config.published))
    val = lists.val or lists.train[len(lists.train) - (config.val or 0) :]
    return {**lists.parts(labelled, without=val), "val": list(val)}


def _split_of(cell: Cell, config: BenchConfig, dataset: PreparedDataset, held: Mapping[Part, Sequence[str]]) -> Split:
    given = dict(held)
    if cell.labelled is None:
        away = {dataset.cases[id].subject for ids in held.values() for id in ids}
        given["labelled"] = [id for id, case in dataset.cases.items() if case.labelled and case.subject not in away]
    else:
        given = {**_lists(config, cell.labelled), **held}
    number = cell.labelled or 0
    return make_split(dataset, labelled=number, val=0, test=0, seed=cell.draw, unit=config.count, given=given)


def write_configs(matrix: Bench) -> None:
    """Write the settings of all runs; one that has begun must have had the same."""
    changed = _changed_scoring(matrix)
    for cell, settings in matrix.settings.items():
        path, plain = matrix.config_file(cell), settings.to_plain()
        before = load_yaml(path.read_text()) if path.exists() else plain
        if before != plain and matrix.run(cell).exists():
            changed.append(f"  {path}: {', '.join(k for k in plain if before.get(k) != plain[k])}")
    if changed:
        raise ConfigError(
            f"{matrix.out}: {len(changed)} files tell of runs with other settings (those named)\n"
            + "\n".join(changed[:10])
            + "\nChoose another --out, or remove these runs and files."
        )
    (matrix.out / "configs").mkdir(parents=True, exist_ok=True)
    dump(matrix.config.model_dump(mode="json"), matrix.out / "bench.yaml")
    for cell, settings in matrix.settings.items():
        dump(settings.to_plain(), matrix.config_file(cell))


def _changed_scoring(matrix: Bench) -> list[str]:
    """Whether runs that are finished were scored in another way than is asked for now."""
    path, now = matrix.out / "bench.yaml", matrix.config
    before = parse(BenchConfig, load_yaml(path.read_text())) if path.exists() and finished(matrix) else now
    keys = [key for key in ("checkpoint", "network") if getattr(before, key) != getattr(now, key)]
    done = {matrix.trained_as(cell.method) for cell in matrix.cells if matrix.is_done(cell)}
    for name in done & before.methods.keys() & now.methods.keys():
        rows = (before.methods[name], now.methods[name])
        keys += [
            f"methods.{name}.{key}" for key in ("network", "of", "runs") if len({getattr(r, key) for r in rows}) > 1
        ]
    return [f"  {path}: {', '.join(keys)}"] if keys else []


def slots_of(matrix: Bench, device: str) -> list[str | None]:
    """The GPU of each run that works at a time, as CUDA_VISIBLE_DEVICES names it; None stands for no choice."""
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    count = matrix.config.parallel or max(1, len(gpus))
    return [gpus[i % len(gpus)] if len(gpus) > 1 else None for i in range(count)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that it was given, or by their numbers."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",")] if named else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def threads_of(config: BenchConfig, at_a_time: int) -> int:
    """CPU threads of each run."""
    return config.threads or max(1, available_cpus() // at_a_time)


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
    _say(f"timing a step of {', '.join(matrix.untimed())}")
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
    with whole_file(matrix.times_file) as partial, partial.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("row", "seconds_per_step", "steps", "steps_same_time"))
        table.writerows((row, seconds, *matrix.steps_in_time(row)) for row, seconds in matrix.times.items())


def read_times(path: Path) -> dict[str, float]:
    """Seconds of a step of each row. What else is in the table follows from them and is not read.

    Raises:
        DataError: no such columns, or a time that is not above 0.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        times = {row["row"]: float(row["seconds_per_step"]) for row in rows}
        if all(0 < seconds < float("inf") for seconds in times.values()):
            return times
    except (KeyError, TypeError, ValueError):
        pass
    raise DataError(f"{path}: expected columns `row` and `seconds_per_step`, with seconds above 0")


def make_job(matrix: Bench, cell: Cell, prepared: Path, device: str, threads: int) -> Job:
    """Train, predict the test cases, evaluate: as one would by hand. A row of others' runs is not trained."""
    run, config, sources = matrix.run(cell), matrix.config, [matrix.run(source) for source in matrix.sources(cell)]
    protocol = matrix.settings[cell].protocol
    conventions = (
        ("--convention", "strict", "--convention", protocol.convention) if protocol and protocol.convention else ()
    )
    chosen = matrix.network(cell)
    network = () if chosen is None else ("--network", chosen)
    training = ("train", matrix.config_file(cell), "--out", run, "--resume", "--device", device)
    first, *others = sources or [run]
    also = [word for other in others for word in ("--run", other)]
    commands = (
        *([] if sources else [training]),
        ("predict", first, *also, "--part", "test", "--checkpoint", config.checkpoint, *network, "--device", device,
         "--uncertainty", "-o", run / "test", "--overwrite"),
        ("evaluate", run / "test", prepared, "-o", run / "scores.csv", "--overwrite", "--workers", 0, *conventions),
    )  # fmt: skip
    words = tuple(tuple(map(str, command)) for command in commands)
    return Job(cell.name, words, matrix.log(cell), threads)


def write_untrained(matrix: Bench, cell: Cell) -> None:
    """The run folder of a row of others' runs: the first one's split and machine, and the time of all their steps."""
    run, sources = matrix.run(cell), [matrix.run(source) for source in matrix.sources(cell)]
    run.mkdir(parents=True, exist_ok=True)
    dump(matrix.settings[cell].to_plain(), run / "config.yaml")
    for name in ("splits.json", "env.json"):
        shutil.copyfile(sources[0] / name, run / name)
    steps = matrix.settings[cell].train.iterations
    seconds = sum(training_seconds(read_metrics(source / "metrics.csv")) for source in sources) / steps
    with whole_file(run / "metrics.csv") as partial:
        partial.write_text(f"step,seconds_per_step\n{steps},{seconds:.6g}\n")


# ---- what came of them


def write_table(matrix: Bench, codes: Mapping[Cell, int]) -> Path:
    """runs.csv: a row per run of the matrix, whatever its state."""
    path = matrix.out / "runs.csv"
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        table = csv.DictWriter(file, _COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(_row(matrix, cell, codes.get(cell)) for cell in matrix.cells)
    return path


def write_comparison(matrix: Bench) -> list[list[str]]:
    """comparison.csv: a row per method and labelled count, with what its difference to each reference amounts to.

    Beside it curves.csv has the mean validation Dice of each row at each step, and its spread over runs.
    """
    rows = make_rows(load_runs(finished(matrix)))
    references = matrix.config.references
    cells = table_cells(comparison_table(rows, "dice", references), "dice", references)
    curves = [["row", "labelled", "step", "runs", "mean", "sd"]]
    for row in rows:
        for point in row.curve("val/dice"):
            sd = "" if point.sd is None else f"{point.sd:.4f}"
            curves.append([row.key.method, *map(str, (row.key.labelled, point.step, len(point.values))),
                           f"{point.mean:.4f}", sd])  # fmt: skip
    for name, lines in (("comparison.csv", cells), ("curves.csv", curves)):
        with whole_file(matrix.out / name) as partial, partial.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
    return cells


def print_comparison(cells: Sequence[Sequence[str]], console: Console | None = None) -> None:
    """Show the comparison: Dice of each row and the verdict, a table for each reference."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    heads = cells[0]
    names = ("method", "seeds", "minutes", "dice, %", "95 % interval", "sd of runs")
    for verdict in (i for i, head in enumerate(heads) if head.startswith("verdict")):
        shown = [*map(heads.index, names), verdict]
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in shown:
            table.add_column(escape(heads[column]))
        for row in cells[1:]:
            table.add_row(*(escape(row[column]) for column in shown))
        (console or Console()).print(table)


def _row(matrix: Bench, cell: Cell, code: int | None) -> dict[str, Any]:
    run, steps = matrix.run(cell), matrix.settings[cell].train.iterations
    facts = {"method": cell.method, "labelled": cell.labelled or ALL, "draw": cell.draw, "seed": cell.seed}
    row = {**facts, "steps": steps, "run": run.relative_to(matrix.out)}
    if not matrix.is_done(cell):
        return {**row, "status": f"failed ({code})" if code else "waiting"}
    overall = summarise(read_scores(run / "scores.csv")).overall
    metrics = read_metrics(run / "metrics.csv")
    val = [each["val/dice"] for each in metrics if "val/dice" in each]
    chosen = (max(val) if matrix.config.checkpoint == "best" else val[-1]) if val else None
    numbers = {"minutes": training_seconds(metrics) / 60, "val_dice": chosen, "dice": overall.dice.mean,
               "hd95": overall.hd95.mean, "asd": overall.asd.mean}  # fmt: skip
    shown = {k: f"{v:.4g}" if k == "minutes" else f"{v:.4f}" for k, v in numbers.items() if v is not None}
    return {**row, **shown, "status": "done", "missed": overall.missed, "cases": overall.dice.n}


def _outcome(matrix: Bench, cell: Cell, code: int) -> str:
    if code:
        return f"exit code {code}, see {matrix.log(cell)}"
    row = _row(matrix, cell, code)
    return f"test Dice {row.get('dice', '-')} after {row['minutes']} minutes of steps"


# ---- the plan


@dataclass(frozen=True)
class PlanRow:
    """The runs of one method at one labelled count."""

    method: str
    labelled: int | None
    runs: int
    done: int
    steps: int | None
    """None: to be measured, so that a run takes as long as one of the row that `as_long_as` names. 0: of other runs."""
    seconds_per_step: float
    """As the finished runs took, as times.csv says, or as two steps on noise take now."""
    seconds: float
    """Of a run."""


def plan(config: BenchConfig, out: Path, *, device: str = "auto") -> list[PlanRow]:
    """The matrix, with the time that a step of each row takes on this machine; nothing is written."""
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
    known = _known_seconds(matrix, row) or matrix.times.get(row)
    return known or seconds_per_step(matrix.settings[next(c for c in matrix.cells if c.method == row)], device)


def _known_seconds(matrix: Bench, method: str) -> float | None:
    known = []
    for cell in matrix.cells:
        if cell.method == method and matrix.is_done(cell):
            known.append(
                training_seconds(read_metrics(matrix.run(cell) / "metrics.csv"))
                / matrix.settings[cell].train.iterations
            )
    return sum(known) / len(known) if known else None


def seconds_per_step(settings: RunConfig, device: str) -> float:
    """Time of a step on noise of the right shape, from the middle of a run; the first of two warms up."""
    import torch

    from medssl.device import choose_device, wait_for
    from medssl.parts.sample import TrainBatch
    from medssl.train import make_trainer

    trainer = make_trainer(settings, Path(), choose_device(device))
    train, data, place = settings.train, settings.data, trainer.device
    image = torch.randn(train.labelled_batch, len(data.channels), *train.patch, device=place)
    label = torch.randint(len(data.classes), (train.labelled_batch, *train.patch), device=place)
    unlabelled = torch.randn(train.unlabelled_batch, *image.shape[1:], device=place)
    batch = TrainBatch(image, label, unlabelled, tuple(range(train.unlabelled_batch)))
    trainer.iteration = train.iterations // 2
    for _ in range(2):
        started = time.monotonic()
        trainer.train_step(batch)
        wait_for(place)
    return time.monotonic() - started


def print_plan(rows: Sequence[PlanRow], at_a_time: int, console: Console | None = None) -> None:
    """Show the matrix and how long the rest of it takes."""
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
    console = console or Console()
    console.print(table)
    runs, done = sum(row.runs for row in rows), sum(row.done for row in rows)
    left = f"about {sum(hours) / at_a_time:.1f} hours of steps left with {at_a_time} at a time"
    console.print(f"{runs} runs, {done} done; {left}, validation and prediction not counted", soft_wrap=True,
                  highlight=False)  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
