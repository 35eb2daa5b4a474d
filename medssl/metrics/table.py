"""The metrics with their definitions, and the row of scores for one class of one case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["scored", "absent", "missed", "invented"]
Kind = Literal["overlap", "distance", "volume", "instances", "centreline"]


@dataclass(frozen=True)
class Metric:
    """A metric, which is a column of the table of scores."""

    name: str
    title: str
    """Its name in headings of tables."""
    unit: str
    """Empty for shares from 0 to 1 and for counts. `mm` means voxels in a table whose distances are in voxels."""
    higher_is_better: bool | None
    description: str
    kind: Kind


_ALL = (
    Metric("dice", "Dice", "", True, "2 |P and R| / (|P| + |R|)", "overlap"),
    Metric("iou", "IoU", "", True, "|P and R| / |P or R|", "overlap"),
    Metric("hd95", "HD95", "mm", False, "hd95_max or hd95_pooled, by convention", "distance"),
    Metric("asd", "ASD", "mm", False, "assd or asd_directed, by convention", "distance"),
    Metric("hd95_max", "HD95, max", "mm", False,
           "the larger of the two directed 95th percentiles of surface distance", "distance"),
    Metric("hd95_pooled", "HD95, pooled", "mm", False,
           "the 95th percentile of both directed sets of surface distances together", "distance"),
    Metric("hd", "HD", "mm", False, "the largest surface distance", "distance"),
    Metric("assd", "ASSD", "mm", False, "the mean of both directed sets of surface distances together", "distance"),
    Metric("asd_directed", "ASD, P to R", "mm", False,
           "the mean surface distance from the prediction to the reference", "distance"),
    Metric("nsd", "NSD", "", True, "the share of both surfaces within the class's tolerance of the other", "overlap"),
    Metric("boundary_iou", "Boundary IoU", "", True, "the IoU of the two surfaces, one voxel thick", "overlap"),
    Metric("precision", "Precision", "", True, "|P and R| / |P|", "overlap"),
    Metric("recall", "Recall", "", True, "|P and R| / |R|", "overlap"),
    Metric("volume_difference", "Volume difference", "ml", None, "|P| - |R|; its mean is a bias", "volume"),
    Metric("relative_volume", "Relative volume", "%", None, "100 (|P| - |R|) / |R|", "volume"),
    Metric("cldice", "clDice", "", True,
           "the harmonic mean of the shares of P's centreline in R and of R's centreline in P", "centreline"),
    Metric("instances_prediction", "Instances, P", "", None, "connected components of P (26 neighbours)", "instances"),
    Metric("instances_reference", "Instances, R", "", None, "connected components of R (26 neighbours)", "instances"),
    Metric("instances_matched", "Instances, both", "", None,
           "pairs of instances that overlap by more than half of their union", "instances"),
    Metric("instance_f1", "Instance F1", "", True,
           "2 instances_matched / (instances_prediction + instances_reference)", "instances"),
    Metric("instance_dice", "Instance Dice", "", True,
           "the mean Dice of the matched pairs, where missed and invented instances count as 0", "instances"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""The metrics by name, in the order in which tables show them."""


def names(*kinds: Kind) -> tuple[str, ...]:
    """Return the names of the metrics of some kinds, in table order."""
    return tuple(name for name, metric in METRICS.items() if metric.kind in kinds)


def in_order(chosen: Iterable[str]) -> tuple[str, ...]:
    """Return the chosen metrics in table order."""
    chosen = set(chosen)
    return tuple(name for name in METRICS if name in chosen)


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class or region of one case under one convention."""

    case: str
    class_name: str
    label: int
    status: Status
    """`scored`: in both volumes; `absent`: in neither; `missed`: in the reference only; `invented`: in the
    prediction only."""
    prediction_voxels: int
    reference_voxels: int
    values: Mapping[str, float | None] = field(default_factory=dict)
    """The number of each metric; None if undefined."""
    is_region: bool = False
    """Whether it is a region; its `label` is above those of the classes and occurs in no volume."""

    def value(self, name: str) -> float | None:
        """Return the number of a metric; None if it is undefined, not part of the convention, or was not asked for."""
        return self.values.get(name)

    @property
    def dice(self) -> float | None:
        """Dice, from 0 to 1."""
        return self.value("dice")

    @property
    def iou(self) -> float | None:
        """IoU, from 0 to 1."""
        return self.value("iou")

    @property
    def hd95(self) -> float | None:
        """HD95 by the definition and in the unit of the convention."""
        return self.value("hd95")

    @property
    def asd(self) -> float | None:
        """ASD by the definition and in the unit of the convention."""
        return self.value("asd")


def status_of(in_prediction: bool, in_reference: bool) -> Status:
    """Return the status of a class from whether it is in the prediction and in the reference."""
    if in_prediction and in_reference:
        return "scored"
    if in_reference:
        return "missed"
    return "invented" if in_prediction else "absent"
