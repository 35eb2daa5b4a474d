"""The methods by name. To add one, write a module in this folder, a line here, and `configs/method/NAME.yaml`."""

from medssl.methods.base import Method
from medssl.methods.bcp import BCP
from medssl.methods.cfc_mt import CFCMT
from medssl.methods.combined import Combined
from medssl.methods.cps import CPS
from medssl.methods.fixmatch import FixMatch
from medssl.methods.mean_teacher import MeanTeacher
from medssl.methods.rail import RAIL
from medssl.methods.sss import SSS
from medssl.methods.supervised import Supervised
from medssl.methods.uamt import UAMT
from medssl.methods.ucf_mix import UCFMix
from medssl.methods.umct import UMCT

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
    "uamt": UAMT,
    "cps": CPS,
    "fixmatch": FixMatch,
    "bcp": BCP,
    "cfc_mt": CFCMT,
    "ucf_mix": UCFMix,
    "rail": RAIL,
    "umct": UMCT,
    "sss": SSS,
    "combined": Combined,
}
