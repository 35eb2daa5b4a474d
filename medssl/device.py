"""Where networks run, in which precision, and on how many threads."""

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
    """`auto` is CUDA where there is one, else the CPU; a GPU comes with its number.

    Where `auto` leaves out a GPU that there is, that is said, with what to do.

    Raises:
        ConfigError: the name means no device.
        DeviceError: a device was asked for that this machine or this build of torch lacks.
    """
    if name == "auto":
        why = _why_no_kernels("cuda") if torch.cuda.is_available() else why_no_gpu(find_driver(), torch.version.cuda)
        if why is not None and why.is_fault:
            tell_once(f"--device auto takes the CPU: {why.found}; {why.fix}")
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
    """Why torch cannot compute on a GPU, though it can put arrays there; None where it can, and on other devices."""
    if torch.device(device).type != "cuda":
        return None
    why = why_no_kernels(torch.cuda.get_device_capability(device), torch.cuda.get_arch_list())
    return why and replace(why, found=f"{torch.cuda.get_device_name(device)}: {why.found}")


@functools.cache
def tell_once(words: str) -> None:
    """Print what is to be known of the device, once in a process, and in the first of several alone."""
    if speaks():
        print(f"medssl: {words}", file=sys.stderr)


def wait_for(device: torch.device) -> None:
    """Return once a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_precision(name: Precision, device: torch.device) -> torch.dtype | None:
    """What networks compute in; None is fp32.

    `auto` is bf16 on a GPU that has it, fp16 on an older one, and fp32 on the CPU: bf16 is faster on CPUs with matrix
    units, but its convolutions gave wrong gradients there now and then (docs/performance.md).
    """
    if name == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """The context that networks run in."""
    return nullcontext() if precision is None else torch.autocast(device.type, precision)


def prepare_device(device: torch.device, *, tf32: bool = True, deterministic: bool = False) -> None:
    """Set the process up for a device: on a GPU TF32 and the search for the fastest kernels, on a CPU the threads.

    `deterministic` takes kernels that repeat bit for bit in place of the fastest; torch warns of an operation that has
    none. It must come before the first product of matrices on a GPU.
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
    """A tensor on its way from the device to the host; the device goes on meanwhile."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = tensor.detach().to("cpu", non_blocking=tensor.is_cuda)
        self._ready = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def tolist(self) -> list[float]:
        """The values, waited for if they are not here yet."""
        if self._ready is not None:
            self._ready.synchronize()
        return cast(list[float], self._values.tolist())
