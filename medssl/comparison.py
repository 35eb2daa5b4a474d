"""Runs read from their folders and gathered into the rows of a comparison: equal but for their seed.

Numbers stay as scores.csv has them (Dice from 0 to 1); nothing is drawn or rendered here.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from medssl.config import load_yaml
from medssl.errors import ConfigError, DataError
from medssl.figures import STYLES, method_colours
from medssl.logs import read_metrics
from medssl.scores import Scores, Spread, Summary, read_scores, summarise

PARTS = ("labelled", "unlabelled", "val", "test")
BASELINE = "supervised"

_FILES = ("config.yaml", "splits.json", "env.json", "metrics.csv")
_NEEDED = ("data.name", "data.classes", "method.name", "augment.preset", "train.iterations", "train.seed",
           "window.network")  # fmt: skip
_SEED_AND_PLACE = {"train.seed", "train.workers", "data.root", "data.splits"}


class Key(NamedTuple):
    """What runs of one row share."""

    method: str
    labelled: int
    augment: str
    steps: int
    network: str
    """Whose predictions were scored: student, teacher or ensemble."""


@dataclass(frozen=True)
class Run:
    """A run folder in memory."""

    path: Path
    settings: dict[str, Any]
    """config.yaml, its keys joined by dots."""
    config_text: str
    splits: dict[str, list[str]]
    environment: dict[str, Any]
    metrics: list[dict[str, float]]
    scores: Scores | None
    files: dict[str, tuple[Path, Path]]
    """Prediction and reference of each scored case."""
    made: dict[str, Any]
    """predictions.json, empty when there is none."""

    @property
    def key(self) -> Key:
        """The row that this run belongs to."""
        s = self.settings
        network = str(self.made.get("network", s["window.network"]))
        return Key(s["method.name"], len(self.splits["labelled"]), s["augment.preset"], s["train.iterations"], network)

    @property
    def seed(self) -> int:
        """The seed that decides everything random in the run."""
        return int(self.settings["train.seed"])

    @cached_property
    def summary(self) -> Summary | None:
        """Its scores over cases; None when it was not scored."""
        return None if self.scores is None else summarise(self.scores)

    @cached_property
    def case_dice(self) -> dict[str, float]:
        """Each case's mean Dice over the classes where it is defined."""
        found: dict[str, list[float]] = defaultdict(list)
        for score in self.scores or ():
            if score.dice is not None:
                found[score.case].append(score.dice)
        return {case: statistics.fmean(values) for case, values in found.items()}

    def curve(self, *names: str) -> tuple[list[float], list[float]]:
        """Steps, and the values of a column there (the sum of several), where all are finite."""
        rows = [(row["step"], sum(row[n] for n in names)) for row in self.metrics if all(n in row for n in names)]
        rows = [(step, value) for step, value in rows if math.isfinite(value)]
        return [step for step, _ in rows], [value for _, value in rows]

    @property
    def best_validation(self) -> tuple[float, float] | None:
        """Highest validation Dice, and the first step that reached it."""
        steps, values = self.curve("val/dice")
        return max(zip(values, (-step for step in steps), strict=True), default=None)

    @property
    def last_step(self) -> int:
        """The last step that was logged."""
        return int(max((row["step"] for row in self.metrics), default=0))


@dataclass(frozen=True)
class Row:
    """Runs that should differ by their seed only, in order of seed."""

    key: Key
    runs: tuple[Run, ...]
    name: str
    colour: str
    style: str

    @property
    def scored(self) -> tuple[Run, ...]:
        """Those of its runs that have scores."""
        return tuple(run for run in self.runs if run.scores is not None)

    @cached_property
    def summary(self) -> Summary | None:
        """Over the cases of all its runs, a case counting once per seed."""
        if not self.scored:
            return None
        return summarise(
            [replace(s, case=f"{i} {s.case}") for i, run in enumerate(self.scored) for s in run.scores or ()]
        )

    @property
    def cases(self) -> int:
        """Different cases that any of its runs was scored on."""
        return len({score.case for run in self.scored for score in run.scores or ()})

    @property
    def spread_of_seeds(self) -> Spread:
        """Mean and standard deviation of the runs' mean Dice."""
        means = [m for run in self.scored if run.summary and (m := run.summary.overall.dice.mean) is not None]
        sd = statistics.stdev(means) if len(means) > 1 else None
        return Spread(statistics.fmean(means) if means else None, sd, len(means))

    @cached_property
    def case_dice(self) -> dict[str, float]:
        """Each case's Dice, the mean over seeds."""
        found: dict[str, list[float]] = defaultdict(list)
        for run in self.scored:
            for case, value in run.case_dice.items():
                found[case].append(value)
        return {case: statistics.fmean(values) for case, values in found.items()}


