"""Where networks run, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from medssl.errors import DeviceError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        DeviceError: a device was asked for that this machine or this build of torch lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(
            f"device {name}: not usable here ({reason}); torch {torch.__version__}, built for CUDA "
            f"{torch.version.cuda}. Use --device cpu, or install a torch build that fits the driver."
        ) from None
    return device


def choose_precision(name: Precision, device: torch.device) -> torch.dtype | None:
    """What networks compute in: `auto` is bf16 on a GPU that has it, fp16 on an older one, None (fp32) on the CPU."""
    if name == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """The context that networks run in."""
    return nullcontext() if precision is None else torch.autocast(device.type, precision)
