"""Try in small what jobs do: a convolution on a device, a packed array and a volume on the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.doctor.findings import Finding, said
from medssl.errors import DeviceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LIMITS = {"fp32": 1e-3, "fp16": 0.01, "bf16": 0.03}
"""Largest relative error that rounding explains."""
_PREFIX = ".medssl-doctor-"
_SHAPE = (5, 6, 7)


def try_convolution(name: str, is_asked: bool) -> Iterator[Finding]:
    """Compare a 3-D convolution, forward and backward, in the precision of `auto`, with float64 on the CPU.

    Args:
        is_asked: whether the user named this device; it is then a fault if it has no free memory.
    """
    import torch

    from medssl.device import choose_device, choose_precision

    try:
        device = choose_device(name)
        precision = choose_precision("auto", device)
        results = _convolution(device, torch.float32, precision)
    except (DeviceError, RuntimeError) as error:
        yield _failed(name, error, is_asked)
        return
    expected = _convolution(torch.device("cpu"), torch.float64, None)
    off = max(float((a - b).norm() / b.norm()) for a, b in zip(results, expected, strict=True))
    word = {None: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[precision]
    found = f"3-D convolution forward and backward in {word}, relative error {off:.1g}"
    values = {"precision": word, "off": off}
    if off <= _LIMITS[word]:
        yield Finding("ok", name, found, values=values)
    else:  # NaN too
        fix = "try another build of torch or another driver, and until then train on another device"
        yield Finding("fault", name, f"{found}; rounding explains at most {_LIMITS[word]:g}", fix, values)


def try_arrays(folder: Path) -> Iterator[Finding]:
    """Write a packed array as in prepared datasets, and read it back."""
    import numpy as np

    from medssl.data.prepared import open_packed, write_packed

    array = np.arange(np.prod(_SHAPE), dtype=np.uint8).reshape(_SHAPE)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as place:
        path = Path(place) / "array.b2nd"
        write_packed(path, array)
        read = np.array(open_packed(path)[...])  # a copy, so that the file is closed before it goes
    yield _compared("blosc2", np.array_equal(read, array))


def try_volumes(folder: Path) -> Iterator[Finding]:
    """Write a NIfTI file with oblique axes, and read it back."""
    import numpy as np

    from medssl.data.io import read_volume, write_image

    turn, tilt = np.deg2rad((20, 35))
    around_z = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    around_x = [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(around_z) @ np.array(around_x) @ np.diag([0.5, 0.7, 1.3])
    affine[:3, 3] = -31.5, 12.25, 87.0
    array = np.linspace(-1000, 3000, np.prod(_SHAPE), dtype=np.float32).reshape(_SHAPE)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as place:
        path = Path(place) / "volume.nii.gz"
        write_image(path, array, affine)
        read = read_volume(path)
    is_same = np.array_equal(read.array, array) and np.allclose(read.affine, affine, atol=1e-4)
    yield _compared("NIfTI", is_same)


def _convolution(device: torch.device, dtype: torch.dtype, precision: torch.dtype | None) -> list[Tensor]:
    """Return the output and both gradients of a convolution, as float64 on the CPU; its inputs are always the same."""
    import numpy as np
    import torch
    from torch.nn.functional import conv3d

    from medssl.device import autocast

    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).to(dtype).to(device)

    image = drawn(2, 8, 17, 18, 19).requires_grad_()
    weight = (drawn(16, 8, 3, 3, 3) / 15).requires_grad_()  # so that outputs are about as large as inputs
    with autocast(device, precision):
        output = conv3d(image, weight, padding=1)
    output.backward(drawn(*output.shape).to(output.dtype))  # type: ignore[no-untyped-call]
    return [tensor.detach().cpu().double() for tensor in (output, image.grad, weight.grad) if tensor is not None]


def _failed(name: str, error: Exception, is_asked: bool) -> Finding:
    if "out of memory" in str(error):
        fix = "wait until other jobs have finished, or name another GPU with --device"
        return Finding("fault" if is_asked else "note", name, "no free memory", fix)
    if isinstance(error, DeviceError):
        return Finding("fault", name, str(error))  # which says what to do
    fix = "install a build of torch that fits the driver and the GPU (https://pytorch.org), or use --device cpu"
    return Finding("fault", name, f"a 3-D convolution fails ({said(error)})", fix)


def _compared(topic: str, is_same: bool) -> Finding:
    if is_same:
        return Finding("ok", topic, "written and read back unchanged")
    fix = "try a folder on another disk; if the fault remains, install the packages again"
    return Finding("fault", topic, "not the same after writing and reading back", fix)
