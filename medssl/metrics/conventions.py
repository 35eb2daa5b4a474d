"""Conventions: the rules by which tools get different numbers from the same two masks.

A convention states the metrics that its tool has, what the tool means by HD95 and ASD, its unit of distance, and
what it reports if a class is empty in one volume or in both. A metric that its tool does not report is left undefined
under the convention.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medssl.errors import ConfigError
from medssl.metrics.table import METRICS, Status, in_order, names

Units = Literal["mm", "voxel"]
Numbers = Mapping[str, float | None]
"""A number for each metric; None if undefined."""
UNITS: tuple[Units, ...] = ("mm", "voxel")
TOLERANCE = 1.0
"""Default tolerance of NSD, in the unit of distance."""


@dataclass(frozen=True)
class Convention:
    """The rules of one tool."""

    name: str
    source: str
    """Whose rules they are."""
    metrics: tuple[str, ...]
    units: Units
    hd95: str
    """`hd95_max` or `hd95_pooled`."""
    asd: str
    """`assd` or `asd_directed`."""
    empty: Mapping[Status, Numbers]
    """Fixed values by status, for a class that is not in both volumes; "*" stands for every metric."""
    says: str
    """The rule for empty classes in words."""
    averages: Literal["cases", "classes"] = "cases"
    """How the overall number is averaged. `cases`: the mean over cases of each case's mean over the classes where the
    metric is defined. `classes`: the mean over classes of each class's mean over cases, undefined if that of a class
    is."""
    has_regions_for_classes: bool = False
    """Whether the overall number is that of the regions instead of the classes, if there are regions."""

    def read(
        self, status: Status, numbers: Mapping[str, float | None], columns: Sequence[str]
    ) -> dict[str, float | None]:
        """Return the convention's values of the columns.

        Args:
            numbers: the values under `strict`, in the convention's unit.
        """
        meant = {**numbers, "hd95": numbers.get(self.hd95), "asd": numbers.get(self.asd)}
        rule = self.empty.get(status, {})
        return {name: rule.get(name, rule.get("*", meant.get(name))) if name in self.metrics else None
                for name in columns}  # fmt: skip


_MONAI_LARGE = {"hd": math.inf, "asd": math.inf, "asd_directed": math.inf, "assd": math.inf}
BRATS_WORST = 373.13
"""HD95 in mm of a missed or invented class: the diagonal of a BraTS volume, 240 x 240 x 155 mm, as BraTS rounds it."""

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "strict", "medssl", tuple(METRICS), "mm", "hd95_max", "assd", {},
            "absent: no numbers; missed and invented: overlaps 0, no distances; 0 / 0 is undefined",
        ),
        Convention(
            "monai", "MONAI 1.6, the defaults of its metrics",
            in_order({"dice", "iou", "precision", "recall", "nsd", "hd95", "hd95_max", "hd", "asd", "assd",
                      "asd_directed"}),
            "voxel", "hd95_max", "asd_directed",
            {"missed": _MONAI_LARGE, "invented": {**_MONAI_LARGE, "dice": None, "iou": None}},
            "absent: no numbers; missed: Dice and IoU 0; invented: no Dice, no IoU; missed and invented: no HD95, "
            "infinite HD, ASD and ASSD",
        ),
        Convention(
            "nnunet", "nnU-Net 2, evaluate_predictions", ("dice", "iou"), "mm", "hd95_max", "assd", {},
            "absent: no numbers; missed and invented: 0; no distances at all", "classes", True,
        ),
        Convention(
            "ssl4mis", "SSL4MIS val_3D and test_3D, with medpy; IoU as in UA-MT and BCP",
            ("dice", "iou", "hd95", "asd"), "voxel", "hd95_pooled", "asd_directed",
            {"absent": {"*": 0.0}, "missed": {"*": 0.0}, "invented": {"*": 0.0}},
            "absent, missed and invented: all metrics 0, also distances", "classes",
        ),
        Convention(
            "brats", "the practice of the BraTS challenges", ("dice", "hd95"), "mm", "hd95_max", "assd",
            {"absent": {"dice": 1.0, "hd95": 0.0}, "missed": {"hd95": BRATS_WORST}, "invented": {"hd95": BRATS_WORST}},
            f"absent: Dice 1, HD95 0; missed and invented: Dice 0, HD95 {BRATS_WORST} mm",
            has_regions_for_classes=True,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Measures:
    """What to measure, and by which conventions."""

    conventions: tuple[str, ...] = ("strict",)
    units: Units | None = None
    """Unit of distances; None for each convention's own."""
    tolerance: float = TOLERANCE
    """Distance up to which NSD counts surfaces as matching, in the unit of distance."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """The same for single classes, by name."""
    instances: tuple[str, ...] = ()
    """Classes whose connected components are counted and paired."""
    centreline: tuple[str, ...] = ()
    """Tubular classes that get a clDice."""
    metrics: tuple[str, ...] | None = None
    """The columns; None for all that the conventions have."""

    def __post_init__(self) -> None:
        _known("conventions", self.conventions, CONVENTIONS)
        _known("metrics", METRICS if self.metrics is None else self.metrics, METRICS)
        _known("units", [self.units] if self.units else UNITS, UNITS)
        if not self.had & set(METRICS if self.metrics is None else self.metrics):
            asked, rules = ", ".join(self.metrics or ()), ", ".join(self.conventions)
            raise ConfigError(f"metrics: convention {rules} has {', '.join(in_order(self.had))}, but not {asked}")
        for where, tolerance in {"tolerance": self.tolerance, **self.tolerances}.items():
            if not 0 <= tolerance < math.inf:
                raise ConfigError(f"{where}: a tolerance must be a distance of 0 or more, got {tolerance}")

    def units_of(self, convention: str) -> Units:
        """Return the unit of a convention's distances."""
        return self.units or CONVENTIONS[convention].units

    def tolerance_of(self, class_name: str) -> float:
        """Return the NSD tolerance of a class."""
        return self.tolerances.get(class_name, self.tolerance)

    @property
    def columns(self) -> tuple[str, ...]:
        """The metrics that get a column, in table order."""
        wanted = set(METRICS if self.metrics is None else self.metrics)
        wanted -= set(() if self.instances else names("instances"))
        wanted -= set(() if self.centreline else names("centreline"))
        return in_order(wanted & self.had)

    @property
    def had(self) -> set[str]:
        """The metrics that the conventions have."""
        return {name for convention in self.conventions for name in CONVENTIONS[convention].metrics}

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Check that `tolerances`, `instances` and `centreline` name existing classes or regions.

        Raises:
            ConfigError: a name is unknown; the message lists the known ones.
        """
        for where, chosen in [("tolerance", self.tolerances), ("instances", self.instances),
                              ("centreline", self.centreline)]:  # fmt: skip
            _known(where, chosen, class_names, empty=True)


def _known(where: str, chosen: Collection[str], known: Collection[str], *, empty: bool = False) -> None:
    odd = [name for name in chosen if name not in known]
    if odd:
        raise ConfigError(f"{where}: expected some of {', '.join(known)}, found {', '.join(odd)}")
    if len(set(chosen)) < len(chosen) or not (chosen or empty):
        raise ConfigError(f"{where}: name at least one, each only once; found {', '.join(chosen) or 'none'}")
