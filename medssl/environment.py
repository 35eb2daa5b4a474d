"""What a job runs on: versions, processor, GPUs; for a run's env.json and for `medssl doctor`.

This module loads nothing heavy and raises no errors, so that it works even if a package is broken.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from medssl import __version__

PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "blosc2")
"""Packages whose versions can change a result."""
SLOW_TORCH = "3-D convolutions in mixed precision are slow in torch 2.9 and need much memory"
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}


def environment() -> dict[str, Any]:
    """Return versions and facts about the machine; None for what is unknown."""
    return {
        "medssl": __version__,
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        **_of_torch(),
    }


def version_of(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def speaks() -> bool:
    """Whether this process prints messages: the first of those that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def keep_quiet() -> None:
    """Turn off the telemetry of logging clients, unless the environment says otherwise; call this before they load."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def _of_torch() -> dict[str, Any]:
    try:
        import torch
    except Exception:  # a build for another system fails in many ways
        return {"threads": None, "cuda": None, "gpus": []}
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = [torch.cuda.get_device_name(i) for i in range(count)]
    except RuntimeError:  # a GPU in a bad state
        gpus = []
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
    }
