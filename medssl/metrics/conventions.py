"""The rules by which tools turn the same two masks into different numbers.

A convention names the metrics that its tool has, what the tool means by HD95 and ASD, its unit of distance, and
what it reports where a class is empty in one volume or in both. What it says nothing about is left undefined:
a convention never lends its name to a number that its tool does not give.
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
"""By metric; None where undefined."""
UNITS: tuple[Units, ...] = ("mm", "voxel")
TOLERANCE = 1.0
"""Of NSD, in the unit of distance, for classes without a tolerance of their own."""


@dataclass(frozen=True)
class Convention:
    """One tool's rules."""

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
    """What stands in place of arithmetic for a class that is not in both volumes; "*" is for every metric."""
    says: str
    """The rule for empty classes in words."""
    averages: Literal["cases", "classes"] = "cases"
    """The overall number: the mean over cases of each case's mean over classes where it is defined, or the mean
    over classes of each class's mean over cases, undefined when a class is."""
    has_regions_for_classes: bool = False
    """Whether regions, where there are some, take the place of classes in the overall number."""

    def read(
        self, status: Status, numbers: Mapping[str, float | None], columns: Sequence[str]
    ) -> dict[str, float | None]:
        """Its values of the columns; `numbers` are those of `strict`, in the convention's unit."""
        meant = {**numbers, "hd95": numbers.get(self.hd95), "asd": numbers.get(self.asd)}
        rule = self.empty.get(status, {})
        return {name: rule.get(name, rule.get("*", meant.get(name))) if name in self.metrics else None
                for name in columns}  # fmt: skip


_MONAI_LARGE = {"hd": math.inf, "asd": math.inf, "asd_directed": math.inf, "assd": math.inf}
BRATS_WORST = 373.13
"""The diagonal of a BraTS volume, 240 x 240 x 155 mm, rounded as its organisers do."""

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
            "absent: no numbers; missed: Dice, IoU 0; invented: no Dice, no IoU; both: no HD95, infinite HD, ASD, ASSD",
        ),
        Convention(
            "nnunet", "nnU-Net 2, evaluate_predictions", ("dice", "iou"), "mm", "hd95_max", "assd", {},
            "absent: no numbers; missed and invented: 0; no distances at all", "classes", True,
        ),
        Convention(
            "ssl4mis", "SSL4MIS val_3D and test_3D, with medpy; IoU as in its relatives",
            ("dice", "iou", "hd95", "asd"), "voxel", "hd95_pooled", "asd_directed",
            {"absent": {"*": 0.0}, "missed": {"*": 0.0}, "invented": {"*": 0.0}},
            "absent, missed and invented: 0, distances too", "classes",
        ),
        Convention(
            "brats", "the habit of the BraTS challenges", ("dice", "hd95"), "mm", "hd95_max", "assd",
            {"absent": {"dice": 1.0, "hd95": 0.0}, "missed": {"hd95": BRATS_WORST}, "invented": {"hd95": BRATS_WORST}},
            f"absent: Dice 1, HD95 0; missed and invented: Dice 0, HD95 {BRATS_WORST} mm",
            has_regions_for_classes=True,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Measures:
    """What to measure, and by whose rules."""

    conventions: tuple[str, ...] = ("strict",)
    units: Units | None = None
    """None: each convention's own."""
    tolerance: float = TOLERANCE
    """How far apart NSD lets surfaces lie, in the unit of distance."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """The same for single classes, by name."""
    instances: tuple[str, ...] = ()
    """Classes whose connected components are counted and paired."""
    centreline: tuple[str, ...] = ()
    """Tubular classes that get a clDice."""
    metrics: tuple[str, ...] | None = None
    """The columns; None: all that the conventions have."""

    def __post_init__(self) -> None:
        _known("conventions", self.conventions, CONVENTIONS)
        _known("metrics", METRICS if self.metrics is None else self.metrics, METRICS)
        _known("units", [self.units] if self.units else UNITS, UNITS)
        if not self.had & set(METRICS if self.metrics is None else self.metrics):
            asked, rules = ", ".join(self.metrics or ()), ", ".join(self.conventions)
            raise ConfigError(f"metrics: {asked}: the convention {rules} has {', '.join(in_order(self.had))}")
        for where, tolerance in {"tolerance": self.tolerance, **self.tolerances}.items():
            if not 0 <= tolerance < math.inf:
                raise ConfigError(f"{where}: a tolerance is a distance from 0 up, got {tolerance}")

    def units_of(self, convention: str) -> Units:
        """In which unit a convention's distances are."""
        return self.units or CONVENTIONS[convention].units

    def tolerance_of(self, class_name: str) -> float:
        """The tolerance of a class."""
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
        """Refuse names that no class has.

        Raises:
            ConfigError: with the names that there are.
        """
        for where, chosen in [("tolerance", self.tolerances), ("instances", self.instances),
                              ("centreline", self.centreline)]:  # fmt: skip
            _known(where, chosen, class_names, empty=True)


def _known(where: str, chosen: Collection[str], known: Collection[str], *, empty: bool = False) -> None:
    odd = [name for name in chosen if name not in known]
    if odd:
        raise ConfigError(f"{where}: expected some of {', '.join(known)}, found {', '.join(odd)}")
    if len(set(chosen)) < len(chosen) or not (chosen or empty):
        raise ConfigError(f"{where}: name one or more, each once, found {', '.join(chosen) or 'none'}")
