"""A run folder in memory: settings, split, log, and scores, also averaged by case."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from medssl.config import flatten, load_yaml
from medssl.data.record import Record, read_record
from medssl.data.splits import PARTS
from medssl.errors import ConfigError, DataError
from medssl.files import read_object
from medssl.logs import read_metrics, training_seconds
from medssl.score_file import read_scores
from medssl.scores import Scores, Summary, counted, summarise
from medssl.statistics import Replicate
from medssl.words import some

_FILES = ("config.yaml", "splits.json", "env.json", "metrics.csv")
_NEEDED = ("data.name", "data.classes", "method.name", "augment.preset", "train.iterations", "train.seed",
           "window.network")  # fmt: skip

Structure = tuple[str, str]
"""A case and a class."""


class Key(NamedTuple):
    """The properties that all runs of a row share."""

    method: str
    """`name` of the settings, which distinguishes variants of a method, or else `method.name`."""
    labelled: int
    """Number of labelled patients if the splits of all compared runs were drawn by patients, else of labelled cases."""
    augment: str
    steps: int
    network: str
    """The network whose predictions were scored: a value of `window.network`."""


@dataclass(frozen=True)
class Run:
    """A run folder in memory."""

    path: Path
    settings: dict[str, Any]
    """config.yaml, with dotted keys."""
    config_text: str
    splits: dict[str, list[str]]
    environment: dict[str, Any]
    metrics: list[dict[str, float]]
    scores: Scores | None
    made: Record
    """predictions.json; empty if there is none."""
    patients: dict[str, str] = field(default_factory=dict)
    """Patient of each case, as far as any of the compared runs recorded it."""
    content: dict[str, str] = field(default_factory=dict)
    """A digest of the files of each training case, see `medssl.data.splits`."""
    quirks: tuple[str, ...] = ()
    """Habits of published protocols that its split follows, see `medssl.data.splits`."""
    counts_patients: bool = False
    """Whether its labelled count is of patients; otherwise it is of cases."""

    @property
    def key(self) -> Key:
        """The row that this run belongs to."""
        s = self.settings
        network = self.made.network or str(s["window.network"])
        method = str(s.get("name") or s["method.name"])
        labelled = self.labelled_patients if self.counts_patients else self.labelled_cases
        return Key(method, labelled, s["augment.preset"], s["train.iterations"], network)

    @property
    def labelled_cases(self) -> int:
        """Number of labelled training cases."""
        return len(self.splits["labelled"])

    @property
    def labelled_patients(self) -> int:
        """Number of patients of the labelled cases; a case without a recorded patient counts as one."""
        return len({self.patients.get(case, case) for case in self.splits["labelled"]})

    @property
    def seed(self) -> int:
        """The seed of everything random in the run."""
        return int(self.settings["train.seed"])

    @cached_property
    def replicate(self) -> Replicate:
        """The draw and seed, in which it differs from the other runs of its row."""
        return Replicate(f"{digest(self.splits['labelled'])}, {digest(self.splits['unlabelled'])}", self.seed)

    @cached_property
    def summary(self) -> Summary | None:
        """Its scores summarised over cases; None if it was not scored."""
        return None if self.scores is None else summarise(self.scores)

    @cached_property
    def case_dice(self) -> dict[str, float]:
        """Each case's mean Dice over the classes where it is defined."""
        return case_values(self, "dice")

    @cached_property
    def structures(self) -> dict[str, dict[Structure, float]]:
        """Cache of `structure_values`, by metric."""
        return {}

    def curve(self, *names: str) -> tuple[list[float], list[float]]:
        """Return the steps and values of a column of the log (the sum of several), leaving out non-finite values."""
        rows = [(row["step"], sum(row[n] for n in names)) for row in self.metrics if all(n in row for n in names)]
        rows = [(step, value) for step, value in rows if math.isfinite(value)]
        return [step for step, _ in rows], [value for _, value in rows]

    def uncertainty_of(self, prediction: Path) -> Path | None:
        """Return where the uncertainty map of a prediction should be; None if none was written."""
        folder = self.made.uncertainty
        return prediction.parent / folder / prediction.name if folder else None

    @property
    def best_validation(self) -> tuple[float, float] | None:
        """Highest validation Dice, and the first step that reached it."""
        steps, values = self.curve("val/dice")
        return max(zip(values, (-step for step in steps), strict=True), default=None)

    @property
    def last_step(self) -> int:
        """The last step that was logged."""
        return int(max((row["step"] for row in self.metrics), default=0))

    @property
    def minutes(self) -> float:
        """Time of its training steps, without validations."""
        return training_seconds(self.metrics) / 60


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders, which must belong to one dataset and be scored in one way.

    Raises:
        ConfigError: no run, the same run twice, runs of different datasets, or different conventions or units.
        DataError: a path is not a run folder (all such paths are listed), or one of its files cannot be read.
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
    known = {case: patient for run in runs for case, patient in run.patients.items()}
    by_patient = all(run.counts_patients for run in runs)
    runs = [replace(run, patients=known | run.patients, counts_patients=by_patient) for run in runs]
    datasets = {run.settings["data.name"]: run.path for run in runs}
    if len(datasets) > 1:
        found = ", ".join(f"{name} ({path})" for name, path in datasets.items())
        raise ConfigError(f"the runs belong to different datasets: {found}; write a report for each")
    rules = {(run.scores.convention, run.scores.units): run.path for run in runs if run.scores is not None}
    if len(rules) > 1:
        found = ", ".join(f"{name} in {units} ({path / 'scores.csv'})" for (name, units), path in rules.items())
        raise ConfigError(
            f"the runs were scored with different conventions or units: {found}; repeat `medssl evaluate` with the "
            "same --convention (of several, the first) and the same --units"
        )
    return runs


