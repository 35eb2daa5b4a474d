"""Choose the device on which networks run, their precision, and the number of threads."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from medssl.driver import NoGpu, find_driver, why_no_gpu, why_no_kernels
from medssl.environment import SLOW_TORCH, speaks
from medssl.errors import ConfigError, DeviceError
from medssl.machine import available_cpus

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def choose_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is a GPU if torch can use one, otherwise the CPU. A GPU has its number.

    If `auto` cannot use a GPU that the machine has, a message says why and what to do.

    Raises:
        ConfigError: the name is not that of a device.
        DeviceError: this machine or this build of torch lacks the device.
    """
    if name == "auto":
        why = _why_no_kernels("cuda") if torch.cuda.is_available() else why_no_gpu(find_driver(), torch.version.cuda)
        if why is not None and why.is_fault:
            tell_once(f"--device auto uses the CPU: {why.found}; {why.fix}")
        name = "cuda" if why is None else "cpu"
    try:
        torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda, or cuda:1 for the second GPU") from None
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(
            f"device {name}: not usable here ({reason}); torch {torch.__version__}, built for CUDA "
            f"{torch.version.cuda}. Use --device cpu, or install a torch build that fits the driver."
        ) from None
    if why := _why_no_kernels(device):
        raise DeviceError(f"device {name}: {why.found}; {why.fix}")
    if device.type == "cuda" and torch.__version__.startswith("2.9."):
        tell_once(f"{SLOW_TORCH}; install another version")
    return device


def _why_no_kernels(device: torch.device | str) -> NoGpu | None:
    """Return why torch cannot compute on a GPU that it can put arrays on; None if it can, and for other devices."""
    if torch.device(device).type != "cuda":
        return None
    why = why_no_kernels(torch.cuda.get_device_capability(device), torch.cuda.get_arch_list())
    return why and replace(why, found=f"{torch.cuda.get_device_name(device)}: {why.found}")


@functools.cache
def tell_once(words: str) -> None:
    """Print a message about the device, once per process; of several processes, only the first prints it."""
    if speaks():
        print(f"medssl: {words}", file=sys.stderr)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_precision(name: Precision, device: torch.device) -> torch.dtype | None:
    """Return the number format in which networks compute; None is fp32.

    `auto` is bf16 on a GPU that supports it, fp16 on an older one, and fp32 on the CPU. On CPUs with matrix units bf16
    is faster, but its convolutions sometimes gave wrong gradients (docs/performance.md).
    """
    if name == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return the context in which networks run with a precision."""
    return nullcontext() if precision is None else torch.autocast(device.type, precision)


def prepare_device(device: torch.device, *, tf32: bool = True, deterministic: bool = False) -> None:
    """Set up this process for a device: on a GPU, TF32 and the search for the fastest kernels; on a CPU, the threads.

    `deterministic` selects kernels that repeat bit for bit instead of the fastest; torch warns of operations that have
    none. Call this before the first matrix product on a GPU.
    """
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, to find bugs
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        # patches all have one shape, so the search is worth its time; what it finds differs from run to run
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))


class Readback:
    """A tensor that is being copied from the device to the host, while the device goes on working."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = tensor.detach().to("cpu", non_blocking=tensor.is_cuda)
        self._ready = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def tolist(self) -> list[float]:
        """Return the values; wait for them if they have not arrived yet."""
        if self._ready is not None:
            self._ready.synchronize()
        return cast(list[float], self._values.tolist())
