"""MONAI's sliding window over a volume, or over some rows of it, with the same result as for the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor


def by_windows(
    image: NDArray[np.float32],
    forward: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    patch: Sequence[int],
    batch: int,
    overlap: Sequence[float],
    blend: str,
    axis: int = 0,
    rows: range | None = None,
    looked: Callable[[float], None] = lambda share: None,
) -> NDArray[np.float32]:
    """Apply `forward` to overlapping windows of an image, `(M, x, y, z)` to `(C, x, y, z)`; see `WindowConfig`.

    Args:
        forward: maps `(B, M, X, Y, Z)` on the device to `(B, C, X, Y, Z)`.
        overlap: share of a window that the next one covers again, along each axis.
        rows: the rows along `axis` to return; None returns all. Only windows that contain some of them are computed.
        looked: called with the share of windows that are done, after each batch of windows.
    """
    size = image.shape[1 + axis]
    rows = range(size) if rows is None else rows
    seen = rows_seen(rows, size, patch[axis], overlap[axis])
    part = image[_along(axis, seen)]
    steps = zip(part.shape[1:], patch, overlap, strict=True)
    total = math.prod(math.ceil(max(0, size - side) / _step(side, share)) + 1 for size, side, share in steps)
    done = 0

    def counted(windows: Tensor) -> Tensor:
        nonlocal done
        done += len(windows)
        made = forward(windows)
        looked(done / total)
        return made

    made: Tensor = sliding_window_inference(
        torch.from_numpy(np.ascontiguousarray(part))[None], patch, batch, counted, overlap=overlap, mode=blend,
        sw_device=device, device=torch.device("cpu"),
    )  # type: ignore[assignment]  # fmt: skip
    return made[0].numpy()[_along(axis, range(rows.start - seen.start, rows.stop - seen.start))]


def rows_seen(rows: range, size: int, side: int, overlap: float) -> range:
    """Return the rows of all windows that contain some of `rows`; over these rows alone, the windows are the same."""
    last = max(0, size - side)  # where the last window starts: it ends with the axis
    step = _step(side, overlap)
    first = max(0, math.ceil((rows.start + 1 - side) / step)) * step
    final = last if last < rows.stop else (rows.stop - 1) // step * step
    return range(min(first, last), min(size, final + side))


def _step(side: int, overlap: float) -> int:
    """Return the voxels from one window to the next, as in MONAI."""
    return max(1, int(side * (1 - overlap)))


def _along(axis: int, rows: range) -> tuple[slice, ...]:
    """Return the index of rows along a spatial axis of `(C, x, y, z)`."""
    return (slice(None),) * (1 + axis) + (slice(rows.start, rows.stop),)
