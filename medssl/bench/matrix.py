"""The runs that a bench file describes (rows x labelled counts x draws x seeds), their settings and their paths."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from medssl.comparison import BASELINE
from medssl.config import EACH_ONCE, Settings, config_path, merge, parse, update
from medssl.data.cases import DatasetConfig
from medssl.data.splits import Unit
from medssl.errors import ConfigError, DataError
from medssl.predictor import Which
from medssl.run import RunConfig

ALL: Literal["all"] = "all"
"""Used in place of a labelled count: every training case keeps its label."""
SAME_TIME = ", same time"
"""Suffix of the names of rows that train for as long as the `as_long_as` row."""
NOT_IN_NAMES = set('/\\:*?"<>|')
"""Characters that a row's name must not contain, since some systems do not allow them in folder names."""


class MethodRow(Settings):
    """One method of the matrix, or a variant of one."""

    configs: tuple[Path, ...] = ()
    """Files merged over those of the bench. Empty: configs/method/NAME.yaml, where NAME is the name of the row."""
    settings: dict[str, Any] = {}
    """Sections that override the files."""
    network: Which | None = None
    """Network that is scored, in place of that of the bench. null: that of the bench."""
    mirror: bool = False
    """Score predictions averaged over mirrored windows, see `window.mirror`."""
    of: str | None = None
    """Name of another row. This row then trains nothing and scores the runs of that row in another way: with another
    `network`, with `mirror`, or with several `runs` as one."""
    runs: PositiveInt = 1
    """With `of`: number of its runs, with consecutive seeds, whose class probabilities are averaged. No run is in two
    means; left-over seeds are not used."""

    @model_validator(mode="after")
    def _trained_or_of_another(self) -> Self:
        if self.of is not None and (self.configs or self.settings):
            raise ValueError(f"of: a row with `of: {self.of}` is not trained; remove its configs and settings")
        if self.of is None and self.runs > 1:
            raise ValueError(
                f"runs: must be 1 without `of`, got {self.runs}; name in `of` the row whose runs are averaged"
            )
        return self


