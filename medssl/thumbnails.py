"""Thumbnails of cases: a strip of three slices, small enough for hundreds on a page."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from medssl.data.grid import Turn
from medssl.data.volume import Volume
from medssl.palette import class_colour, grey_window

SIDE = 144
"""Side in pixels of the square that holds a slice."""
_SAMPLED = 64


def draw_case(image: Volume, label: Volume | None) -> bytes:
    """Return a JPEG strip of an axial, a coronal and a sagittal slice, with the outlines of the classes.

    Each slice is the one where the label is largest, or the middle one without a label. The patient is upright, with
    the right side (or, in the sagittal slice, the front) on the left; all have one scale in millimetres.

    Args:
        image: `(X, Y, Z)` or `(X, Y, Z, M)`, of which the first channel is shown.
        label: a class map of the same shape, or None.
    """
    turn = Turn.to("RAS", image.affine)
    grey = turn.apply(image.channels[0])
    classes = None if label is None else turn.apply(label.array)
    window = grey_window(grey[tuple(slice(None, None, -(-n // _SAMPLED)) for n in grey.shape)])
    spacing = np.array(turn.apply_to_axes(image.spacing))
    scale = SIDE / (np.array(grey.shape) * spacing).max()
    strip = Image.new("RGB", (3 * SIDE, SIDE))
    for place, axis in enumerate((2, 1, 0)):
        index = _slice_of(grey.shape, classes, axis)
        across, up = (other for other in range(3) if other != axis)
        size = tuple(max(1, round(grey.shape[a] * spacing[a] * scale)) for a in (across, up))
        drawn = _draw(_upright(grey, axis, index), None if classes is None else _upright(classes, axis, index),
                      (size[0], size[1]), window)  # fmt: skip
        strip.paste(drawn, (place * SIDE + (SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    buffer = io.BytesIO()
    strip.save(buffer, format="jpeg", quality=75, subsampling=0)  # full colour resolution, for lines of one pixel
    return buffer.getvalue()


def _slice_of(shape: tuple[int, ...], classes: NDArray[np.int32] | None, axis: int) -> int:
    areas = None if classes is None else (classes > 0).sum(tuple(other for other in range(3) if other != axis))
    return int(areas.argmax()) if areas is not None and areas.any() else shape[axis] // 2


def _upright(array: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """Return a slice as rows from top to bottom, each beginning with the patient's right or front."""
    upright: NDArray[Any] = array.take(index, axis).T[::-1, ::-1]
    return upright


def _draw(
    grey: NDArray[Any],
    classes: NDArray[Any] | None,
    size: tuple[int, int],
    window: tuple[float, float],
) -> Image.Image:
    low, high = window
    shown = np.nan_to_num((grey.astype(np.float32) - low) / (high - low), posinf=1, neginf=0).clip(0, 1)
    scaled = Image.fromarray((255 * shown).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    pixels = np.repeat(np.asarray(scaled)[..., None], 3, axis=2)
    if classes is not None:
        # Nearest neighbours are picked by index, because PIL does not resize int32 images exactly.
        rows, columns = (np.arange(n) * side // n for n, side in zip(size[::-1], classes.shape, strict=True))
        _outline(pixels, classes[np.ix_(rows, columns)])
    return Image.fromarray(pixels)


def _outline(pixels: NDArray[np.uint8], classes: NDArray[Any]) -> None:
    """Colour the pixels of each class that have a neighbour of another class."""
    padded = np.pad(classes, 1)
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = (classes > 0) & np.logical_or.reduce([other != classes for other in beside])
    for value in np.unique(classes[edge]):
        pixels[edge & (classes == value)] = ImageColor.getrgb(class_colour(int(value)))
