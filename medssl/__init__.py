"""Semi-supervised segmentation of 3D medical volumes."""

import getpass
import os

__version__ = "0.1.0"

try:
    getpass.getuser()
except (ImportError, KeyError, OSError):  # a container may run as a number without a name, for which MONAI ends
    os.environ["USER"] = "medssl"
