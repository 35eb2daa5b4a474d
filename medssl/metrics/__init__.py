"""How well two label maps agree, in numbers whose rules are written down.

`masks` has pure functions of two masks, `scoring` all numbers of a case, `conventions` the rules of other tools.
The default convention is `strict`: a number that has no meaning is `None`, not 0 and not infinity, and the status
says why. A class absent from both volumes has no numbers; in one of them only, its overlap is 0 and its distances
are undefined.
"""

from medssl.metrics.conventions import CONVENTIONS, Convention, Measures, Units
from medssl.metrics.masks import asd, dice, hd95, iou, surface_distances
from medssl.metrics.scoring import score_case
from medssl.metrics.table import METRICS, ClassScore, Metric, Status

__all__ = [
    "CONVENTIONS", "METRICS", "ClassScore", "Convention", "Measures", "Metric", "Status", "Units",
    "asd", "dice", "hd95", "iou", "score_case", "surface_distances",
]  # fmt: skip
