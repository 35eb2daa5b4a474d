"""MONAI's sliding window over a volume, or over some rows of it, which come out as they do in the whole."""

from __future__ import annotations

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
    overlap: float | Sequence[float],
    blend: str,
    axis: int = 0,
    rows: range | None = None,
) -> NDArray[np.float32]:
    """What `forward` makes of windows of an image, `(M, x, y, z)` to `(C, x, y, z)`; see `WindowConfig`.

    Args:
        forward: `(B, M, X, Y, Z)` on the device to `(B, C, X, Y, Z)`.
        overlap: share of a window that the next one covers again, or one for each axis.
        rows: those wanted along `axis`; None wants all. Only windows that show some of them are looked at.
    """
    size, side = image.shape[1 + axis], patch[axis]
    rows = range(size) if rows is None else rows
    seen = _seen(rows, size, side, step=_step(side, overlap if isinstance(overlap, float | int) else overlap[axis]))
    part = image[_along(axis, seen)]
    made: Tensor = sliding_window_inference(
        torch.from_numpy(np.ascontiguousarray(part))[None], patch, batch, forward, overlap=overlap, mode=blend,
        sw_device=device, device=torch.device("cpu"),
    )  # type: ignore[assignment]  # fmt: skip
    return made[0].numpy()[_along(axis, range(rows.start - seen.start, rows.stop - seen.start))]


def _step(side: int, overlap: float) -> int:
    """Voxels from one window to the next, as MONAI counts them."""
    return max(1, int(side * (1 - overlap)))


def _seen(rows: range, size: int, side: int, step: int) -> range:
    """The rows of all windows that show some of `rows`; the windows over these alone are the same ones."""
    last = max(0, size - side)
    starts = sorted({min(start, last) for start in range(0, last + step, step)})
    showing = [start for start in starts if start < rows.stop and start + side > rows.start]
    return range(showing[0], min(size, showing[-1] + side))


def _along(axis: int, rows: range) -> tuple[slice, ...]:
    """Those rows of `(C, x, y, z)`."""
    return (slice(None),) * (1 + axis) + (slice(rows.start, rows.stop),)