@dataclass(frozen=True)
class Gain:
    """How far a row lies above the baseline, in Dice points, over the cases that both have."""

    points: float
    cases: int
    baseline: Row


# ---- runs


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders, which must belong to one dataset.

    Raises:
        ConfigError: no run, the same run twice, or runs of different datasets.
        DataError: a path is no run folder, all such paths listed, or one of its files cannot be read.
    """
    if not paths:
        raise ConfigError("no runs to compare: name one or more run folders")
    places = [path.resolve() for path in paths]
    twice = [str(path) for path, place in zip(paths, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ConfigError(f"the same run is given more than once: {', '.join(twice)}")
    faults = [fault for path in paths if (fault := _fault_of_folder(path))]
    if faults:
        raise DataError("\n".join(faults))
    runs = [_load_run(path) for path in paths]
    datasets = {run.settings["data.name"]: run.path for run in runs}
    if len(datasets) > 1:
        found = ", ".join(f"{name} ({path})" for name, path in datasets.items())
        raise ConfigError(f"the runs belong to different datasets: {found}; write a report for each")
    return runs


def _fault_of_folder(path: Path) -> str | None:
    if not path.is_dir():
        return f"{path}: not a folder; expected a run folder, as `medssl train` writes it"
    missing = [name for name in _FILES if not (path / name).is_file()]
    return f"{path}: not a run folder: {', '.join(missing)} missing" if missing else None


def _load_run(path: Path) -> Run:
    config, text = _read_config(path / "config.yaml")
    scores, files, made = None, {}, {}
    if (path / "scores.csv").exists():
        scores = read_scores(path / "scores.csv")
        files = _read_files(path / "scores.csv")
        notes = next(iter(files.values()), (Path(), Path()))[0].parent / "predictions.json"
        made = _read_json(notes) if notes.is_file() else {}
    splits = _read_json(path / "splits.json")
    try:
        return Run(
            path=path,
            settings=config,
            config_text=text,
            splits={part: [str(case) for case in splits[part]] for part in PARTS},
            environment=_read_json(path / "env.json"),
            metrics=read_metrics(path / "metrics.csv"),
            scores=scores,
            files=files,
            made=made,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: splits.json or metrics.csv is not as `medssl train` writes it: {error!r}") from None


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
        settings = _flatten(load_yaml(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as the settings of a run: {error}") from None
    missing = [key for key in _NEEDED if key not in settings]
    if missing:
        raise DataError(
            f"{path}: lacks {', '.join(missing)}; expected the resolved settings that `medssl train` writes"
        )
    return settings, text


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected an object with named entries, found a {type(values).__name__}")
    return values


def _read_files(path: Path) -> dict[str, tuple[Path, Path]]:
    """Prediction and reference of each case in a table that `read_scores` has accepted."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(itertools.dropwhile(lambda line: line.startswith("#"), file))
        return {row["case"]: (Path(row["prediction"]), Path(row["reference"])) for row in table}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# ---- rows


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """Gather runs by key: few labels first, one augmentation after the other, the baseline before the rest."""
    groups: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.key].append(run)
    presets = list(dict.fromkeys(key.augment for key in groups))
    keys = sorted(groups, key=lambda key: (key.labelled, presets.index(key.augment), key.method != BASELINE))
    colours = method_colours(key.method for key in keys)
    styles: dict[str, Iterator[str]] = defaultdict(lambda: itertools.cycle(STYLES))
    return [
        Row(key, tuple(sorted(groups[key], key=lambda run: run.seed)), _name(key, keys), colours[key.method],
            next(styles[key.method]))
        for key in keys
    ]  # fmt: skip


def _name(key: Key, keys: Sequence[Key]) -> str:
    """Method and labels; augmentation and steps where rows differ in them; the network where a method has several."""
    own = [other for other in keys if other.method == key.method]
    says = [
        (keys, "augment", f"{key.augment} augmentation"),
        (keys, "steps", f"{key.steps:,} steps"),
        (own, "network", key.network),
    ]
    varying = [text for among, field, text in says if len({getattr(other, field) for other in among}) > 1]
    return ", ".join([f"{key.method}, {key.labelled} labelled", *varying])


