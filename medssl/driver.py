"""Find the NVIDIA driver, and the reason why torch finds no usable GPU."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST_DRIVER = {12: 525, 13: 580}
"""The oldest driver for a torch build by its CUDA major version, from NVIDIA's table; torch 2.8 and later is built for
these versions alone."""
OLD_GPUS = "CUDA 12.6"
"""Of torch 2.8 and later, the builds for this CUDA version have kernels for the oldest GPUs."""
BUILDS = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of the machine, which a container shares."""

    version: str | None
    """None if only its devices are visible."""
    cuda: tuple[int, int] | None
    """The newest CUDA version that it supports; None if its library is missing, as in a container without a GPU."""
    has_devices: bool
    """Whether this process has access to a GPU."""

    def __str__(self) -> str:
        return f"driver {self.version or 'of unknown version'}"

    @property
    def known(self) -> str:
        """The newest CUDA version that it supports, in words."""
        return "CUDA unknown" if self.cuda is None else f"CUDA {self.cuda[0]}.{self.cuda[1]}"


@dataclass(frozen=True)
class NoGpu:
    """Why a process has no GPU, and what to do."""

    found: str
    fix: str
    is_fault: bool = True
    """Whether there seems to be a GPU that ought to work."""


def find_driver() -> Driver | None:
    """Find the NVIDIA driver, without its tools and without torch; None if there is none."""
    try:
        version = driver_version(Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        version = None
    has_devices = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # dxg: Windows' Linux
    cuda = _driver_cuda()
    if sys.platform == "win32":
        has_devices = cuda is not None
    return Driver(version, cuda, has_devices) if version or (has_devices and cuda) else None


def driver_version(text: str) -> str | None:
    """Return the version in the kernel's text about its NVIDIA module, open or proprietary; None if there is none."""
    match = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", text)
    return match[1] if match else None


def why_no_gpu(driver: Driver | None, build: str | None, reason: str = "") -> NoGpu:
    """Return why torch finds no GPU in this process.

    Args:
        build: the CUDA version that torch is built for, if any.
        reason: the error message of torch itself.
    """
    if driver is None:
        return NoGpu("no GPU found", "training works on the CPU, slowly", is_fault=False)
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] in ("", "-1", "NoDevFiles"):
        return NoGpu("all GPUs are hidden by CUDA_VISIBLE_DEVICES", "unset it to use them", is_fault=False)
    if build is None:
        able = f" that works with {driver.known}" if driver.cuda else ""
        return NoGpu(f"{driver} is installed, but torch is built without CUDA",
                     f"install a torch build for CUDA{able} ({BUILDS}), or use --device cpu")  # fmt: skip
    if not driver.has_devices:
        return NoGpu(f"{driver} is installed, but this process has no access to a GPU",
                     "start the container with --gpus all (the host needs the NVIDIA container toolkit), request a GPU "
                     "from the batch system, or use --device cpu")  # fmt: skip
    major = int(build.split(".")[0])
    if driver.cuda is not None and driver.cuda[0] < major:
        oldest = min(OLDEST_DRIVER)
        known = driver.cuda[0] if driver.cuda[0] in OLDEST_DRIVER else oldest
        ways = [f"driver {OLDEST_DRIVER.get(major, 'of a newer version')} or newer"]
        if known < major:
            also = "" if known == driver.cuda[0] else f"driver {OLDEST_DRIVER[known]} or newer and "
            ways.append(f"{also}a torch build for CUDA {known} ({BUILDS})")
        return NoGpu(f"{driver} supports {driver.known}, but torch is built for CUDA {build}",
                     f"install {', or '.join(ways)}; or use --device cpu")  # fmt: skip
    return NoGpu(f"{driver} is installed, but torch cannot use a GPU" + (f" ({reason})" if reason else ""),
                 "restart the machine if the driver is new, and check that nvidia-smi lists the GPUs")  # fmt: skip


def why_no_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> NoGpu | None:
    """Return why a build of torch cannot run on a GPU that it sees; None if it can.

    Args:
        built_for: from `torch.cuda.get_arch_list`: `sm_86` runs on 8.6 and on later 8.x, `sm_90a` on 9.0 alone, and
            `compute_90` is translated for any GPU from 9.0 on. Builds for GPUs of other makers are assumed to run.
    """
    found = re.findall(r"\b(sm|compute)_(\d+)(\d)([af]?)\b", " ".join(built_for))
    built = [((int(major), int(minor)), kind, mark) for kind, major, minor, mark in found]
    if not built or any(_runs(capability, *each) for each in built):
        return None
    older = capability < min(built)[0]
    hint = f"builds for {OLD_GPUS} support older GPUs" if older else "newer builds support newer GPUs"
    return NoGpu(f"torch has kernels for {', '.join(built_for)} only",
                 f"install a torch build for this GPU ({BUILDS}; {hint}), or use --device cpu")  # fmt: skip


def _runs(capability: tuple[int, int], built: tuple[int, int], kind: str, mark: str) -> bool:
    if mark == "a":
        return capability == built
    is_family = capability[0] == built[0] or (kind == "compute" and not mark)
    return is_family and capability >= built


def _driver_cuda() -> tuple[int, int] | None:
    """Return the CUDA version from the driver's own library, which neither starts nor touches a GPU."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        number = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10
