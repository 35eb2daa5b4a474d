"""Scores under one convention, and their numbers over cases."""

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
    """Scores under one convention, sorted by case, then label, and what they depend on."""

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
        """The cases that could not be scored for want of a prediction."""
        self.convention = convention
        self.measures = measures or Measures()
        """What the whole table was asked for."""
        self.data = data
        """What the values of the references mean, where they are more than places of classes; or its regions."""
        self.files = {} if files is None else files
        """Prediction and reference of each case."""
        self.beside: tuple[Scores, ...] = ()
        """The same cases under the other conventions of the table."""

    @property
    def units(self) -> Units:
        """Of distances."""
        return self.measures.units_of(self.convention)

    @property
    def record(self) -> Path:
        """Where the predictions say how they were made, if they do."""
        return next((prediction for prediction, _ in self.files.values()), Path()).parent / NAME

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that have a column."""
        return self.measures.columns


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of the `n` defined values; None below one (sd: two) of them."""

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of numbers, which may be infinite."""
        if not values:
            return cls(None, None, 0)
        mean = statistics.fmean(values)
        sd = statistics.stdev(values) if len(values) > 1 and math.isfinite(mean) else None
        return cls(mean, sd, len(values))


@dataclass(frozen=True)
class ClassSummary:
    """One class over all cases: how often it was what, and its numbers."""

    class_name: str
    scored: int
    absent: int
    missed: int
    invented: int
    is_region: bool = False
    spreads: Mapping[str, Spread] = field(default_factory=dict)

    def spread(self, name: str) -> Spread:
        """Of a metric over cases."""
        return self.spreads.get(name, Spread(None, None, 0))

    @property
    def dice(self) -> Spread:
        """0 to 1."""
        return self.spread("dice")

    @property
    def hd95(self) -> Spread:
        """In the unit of the scores."""
        return self.spread("hd95")

    @property
    def asd(self) -> Spread:
        """In the unit of the scores."""
        return self.spread("asd")


@dataclass(frozen=True)
class Summary:
    """All classes, then all regions; and all classes together, as `counted` has them.

    The values behind an `overall` number are cases: each gives the mean over those of its classes where the
    metric is defined, and a case without any is left out. Conventions that average over classes have the means of
    the classes behind it instead, and no number when one of them has none. Its counts add up those of the classes.
    """

    cases: int
    classes: tuple[ClassSummary, ...]
    overall: ClassSummary


def summarise(scores: Scores) -> Summary:
    """Mean, spread and counts of each class and region, in order of label, and of all classes together."""
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
    """The rows behind the overall number: those of classes; of regions, where there are some, if the convention says
    so."""
    rules = CONVENTIONS[scores.convention]
    if rules.has_regions_for_classes and any(score.is_region for score in scores):
        of_one_class = () if scores.data is None else scores.data.regions
        return [score for score in scores if score.is_region or score.class_name in of_one_class]
    return [score for score in scores if not score.is_region]


def _summarise(name: str, scores: Sequence[ClassScore], groups: Sequence[Sequence[ClassScore]]) -> ClassSummary:
    """Counts of all scores; each number over the means of the groups."""
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