def _fault_of_folder(path: Path) -> str | None:
    if not path.is_dir():
        return f"{path}: not a folder; expected a run folder, as `medssl train` writes it"
    missing = [name for name in _FILES if not (path / name).is_file()]
    if not missing:
        return None
    inside = sorted(str(one) for one in path.glob("*/") if all((one / name).is_file() for name in _FILES))
    hint = f"; it contains run folders, give these instead: {some(inside)}" if inside else ""
    return f"{path}: not a run folder: {', '.join(missing)} missing{hint}"


def _load_run(path: Path) -> Run:
    config, text = _read_config(path / "config.yaml")
    scores, made = None, Record()
    if (path / "scores.csv").exists():
        scores = read_scores(path / "scores.csv")
        made = read_record(scores.record)
    splits = read_object(path / "splits.json")
    try:
        return Run(
            path=path,
            settings=config,
            config_text=text,
            splits={part: [str(case) for case in splits[part]] for part in PARTS},
            environment=read_object(path / "env.json"),
            metrics=read_metrics(path / "metrics.csv"),
            scores=scores,
            made=made,
            patients={str(case): str(patient) for case, patient in splits.get("patients", {}).items()},
            content={str(case): str(content) for case, content in splits.get("content", {}).items()},
            quirks=tuple(map(str, splits.get("quirks", ()))),
            counts_patients=splits.get("counted") == "patients",
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: splits.json or metrics.csv is not in the form that `medssl train` writes: {error!r}"
        ) from None


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
        settings = flatten(load_yaml(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as the settings of a run: {error}") from None
    missing = [key for key in _NEEDED if key not in settings]
    if missing:
        raise DataError(
            f"{path}: lacks {', '.join(missing)}; expected the resolved settings that `medssl train` writes"
        )
    return settings, text


def structure_values(run: Run, metric: str) -> dict[Structure, float]:
    """Return a metric for each class of each scored case where it is defined."""
    if metric not in run.structures:
        found = (((score.case, score.class_name), score.value(metric)) for score in counted(run.scores or Scores()))
        run.structures[metric] = {structure: value for structure, value in found if value is not None}
    return run.structures[metric]


def case_values(run: Run, metric: str, structures: Collection[Structure] | None = None) -> dict[str, float]:
    """Return each scored case's mean of a metric over the classes where it is defined; cases without one are left out.

    Args:
        structures: the cases and classes to use; None: all.
    """
    found = structure_values(run, metric).items()
    return gathered((one[0], value) for one, value in found if structures is None or one in structures)


def gathered(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean of the values of each name."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in pairs:
        found[name].append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}


def digest(cases: Sequence[str]) -> str:
    """Return a short name for a set of cases, independent of their order."""
    text = json.dumps(sorted(cases)).encode()
    return f"{len(cases)} cases ({hashlib.sha256(text).hexdigest()[:6]})"
