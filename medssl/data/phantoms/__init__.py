"""Synthetic volumes for the demo and the tests: a short-axis cardiac MRI stack and a cone-beam CT of a jaw.

Anatomy consists of a few shapes given by signed distances in millimetres, positive inside. They are painted over one
another with soft edges, and the label comes from the same distances. Patient and scanner have separate generators, so a
seed gives the same anatomy at any shape: the field of view stays, and the voxels shrink or grow. While drawing, x runs
to the left of the patient, y to the back and z up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medssl.data.io import write_image
from medssl.data.phantoms.brush import Array, Field, Shape
from medssl.data.phantoms.heart import CLASSES as HEART
from medssl.data.phantoms.heart import draw_heart
from medssl.data.phantoms.jaw import CANAL, TOOTH, draw_jaw
from medssl.errors import ConfigError, DataError

KINDS: dict[str, tuple[str, ...]] = {
    "cardiac": HEART,
    "cbct": ("background", TOOTH, CANAL),
    "teeth": ("background", "incisor", "canine", "back tooth", CANAL),
}
"""The kinds of phantoms, each with its class names by label value. `teeth` is `cbct` with a class for each kind of
tooth; a patient may lack one of them."""

DEFAULT_SHAPES: dict[str, Shape] = {"cardiac": (64, 64, 10), "cbct": (64, 56, 40), "teeth": (64, 56, 40)}
"""About 2.3 x 2.3 x 9 mm a voxel for `cardiac`, 0.55 mm along each axis for the others."""

# A multiple of 3, so that every third case is oblique whatever the seed of the dataset.
CASES_PER_SEED = 30_000


@dataclass(frozen=True)
class Phantom:
    """One drawn case."""

    image: NDArray[np.int16]
    """`(X, Y, Z)`: arbitrary units for `cardiac`, roughly Hounsfield units for `cbct`."""
    label: NDArray[np.uint8]
    """`(X, Y, Z)`, classes in the order of `KINDS`."""
    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index to RAS millimetres; turned off the axes for every third seed."""


def draw(kind: str, seed: int, shape: Shape | None = None) -> Phantom:
    """Draw one case: a pure function of its arguments.

    Args:
        kind: a key of `KINDS`.
        seed: at least 0.
        shape: voxels `(X, Y, Z)` over the field of view; by default the kind's `DEFAULT_SHAPES`.

    Raises:
        ConfigError: no such kind.
    """
    if kind not in _DRAWERS:
        raise ConfigError(f"phantoms: expected one of {', '.join(KINDS)}, found {kind!r}")
    patient, scanner, table = np.random.default_rng(seed).spawn(3)
    image, label, field = _DRAWERS[kind](patient, scanner, shape or DEFAULT_SHAPES[kind])
    affine = _affine(table, label.shape, field, oblique=seed % 3 == 2)
    # Whole numbers, as scanners store them, also hide rounding differences between processors.
    stored = np.rint(np.clip(image, -1024, 32767)).astype(np.int16)
    return _store(stored, label, affine, flips=_STORED[table.integers(len(_STORED))])


def write_dataset(
    folder: Path, kind: str, *, labelled: int, unlabelled: int = 0, seed: int = 0, shape: Shape | None = None
) -> None:
    """Write phantoms as `images/<id>.nii.gz` and, for the labelled ones only, `labels/<id>.nii.gz`.

    The labelled cases come first: `cardiac_000`, `cardiac_001` and so on. A case depends on `seed` and its
    number alone, so asking for more cases keeps the earlier ones.

    Raises:
        DataError: the folder already holds something.
        ConfigError: no such kind.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: expected a new or empty folder for phantoms, found files there; choose another")
    for number in range(labelled + unlabelled):
        phantom = draw(kind, seed * CASES_PER_SEED + number, shape)
        name = f"{kind}_{number:03d}.nii.gz"
        write_image(folder / "images" / name, phantom.image, phantom.affine)
        if number < labelled:
            write_image(folder / "labels" / name, phantom.label, phantom.affine)


def _affine(rng: Generator, shape: Shape, field: Field, *, oblique: bool) -> Array:
    """Voxel index to RAS millimetres for a volume drawn with x to the left, y to the back and z up."""
    degrees = rng.uniform(5, 14, 3) * rng.choice([-1, 1], 3)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() if oblique else np.eye(3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(np.divide(field, shape))
    middle = (np.array(shape) - 1) / 2
    affine[:3, 3] = rng.uniform(-40, 40, 3).round(1) - affine[:3, :3] @ middle
    return affine


def _store(image: NDArray[np.int16], label: NDArray[np.uint8], affine: Array, flips: tuple[int, ...]) -> Phantom:
    """Reverse some axes of both arrays; with the new affine, every voxel stays where it was in the world."""
    affine = affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (label.shape[axis] - 1)
        affine[:3, axis] *= -1
    return Phantom(np.ascontiguousarray(np.flip(image, flips)), np.ascontiguousarray(np.flip(label, flips)), affine)


_STORED: tuple[tuple[int, ...], ...] = ((), (), (0, 1), (1,))
"""Axes to reverse before storing: LPS twice as often as RAS and LAS."""

_DRAWERS: dict[str, Callable[[Generator, Generator, Shape], tuple[Array, NDArray[np.uint8], Field]]] = {
    "cardiac": draw_heart,
    "cbct": partial(draw_jaw, classes=KINDS["cbct"]),
    "teeth": partial(draw_jaw, classes=KINDS["teeth"]),
}