class BenchConfig(Settings):
    """A bench file: what every run shares, and the axes of the matrix."""

    configs: tuple[Path, ...]
    """Files for every run, merged in this order: the dataset, then optionally a size."""
    settings: dict[str, Any] = {}
    """Sections that override the files, for every run."""
    source: Path | None = None
    """Raw dataset. Not needed if data.root is already prepared."""
    methods: dict[str, MethodRow]
    """Rows of the comparison by name. A supervised row is added if there is none."""
    labelled: Annotated[tuple[PositiveInt, ...], EACH_ONCE]
    """Numbers of labelled training patients or cases (see `count`)."""
    all_labels: Annotated[tuple[str, ...], EACH_ONCE] = (BASELINE,)
    """Rows that also run with every training label, as an upper limit."""
    as_long_as: str | None = None
    """Row whose training time the other rows also get: each of them runs once more as `NAME, same time`, with as many
    steps as fit into that time."""
    references: tuple[str, ...] = (BASELINE,)
    """Rows with which the others are compared, each separately."""
    draws: Annotated[tuple[NonNegativeInt, ...], EACH_ONCE] = Field((0,), min_length=1)
    """Seeds for the choice of labelled patients. Validation and test patients are those of the first draw."""
    seeds: Annotated[tuple[NonNegativeInt, ...], EACH_ONCE] = Field((0, 1, 2), min_length=1)
    """Training seeds."""
    count: Unit = "patients"
    """Unit of `labelled`, `val` and `test`."""
    val: PositiveInt | None = None
    test: PositiveInt | None = None
    published: Path | None = None
    """File of configs/split/ whose lists replace the draws. If it has no validation patients, the last `val` of its
    training list are used."""
    checkpoint: Literal["best", "last"] = "best"
    """Weights that are scored: `best`, chosen by validation, or `last`, those after the last step."""
    network: Which | None = None
    """Network that is scored. null: as each method's settings say."""
    parallel: PositiveInt | None = None
    """Runs at the same time on this machine. null: one per GPU, or one on a CPU."""
    threads: PositiveInt | None = None
    """CPU threads of each run. null: OMP_NUM_THREADS if it is set, otherwise an equal share of the cores."""

    @field_validator("methods", mode="before")
    @classmethod
    def _plain_names(cls, value: Any) -> Any:
        """Accept a row without a value, such as `bcp:`."""
        return {k: v or {} for k, v in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    method: str
    labelled: int | None
    """None: all training cases are labelled."""
    draw: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{folder_name(self.method)}__{self.split}__seed-{self.seed}"

    @property
    def split(self) -> str:
        """The name of its split."""
        return f"{self.labelled or ALL}-labelled__draw-{self.draw}"

    def __str__(self) -> str:
        return f"{self.method}, {self.labelled or ALL} labelled, draw {self.draw}, seed {self.seed}"


class Bench:
    """The runs of a bench file, their settings, and their files in the folder `out`."""

    def __init__(self, config: BenchConfig, out: Path) -> None:
        self.config, self.out = config, out
        rows = config.methods
        self.methods = {BASELINE: rows.get(BASELINE, MethodRow()), **{k: v for k, v in rows.items() if k != BASELINE}}
        self.same_time = self._same_time()
        self.methods |= {again: self.methods[name] for again, name in self.same_time.items()}
        self._check_folders()
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
        """The split file of a run."""
        return self.out / "splits" / f"{cell.split}.json"

    def config_file(self, cell: Cell) -> Path:
        """The file with the resolved settings of a run."""
        return self.out / "configs" / f"{cell.name}.yaml"

    @property
    def times_file(self) -> Path:
        """The file with the seconds per step of each row."""
        return self.out / "times.csv"

    def log(self, cell: Cell) -> Path:
        """The file with the output of a run's commands."""
        return self.out / "logs" / f"{cell.name}.txt"

    def is_done(self, cell: Cell) -> bool:
        """Return whether a run is trained and scored."""
        return (self.run(cell) / "scores.csv").exists()

    def data(self) -> DatasetConfig:
        """The dataset of all runs."""
        return next(iter(self.settings.values())).data

    def sources(self, cell: Cell) -> list[Cell]:
        """Return the trained runs that a run of a row with `of` uses; empty for a run that is trained itself."""
        row = self.methods[cell.method]
        if row.of is None:
            return []
        first = self.config.seeds.index(cell.seed)
        return [replace(cell, method=row.of, seed=seed) for seed in self.config.seeds[first : first + row.runs]]

    def network(self, cell: Cell) -> Which | None:
        """Return the network that is scored; None: as the run's settings say."""
        row = self.methods[cell.method]
        trained = self.methods[row.of or cell.method]
        return row.network or trained.network or self.config.network

    def mirrors(self, cell: Cell) -> bool:
        """Return whether the row asks for mirrored windows, whatever `window.mirror` of the run's settings says."""
        row = self.methods[cell.method]
        return row.mirror or self.methods[row.of or cell.method].mirror

    def trained_as(self, row: str) -> str:
        """Return the row whose settings, except the steps, a row uses."""
        return self.same_time.get(row, row)

    def own_settings(self, name: str, cell: Cell) -> RunConfig:
        """Return the settings of a row, with the seed and split of a run."""
        row = self.methods[name]
        files = [*self.config.configs, *(row.configs or [Path(f"configs/method/{name}.yaml")])]
        try:
            values = merge([config_path(path) for path in files])
            for sections in (self.config.settings, row.settings):
                update(values, sections)
            root = values.get("data", {}).get("root") or str(self.out / "prepared")
            update(values, {"name": name, "train": {"seed": cell.seed}})
            update(values, {"data": {"root": root, "splits": str(self.split(cell))}})
            return parse(RunConfig, values)
        except ConfigError as error:
            raise ConfigError(f"row {name}: {error}") from None

    def untimed(self) -> list[str]:
        """Return the rows whose step time is needed but not known."""
        wanted = dict.fromkeys([*self.same_time.values(), str(self.config.as_long_as)]) if self.same_time else {}
        return [row for row in wanted if row not in self.times]

    def is_untimed(self, cell: Cell) -> bool:
        """Return whether the number of steps of a run depends on step times that are not known."""
        if sources := self.sources(cell):
            return self.is_untimed(sources[0])
        needed = {self.trained_as(cell.method), self.config.as_long_as}
        return cell.method in self.same_time and not needed <= self.times.keys()

    def steps_in_time(self, row: str) -> tuple[int, int]:
        """Return the steps of a row's own runs, and the steps that take as long as a run of the `as_long_as` row."""
        reference = str(self.config.as_long_as)
        own, theirs = (self.own_settings(name, self.cells[0]).train.iterations for name in (row, reference))
        return own, max(1, round(theirs * self.times[reference] / self.times[row]))

    def _same_time(self) -> dict[str, str]:
        """Map the names of the `same time` rows to the rows that they repeat."""
        reference = self.config.as_long_as
        if reference is None:
            return {}
        self._check_names("as_long_as", [reference])
        if self.methods[reference].of is not None:
            raise ConfigError(f"as_long_as: row {reference} has `of` and is not trained; name a row that is trained")
        return {name + SAME_TIME: name for name, row in self.methods.items() if name != reference and row.of is None}

    def _check_folders(self) -> None:
        """Refuse row names that are not valid folder names on every system, or that lead to the same folder."""
        taken: dict[str, str] = {}
        for name in self.methods:
            if not name or set(name) & NOT_IN_NAMES or not name.isprintable():
                raise ConfigError(
                    f"methods: row name {name!r} must also be a folder name: not empty, printable, and without "
                    f"any of {' '.join(sorted(NOT_IN_NAMES))}"
                )
            other = taken.setdefault(folder_name(name).casefold(), name)
            if other != name:
                raise ConfigError(f"methods: rows {other} and {name} would use the same folders; rename one of them")

    def _check_names(self, key: str, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.methods]
        if unknown:
            raise ConfigError(f"{key}: no such row: {', '.join(unknown)}; the rows are {', '.join(self.methods)}")

    def _check_rows_of_others(self) -> None:
        for name, row in self.methods.items():
            if row.of is None:
                continue
            self._check_names(f"methods.{name}.of", [row.of])
            if self.methods[row.of].of is not None:
                raise ConfigError(f"methods.{name}.of: row {row.of} is not trained itself; name a row that is trained")
            if name in self.config.all_labels and row.of not in self.config.all_labels:
                raise ConfigError(f"all_labels: {name} scores the runs of {row.of}; add {row.of}, or remove {name}")
            if row.runs > len(self.config.seeds):
                seeds = len(self.config.seeds)
                raise ConfigError(f"methods.{name}.runs: must be at most {seeds}, the number of seeds, got {row.runs}")

    def _cells(self) -> list[Cell]:
        """All runs, ordered so that every row has run with the first seed before any runs with the second."""
        config, cells = self.config, []
        for (place, seed), draw in itertools.product(enumerate(config.seeds), config.draws):
            rows = [name for name, row in self.methods.items()
                    if place % row.runs == 0 and place + row.runs <= len(config.seeds)]  # fmt: skip
            cells += [Cell(m, n, draw, seed) for n in sorted(config.labelled) for m in rows]
            if draw == config.draws[0]:
                cells += [Cell(m, None, draw, seed) for m in config.all_labels if m in rows]
        return cells

    def _settings(self, cell: Cell) -> RunConfig:
        """All settings of a run. A `same time` row validates at the same fractions of its run as the row it repeats."""
        if sources := self.sources(cell):
            return self._settings(sources[0]).model_copy(update={"name": cell.method})
        settings = self.own_settings(self.trained_as(cell.method), cell)
        if cell.method not in self.same_time:
            return settings
        own, steps = self.steps_in_time(self.trained_as(cell.method))
        every = settings.train.validate_every
        train = {"iterations": steps, "validate_every": every and max(1, round(every * steps / own))}
        return settings.model_copy(update={"name": cell.method, "train": settings.train.model_copy(update=train)})


def folder_name(row: str) -> str:
    """Return the start of the folder names of a row's runs."""
    return row.replace(" ", "-")


def load_bench(path: Path, overrides: Sequence[str] = ()) -> BenchConfig:
    """Read a bench file; overrides are `key=value` as for `medssl train --set`."""
    return parse(BenchConfig, merge([config_path(path)], overrides))


def read_times(path: Path) -> dict[str, float]:
    """Read the seconds per step of each row. The other columns are computed from them and not read.

    Raises:
        DataError: a column is missing, or a time is not a finite number above 0.
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
