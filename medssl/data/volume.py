"""Volumes in memory with their geometry, and the sources that volumes are read from; nothing here reads a file."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medssl.errors import DataError

Affine = NDArray[np.float64]
"""`(4, 4)`, voxel index to RAS millimetres."""
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
"""From the world coordinates of DICOM and ITK to those of NIfTI."""
SHEAR = 1e-3
"""Cosine between two voxel axes; more is not rounding, and the geometry of ITK cannot represent it."""


@dataclass(frozen=True)
class Oddity:
    """Something about a readable file that its owner should know."""

    code: str
    found: str
    fix: str


@dataclass(frozen=True, order=True)
class Source:
    """Where a volume is stored: a file or DICOM folder, or a part of one that holds several volumes."""

    path: Path
    part: str = ""
    """A frame of a 4D file, counted from 0; a series of a DICOM folder, by its UID; a data set of an HDF5 file, such as
    `image`, or `image@zyx@1.5x1.5x10` with the order of its axes and millimetres along x, y, z. Empty for all."""

    def __str__(self) -> str:
        return f"{self.path}#{self.part}" if self.part else str(self.path)

    @classmethod
    def parse(cls, text: str, base: Path | None = None) -> Source:
        """Read what `str` gave, or a path; relative ones start at `base`. A `#` in the name of a file is allowed."""
        whole = (base or Path()) / text
        path, mark, part = text.rpartition("#")
        return cls(whole) if not mark or whole.exists() else cls((base or Path()) / path, part)

    def absolute(self) -> Source:
        """Return the source with an absolute path. Links are followed, except to files without the link's suffix."""
        real, name = self.path.resolve(), self.path.name.lower()
        ending = ".nii.gz" if name.endswith(".nii.gz") else self.path.suffix.lower()
        is_named = real.is_dir() or real.name.lower().endswith(ending)
        return Source(real if is_named else self.path.parent.resolve() / self.path.name, self.part)


@dataclass(frozen=True)
class Volume:
    """A volume in memory with its geometry."""

    array: NDArray[Any]
    """`(X, Y, Z)`, or `(X, Y, Z, M)` for several modalities or time points in one file."""
    affine: Affine
    header: nib.Nifti1Header | None = None
    """The file's own header, kept so that an output can carry it; None when not from NIfTI."""
    path: Path | None = None
    scaling: tuple[float, float] = (1.0, 0.0)
    """Slope and intercept that took the stored voxels to `array`."""
    oddities: tuple[Oddity, ...] = ()
    segments: tuple[tuple[int, str], ...] = ()
    """Values of a label map and the names that its file gives them; empty if there are none."""
    series: str = ""
    """The uid of the DICOM series that it was read from."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the three axes of space."""
        x, y, z = self.array.shape[:3]
        return x, y, z

    @property
    def channels(self) -> NDArray[Any]:
        """`(M, X, Y, Z)`: a view of the array by channel; one channel if the array has three axes."""
        return self.array[None] if self.array.ndim == 3 else np.moveaxis(self.array, -1, 0)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between neighbouring voxels along each axis."""
        return spacing_of(self.affine)

    @property
    def steps(self) -> NDArray[np.float64]:
        """`spacing` if the axes are perpendicular, otherwise the `(3, 3)` matrix from voxels to millimetres."""
        return np.array(self.spacing) if self.shear <= SHEAR else self.affine[:3, :3]

    @property
    def orientation(self) -> str:
        """Directions in which the stored axes grow, such as RAS."""
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def shear(self) -> float:
        """The largest cosine between two voxel axes; 0 if all are perpendicular."""
        axes = self.affine[:3, :3] / np.array(self.spacing)
        return float(np.abs(axes.T @ axes - np.eye(3)).max())


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Return the lengths in millimetres of the three voxel axes of an affine."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(0))
    return float(x), float(y), float(z)


def corners_of(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the homogeneous indices of the eight corner voxels of a grid, `(8, 4)`."""
    return np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape[:3]))], np.float64)


def corners_apart(shape: tuple[int, ...], affine: Affine, other: Affine) -> float:
    """Return the largest distance in millimetres between the positions that two affines give a corner voxel."""
    steps = corners_of(shape) @ (other - affine).T
    return float(np.linalg.norm(steps[:, :3], axis=1).max())


def check_affine(path: Path | None, affine: Affine) -> None:
    """Check that an affine places a volume in space.

    Raises:
        DataError: it is not 4 x 4, not finite or cannot be inverted.
    """
    named = path or "image"
    if affine.shape != (4, 4):
        raise DataError(f"{named}: the affine must have shape (4, 4), got {affine.shape}")
    if not np.isfinite(affine).all():
        raise DataError(f"{named}: its affine holds NaN or infinity, so the volume has no place in space")
    spacing = np.array(spacing_of(affine))
    # Axes of unit length, so that a tiny spacing is not taken for a missing axis.
    if (spacing == 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-4:
        raise DataError(f"{named}: its affine cannot be inverted, so the volume has no place in space")


def check_type(path: Path, dtype: np.dtype[Any]) -> None:
    """Check that the voxels of a file are real numbers.

    Raises:
        DataError: they are of another type.
    """
    if dtype.kind not in "iuf":
        kind = {"c": "complex numbers", "V": "colours"}.get(dtype.kind, str(dtype))
        raise DataError(f"{path}: expected one real number per voxel, found {kind}")
