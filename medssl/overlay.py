"""Slices of a scan with the contours of two label maps, each as a data URI of a WebP, to embed in an HTML page.

Nothing is read from disk, and pyplot is not used.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from medssl.data.grid import Turn
from medssl.data.volume import Volume
from medssl.palette import class_colour, grey_window

THICK_SLICES = 2.5
"""From this ratio of the largest to the smallest spacing on, only slices in the scan's own plane are shown."""

_AXES = "RAS"
# The dashes stay visible where they cover the solid line, so that a missed class looks different from a found one.
_REFERENCE: dict[str, Any] = {"linestyles": "solid", "linewidths": 1.1}
_PREDICTION: dict[str, Any] = {"linestyles": [(0, (2.0, 1.6))], "linewidths": 2.3}


@dataclass(frozen=True)
class Slice:
    """An image of one slice of a case with both contours."""

    caption: str
    uri: str


def overlay(image: Volume, prediction: Volume, reference: Volume) -> list[Slice]:
    """Draw up to three slices with the contours of both label maps, solid for the reference, dashed for the prediction.

    Slices show the patient upright, front or head up, in the radiological convention (the patient's right on the left
    of the picture). A scan with thick slices is shown in its own plane only; others in three planes, each at the slice
    where the reference (if it is empty, the prediction) is largest. All are square and have one scale in millimetres.

    Args:
        image: `(X, Y, Z)` or `(X, Y, Z, M)`, of which the first channel is shown.
    """
    turn = Turn.to("RAS", image.affine)
    spacing = turn.apply_to_axes(image.spacing)
    grey, ours, theirs = (turn.apply(volume.channels[0]) for volume in (image, prediction, reference))
    shown = theirs if theirs.any() else ours
    window = grey_window(grey)
    slices = _choose_slices(shown > 0, spacing)
    centre, side = _frame((ours > 0) | (theirs > 0), spacing, {axis for axis, _ in slices})
    return [
        Slice(
            f"{('sagittal', 'coronal', 'axial')[axis]} slice {index + 1} of {grey.shape[axis]}",
            _draw_slice(axis, [a.take(index, axis) for a in (grey, ours, theirs)], spacing, centre, side, window),
        )
        for axis, index in slices
    ]


def _frame(mask: NDArray[np.bool_], spacing: Sequence[float], cut: set[int]) -> tuple[list[float], float]:
    """Return centre and side in mm of a square around the mask with a margin; if it is empty, around the volume.

    Args:
        cut: the axes along which slices are taken; if there is only one, the extent along it does not count.
    """
    where = np.argwhere(mask)
    if not len(where):
        where = np.array([[0, 0, 0], np.array(mask.shape) - 1])
    low, high = where.min(0) * spacing, where.max(0) * spacing
    seen = [axis for axis in range(3) if cut != {axis}]
    return [float(c) for c in (low + high) / 2], 1.35 * float((high - low + spacing)[seen].max())


def _choose_slices(mask: NDArray[np.bool_], spacing: Sequence[float]) -> list[tuple[int, int]]:
    """Return `(axis, index)` of up to three slices of a volume, the most informative first."""
    if max(spacing) / min(spacing) < THICK_SLICES:
        return [(axis, int(_areas(mask, axis).argmax())) for axis in (2, 1, 0)]
    axis = int(np.argmax(spacing))
    filled = np.flatnonzero(_areas(mask, axis))
    if not len(filled):
        filled = np.arange(mask.shape[axis])
    return [(axis, int(i)) for i in dict.fromkeys(filled[[len(filled) * k // 6 for k in (3, 1, 5)]])]


def _areas(mask: NDArray[np.bool_], axis: int) -> NDArray[Any]:
    return np.asarray(mask.sum(tuple(other for other in range(3) if other != axis)))


def _draw_slice(
    axis: int,
    planes: Sequence[NDArray[Any]],
    spacing: Sequence[float],
    centre: Sequence[float],
    side: float,
    window: tuple[float, float],
) -> str:
    across, up = (other for other in range(3) if other != axis)
    grey, ours, theirs = (plane.T for plane in planes)  # (up, across)
    xs, ys = (np.arange(-1, n + 1) * spacing[a] for a, n in ((across, grey.shape[1]), (up, grey.shape[0])))
    figure = Figure(figsize=(3.2, 3.2), facecolor="black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    extent = (
        xs[0] + spacing[across] / 2,
        xs[-1] - spacing[across] / 2,
        ys[0] + spacing[up] / 2,
        ys[-1] - spacing[up] / 2,
    )
    axes.imshow(grey, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", extent=extent,
                interpolation="bilinear")  # fmt: skip
    for labels, style in ((theirs, _REFERENCE), (ours, _PREDICTION)):
        for label in np.unique(labels[labels > 0]):
            contour = axes.contour(xs, ys, np.pad(labels == label, 1).astype(float), levels=[0.5],
                                   colors=[class_colour(int(label))], **style)  # fmt: skip
            contour.set_path_effects([withStroke(linewidth=style["linewidths"] + 1.4, foreground="black")])
    # The x axis runs from high to low, so the patient's right, or in a sagittal slice the front, is on the left.
    axes.set_xlim(centre[across] + side / 2, centre[across] - side / 2)
    axes.set_ylim(centre[up] - side / 2, centre[up] + side / 2)
    axes.set_aspect("equal")
    _annotate(axes, _AXES[across], _AXES[up], side)
    return _webp(figure)


def _annotate(axes: Any, left: str, top: str, side: float) -> None:
    """Draw the letters of the directions, and a scale bar with its length."""
    style = {"color": "white", "fontsize": 9, "path_effects": [withStroke(linewidth=2, foreground="black")]}
    axes.text(0.02, 0.5, left, transform=axes.transAxes, ha="left", va="center", **style)
    axes.text(0.5, 0.98, top, transform=axes.transAxes, ha="center", va="top", **style)
    bar = max((mm for mm in (0.5, 1, 2, 5, 10, 20, 50, 100) if mm <= side / 3), default=side / 3)
    axes.plot([0.96 - bar / side, 0.96], [0.04, 0.04], transform=axes.transAxes, color="white", linewidth=2.2,
              path_effects=[withStroke(linewidth=4, foreground="black")])  # fmt: skip
    axes.text(0.96, 0.055, f"{bar:g} mm", transform=axes.transAxes, ha="right", va="bottom", **style)


def _webp(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=120, pil_kwargs={"quality": 85})
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