def gain_over_baseline(row: Row, rows: Sequence[Row]) -> Gain | None:
    """Against the supervised row with as many labels, the nearest one where there are several; None without."""
    if row.key.method == BASELINE:
        return None
    others = [r for r in rows if r.key.method == BASELINE and r.key.labelled == row.key.labelled and r.case_dice]
    baseline = max(others, key=lambda r: sum(map(lambda a, b: a == b, r.key, row.key)), default=None)
    shared = [] if baseline is None else sorted(row.case_dice.keys() & baseline.case_dice.keys())
    if baseline is None or not shared:
        return None
    points = 100 * statistics.fmean(row.case_dice[case] - baseline.case_dice[case] for case in shared)
    return Gain(points, len(shared), baseline)


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know before comparing numbers."""
    found = [note for row in rows for run in row.runs for note in _notes_of_run(run)]
    for row in rows:
        found += _notes_of_row(row, gain_over_baseline(row, rows))
    sets = {frozenset(run.case_dice) for row in rows for run in row.scored}
    if len(sets) > 1:
        found.append("The runs were not all scored on the same cases: means of different cases do not compare.")
    return found


def _notes_of_run(run: Run) -> list[str]:
    name, found = run.path.name, []
    if run.last_step < run.key.steps:
        found.append(f"{name}: its log ends at step {run.last_step:,} of {run.key.steps:,}.")
    if run.scores is None:
        return [*found, f"{name}: not scored; its folder holds no scores.csv."]
    made_by = run.made.get("method", run.key.method)
    if made_by != run.key.method:
        found.append(f"{name}: its predictions come from the method {made_by}, not {run.key.method}.")
    scored = {score.case for score in run.scores}
    for part in PARTS[:3]:
        inside = sorted(scored & set(run.splits[part]))
        if inside:
            found.append(f"{name}: scored on cases of the {part} part of its split: {_few(inside)}.")
    left = sorted(set(run.splits["test"]) - scored)
    if left:
        found.append(f"{name}: test cases that were not scored: {_few(left)}, of {len(run.splits['test'])}.")
    return found


def _notes_of_row(row: Row, gain: Gain | None) -> list[str]:
    found = []
    seeds = [run.seed for run in row.runs]
    if len(set(seeds)) < len(seeds):
        found.append(f"{row.name}: a seed occurs more than once ({', '.join(map(str, seeds))}).")
    differing = [key for key in differing_facts(row.runs) if key not in _SEED_AND_PLACE]
    if differing:
        found.append(f"{row.name}: its runs differ in more than their seed: {', '.join(differing)}.")
    if gain and (gain.baseline.key.augment, gain.baseline.key.steps) != (row.key.augment, row.key.steps):
        other = gain.baseline.key
        found.append(
            f"{row.name}: compared with a supervised row of {other.augment} augmentation and {other.steps:,} steps."
        )
    if gain and gain.cases < max(len(row.case_dice), len(gain.baseline.case_dice)):
        shared = f"the cases that both rows have ({gain.cases})"
        found.append(f"{row.name}: the difference to supervised rests on {shared}.")
    return found


def facts(run: Run) -> dict[str, Any]:
    """Everything that two runs can differ in but who was told of them; long lists of cases by number and digest."""
    settings = {key: value for key, value in run.settings.items() if not key.startswith("logging.")}
    splits = {f"splits.{part}": _digest(run.splits[part]) for part in PARTS}
    made = _flatten({key: run.made[key] for key in ("checkpoint", "window") if key in run.made}, "prediction.")
    return {**settings, **splits, **_flatten(run.environment, "env."), **made}


def differing_facts(runs: Iterable[Run]) -> list[str]:
    """Keys of `facts` in which runs differ; how predictions were made counts among those that have some."""
    known = [facts(run) for run in runs]
    differing = []
    for key in dict.fromkeys(key for each in known for key in each):
        values = [each.get(key) for each in known if key in each or not key.startswith("prediction.")]
        if any(value != values[0] for value in values):
            differing.append(key)
    return differing


def _digest(cases: Sequence[str]) -> str:
    text = json.dumps(sorted(cases)).encode()
    return f"{len(cases)} cases ({hashlib.sha256(text).hexdigest()[:6]})"


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:5])}{' ...' if len(names) > 5 else ''})"
