"""GPUs and their driver, and why torch finds none where there should be some."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medssl.doctor.findings import Finding, gib

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""The driver that a build for CUDA of this major version needs, by NVIDIA's table of compatibility."""
_BUILDS = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of the machine, which a container shares."""

    version: str | None
    """None where only its devices are seen."""
    cuda: tuple[int, int] | None
    """The newest CUDA that it can run; None where its library is not there, as in a container without a GPU."""
    has_devices: bool
    """Whether this process is given a GPU."""

    def __str__(self) -> str:
        return f"driver {self.version or 'of unknown version'}"


def gpu_findings(env: dict[str, Any], asked: str) -> Iterator[Finding]:
    """The driver, then each GPU, or why there is none."""
    import torch

    driver, build = find_driver(), torch.version.cuda
    if driver is not None and env["gpus"]:
        yield Finding("ok", "driver", f"{driver}, {_known(driver)}; torch is built for CUDA {build}",
                      values={"version": driver.version, "cuda": driver.cuda})  # fmt: skip
    found = [_gpu(index, name, asked) for index, name in enumerate(env["gpus"])]
    if not found:
        is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] in ("", "-1", "NoDevFiles")
        why = no_gpu(driver, build, reason="" if asked == "cpu" else _reason(), is_hidden=is_hidden)
        if asked.startswith("cuda"):
            fix = why.fix if driver else "use --device cpu, or a machine with a GPU and its driver"
            why = replace(why, state="fault", found=f"device {asked}: {why.found}", fix=fix)
        found = [why]
    yield from (replace(one, state="note") if asked == "cpu" and one.state == "fault" else one for one in found)


def gpus_to_try(env: dict[str, Any], asked: str) -> list[str]:
    """GPUs to compute on: all, or the one that was asked for; none beside the CPU, where others may be at work."""
    if asked in ("auto", "cuda"):
        return [f"cuda:{index}" for index in range(len(env["gpus"]))]
    return [] if asked == "cpu" or (asked.startswith("cuda") and not env["gpus"]) else [asked]


def find_driver() -> Driver | None:
    """The NVIDIA driver, without its tools and without torch; None where there is none."""
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
    """The version in what the kernel tells of its NVIDIA module, free or not."""
    match = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", text)
    return match[1] if match else None


def no_gpu(driver: Driver | None, build: str | None, *, reason: str = "", is_hidden: bool = False) -> Finding:
    """Why torch finds no GPU.

    Args:
        build: the CUDA that torch is built for, if any.
        reason: what torch says itself.
        is_hidden: CUDA_VISIBLE_DEVICES names none.
    """
    fault = functools.partial(Finding, "fault", "GPU")
    if driver is None:
        return Finding("note", "GPU", "no GPU found", "training works on the CPU, slowly")
    if build is None:
        able = f" that holds for {_known(driver)}" if driver.cuda else ""
        return fault(f"{driver} is here, and torch is built without CUDA",
                     f"install a build for CUDA{able} ({_BUILDS}), or use --device cpu")  # fmt: skip
    if is_hidden:
        return Finding("note", "GPU", "all are hidden by CUDA_VISIBLE_DEVICES", "unset it to use them")
    if not driver.has_devices:
        return fault(f"{driver} is on this machine, and no GPU is given to this process",
                     "start the container with --gpus all, for which the host needs the NVIDIA container toolkit; ask "
                     "the batch system for a GPU; or use --device cpu")  # fmt: skip
    major = int(build.split(".")[0])
    if driver.cuda is not None and driver.cuda[0] < major:
        newer = f"{OLDEST_DRIVER[major]} or newer" if major in OLDEST_DRIVER else "a newer one"
        return fault(f"{driver} knows {_known(driver)}, and torch is built for CUDA {build}",
                     f"install driver {newer}, or a build of torch for CUDA {driver.cuda[0]} ({_BUILDS})")  # fmt: skip
    return fault(f"{driver} is here, and torch cannot use a GPU" + (f" ({reason})" if reason else ""),
                 "restart the machine if the driver is new, and see whether nvidia-smi lists the GPUs")  # fmt: skip


def has_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether a build of torch can run on a GPU.

    Args:
        built_for: of `torch.cuda.get_arch_list`: `sm_86` runs on 8.6 and on later 8.x, `sm_90a` on 9.0 alone, and
            `compute_90` is translated for any GPU from 9.0 on. Others than NVIDIA's are taken to run.
    """
    found = re.findall(r"\b(sm|compute)_(\d+)(\d)([af]?)\b", " ".join(built_for))
    return not found or any(
        _runs(capability, kind, (int(major), int(minor)), mark) for kind, major, minor, mark in found
    )


def _runs(capability: tuple[int, int], kind: str, built: tuple[int, int], mark: str) -> bool:
    if mark == "a":
        return capability == built
    is_family = capability[0] == built[0] or (kind == "compute" and not mark)
    return is_family and capability >= built


def _gpu(index: int, name: str, asked: str) -> Finding:
    """What a GPU is; its free memory and precision only where it may be touched."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    capability, built_for = (properties.major, properties.minor), torch.cuda.get_arch_list()
    values: dict[str, Any] = {"name": name, "total": properties.total_memory, "capability": list(capability)}
    words = [name, gib(properties.total_memory), f"compute capability {capability[0]}.{capability[1]}"]
    if asked in ("auto", "cuda", f"cuda:{index}"):
        values |= _state(index)
        words[1] = (
            f"{gib(values['free'])} of {words[1]} free" if values["free"] is not None else f"{words[1]}, none free"
        )
        words.append("bf16" if values["bf16"] else "no bf16, so fp16")
    found = ", ".join(words)
    if has_kernels(capability, built_for):
        return Finding("ok", f"GPU {index}", found, values=values)
    fix = f"install a build of torch for it ({_BUILDS}; older releases know older GPUs), or use --device cpu"
    return Finding("fault", f"GPU {index}", f"{found}; torch has kernels for {', '.join(built_for)} only", fix, values)


def _state(index: int) -> dict[str, Any]:
    """Bytes that are free, None where not even torch itself fits, and whether `auto` is bf16."""
    import torch

    from medssl.device import choose_precision

    try:
        with torch.cuda.device(index):
            free, _ = torch.cuda.mem_get_info()
            return {"free": free, "bf16": choose_precision("auto", torch.device("cuda", index)) == torch.bfloat16}
    except RuntimeError:
        major, _ = torch.cuda.get_device_capability(index)
        return {"free": None, "bf16": major >= 8}


def _reason() -> str:
    """What torch says when it is asked for a GPU."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return next(iter(str(error).splitlines()), "")
    return ""


def _known(driver: Driver) -> str:
    return "CUDA unknown" if driver.cuda is None else f"CUDA {driver.cuda[0]}.{driver.cuda[1]}"


def _driver_cuda() -> tuple[int, int] | None:
    """Of the driver's own library, which neither starts nor touches a GPU."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        number = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10
