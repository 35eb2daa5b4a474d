"""Scores under one convention, and their means and counts over cases."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medssl.data.cases import DatasetConfig
from medssl.data.record import NAME
from medssl.data.volume import Source
from medssl.metrics import CONVENTIONS, ClassScore, Measures, Units


class Scores(list[ClassScore]):
    """The scores of all cases and classes under one convention, sorted by case, then label.

    Attributes record what the scores depend on.
    """

    def __init__(
        self,
        scores: Iterable[ClassScore] = (),
        unpredicted: Iterable[str] = (),
        *,
        convention: str = "strict",
        measures: Measures | None = None,
        data: DatasetConfig | None = None,
        files: Mapping[str, tuple[Path, Source]] | None = None,
    ) -> None:
        super().__init__(scores)
        self.unpredicted = tuple(unpredicted)
        """Case ids of references without a prediction."""
        self.convention = convention
        self.measures = measures or Measures()
        """The metrics, conventions and options of the whole table."""
        self.data = data
        """What the values of the references mean, and the regions; None if values are class indices without regions."""
        self.files = {} if files is None else files
        """Prediction and reference of each case."""
        self.beside: tuple[Scores, ...] = ()
        """The scores of the same cases under the other conventions of the table."""

    @property
    def units(self) -> Units:
        """The unit of distances."""
        return self.measures.units_of(self.convention)

    @property
    def record(self) -> Path:
        """Path of the predictions.json beside the predictions, whether it exists or not."""
        return next((prediction for prediction, _ in self.files.values()), Path()).parent / NAME

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that have a column."""
        return self.measures.columns


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of `n` defined values; the mean needs one value, the deviation two.

    A number that needs more values is None.
    """

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some numbers, which may be infinite."""
        if not values:
            return cls(None, None, 0)
        mean = statistics.fmean(values)
        sd = statistics.stdev(values) if len(values) > 1 and math.isfinite(mean) else None
        return cls(mean, sd, len(values))


@dataclass(frozen=True)
class ClassSummary:
    """One class over all cases: the counts of its statuses, and the spread of each metric."""

    class_name: str
    scored: int
    absent: int
    missed: int
    invented: int
    is_region: bool = False
    spreads: Mapping[str, Spread] = field(default_factory=dict)

    def spread(self, name: str) -> Spread:
        """Return the mean, deviation and number of a metric's values over cases."""
        return self.spreads.get(name, Spread(None, None, 0))

    @property
    def dice(self) -> Spread:
        """The spread of Dice, from 0 to 1."""
        return self.spread("dice")

    @property
    def hd95(self) -> Spread:
        """The spread of HD95, in the unit of the scores."""
        return self.spread("hd95")

    @property
    def asd(self) -> Spread:
        """The spread of ASD, in the unit of the scores."""
        return self.spread("asd")


@dataclass(frozen=True)
class Summary:
    """The summary of each class and region, and of all classes together (`overall`).

    An `overall` number is by default a mean over cases. Each case counts with its mean over the classes where the
    metric is defined, and a case without any is left out. Conventions that average over classes take the mean of the
    classes' means instead, and no number if one of them has none. Counts are sums over classes. `counted` says which
    classes or regions enter.
    """

    cases: int
    classes: tuple[ClassSummary, ...]
    overall: ClassSummary


def summarise(scores: Scores) -> Summary:
    """Return mean, spread and counts of each class and region, in order of label, and of all classes together."""
    by_class: dict[tuple[int, str], list[ClassScore]] = {}
    by_case: dict[str, list[ClassScore]] = {}
    for score in scores:
        by_class.setdefault((score.label, score.class_name), []).append(score)
    behind_overall = counted(scores)
    for score in behind_overall:
        by_case.setdefault(score.case, []).append(score)
    classes = tuple(
        replace(_summarise(name, found, [[score] for score in found]), is_region=found[0].is_region)
        for (_, name), found in sorted(by_class.items())
    )
    overall = _summarise("overall", behind_overall, list(by_case.values()))
    if CONVENTIONS[scores.convention].averages == "classes":
        names = {score.class_name for score in behind_overall}
        overall = replace(overall, spreads=_spreads_of_classes([row for row in classes if row.class_name in names]))
    return Summary(cases=len(by_case), classes=classes, overall=overall)


def counted(scores: Scores) -> list[ClassScore]:
    """Return the rows that enter the overall number.

    These are the rows of the classes; or, if the convention scores regions in place of classes and there are some, the
    rows of the regions, and of classes that are listed among the regions.
    """
    rules = CONVENTIONS[scores.convention]
    if rules.has_regions_for_classes and any(score.is_region for score in scores):
        of_one_class = () if scores.data is None else scores.data.regions
        return [score for score in scores if score.is_region or score.class_name in of_one_class]
    return [score for score in scores if not score.is_region]


def _summarise(name: str, scores: Sequence[ClassScore], groups: Sequence[Sequence[ClassScore]]) -> ClassSummary:
    """Return the counts of all scores, and the spread of each metric over the means of the groups."""
    counts = Counter(score.status for score in scores)
    measured = dict.fromkeys(metric for score in scores for metric in score.values)
    return ClassSummary(
        class_name=name,
        scored=counts["scored"],
        absent=counts["absent"],
        missed=counts["missed"],
        invented=counts["invented"],
        spreads={metric: Spread.of(_means(metric, groups)) for metric in measured},
    )


def _means(metric: str, groups: Sequence[Sequence[ClassScore]]) -> list[float]:
    defined = [[value for score in group if (value := score.value(metric)) is not None] for group in groups]
    return [statistics.fmean(values) for values in defined if values]


def _spreads_of_classes(classes: Sequence[ClassSummary]) -> dict[str, Spread]:
    spreads = {}
    for metric in dict.fromkeys(metric for row in classes for metric in row.spreads):
        means = [row.spread(metric).mean for row in classes]
        spreads[metric] = Spread.of([] if None in means else [mean for mean in means if mean is not None])
    return spreads
