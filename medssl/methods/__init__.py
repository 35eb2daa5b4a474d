"""The methods by name. A new one is a file beside these, a line here, and `configs/method/NAME.yaml`."""

from medssl.methods.base import Method
from medssl.methods.bcp import BCP
from medssl.methods.mean_teacher import MeanTeacher
from medssl.methods.rail import RAIL
from medssl.methods.supervised import Supervised
from medssl.methods.umct import UMCT

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
    "bcp": BCP,
    "rail": RAIL,
    "umct": UMCT,
}
