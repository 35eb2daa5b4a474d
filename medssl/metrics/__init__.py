"""Metrics that compare two label maps, each with stated rules.

`masks` has pure functions of two masks, `scoring` computes all numbers of a case, `conventions` holds the rules of
other tools. The default convention is `strict`: a number without a meaning is `None`, not 0 and not infinity, and the
status says why. A class that is absent from both volumes has no numbers. If it is in only one of them, its overlaps are
0 and its distances are undefined.
"""

from medssl.metrics.conventions import CONVENTIONS, Convention, Measures, Units
from medssl.metrics.masks import asd, dice, hd95, iou, surface_distances
from medssl.metrics.scoring import score_case
from medssl.metrics.table import METRICS, ClassScore, Metric, Status

__all__ = [
    "CONVENTIONS", "METRICS", "ClassScore", "Convention", "Measures", "Metric", "Status", "Units",
    "asd", "dice", "hd95", "iou", "score_case", "surface_distances",
]  # fmt: skip
