"""Volumes in the HDF5 files of UA-MT and SSL4MIS: data sets `image` and `label`, and next to no geometry.

The order of axes is a habit of whoever wrote the file, and nothing in it tells. UA-MT's left atrium
is stored x, y, z, as pynrrd reads it. What SSL4MIS wrote comes from SimpleITK's arrays: z, y, x, and
its slices y, x. So the caller says which (`axes`), and how far voxels lie apart (`spacing`).

h5py is an optional package, imported when a file is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.data.volume import Affine, Oddity, Volume
from medssl.errors import ConfigError, DataError, DeviceError
from medssl.words import by

SUFFIXES = (".h5", ".hdf5")

Axes = Literal["xyz", "zyx"]
"""In which order a file holds its axes; a slice has the same without z."""


def read_h5(path: Path, dataset: str, *, axes: Axes = "xyz", spacing: Sequence[float] | None = None) -> Volume:
    """Read one data set as a volume in its own number type; a slice becomes a volume of one slice.

    Without orientation in the file, indices are taken to grow to the patient's left, back and head, as in an ITK image
    without directions. UA-MT's left atrium does lie so.

    Args:
        dataset: `image` or `label`.
        axes: `xyz` for UA-MT's files, `zyx` for those of SSL4MIS.
        spacing: millimetres along x, y and z. None takes what the file has under `spacing`, as some of SSL4MIS do, or
            else 1 mm.

    Raises:
        DataError: the file is missing or damaged, or has no such data set of real numbers with 2 or 3 axes.
        ConfigError: a spacing that is not 3 positive numbers.
        DeviceError: h5py is not installed.
    """
    path = Path(path)
    if spacing is not None and not _is_spacing(np.asarray(spacing)):
        raise ConfigError(f"spacing {spacing}: three positive numbers are wanted, millimetres along x, y and z")
    with _opened(path) as file:
        array = _array(path, file, dataset)
        stored = _array(path, file, "spacing") if "spacing" in file else None
    _check(path, dataset, array)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if axes == "zyx":
        array = array.T
    if array.ndim == 2:
        array = array[..., None]
    affine, oddities = _place(path, axes, spacing, stored)
    return Volume(array, affine, None, path, oddities=oddities)


def has_label(path: Path) -> bool:
    """Whether a file has a data set `label`; nothing is read of it.

    Raises:
        DataError: the file is missing or damaged.
        DeviceError: h5py is not installed.
    """
    with _opened(Path(path)) as file:
        return "label" in file


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise DeviceError(f"{path}: the package h5py is missing; pip install 'medssl[h5]'") from None
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # h5py raises either for bytes that make no sense
        raise DataError(f"{path}: damaged, cut short or no HDF5 file ({error}); copy it again") from None


def _array(path: Path, file: Any, name: str) -> NDArray[Any]:
    found = file.get(name)
    if not hasattr(found, "shape"):
        known = ", ".join(sorted(file)) or "none"
        raise DataError(f"{path}: no data set {name!r}; found: {known}")
    return np.asarray(found[()])


def _check(path: Path, dataset: str, array: NDArray[Any]) -> None:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: data set {dataset!r}: one real number per voxel is wanted, found {array.dtype}")
    if array.ndim not in (2, 3) or not array.size:
        found = f"shape {by(array.shape)}" if array.ndim else "one number"
        raise DataError(f"{path}: data set {dataset!r}: a volume or a slice is wanted, found {found}")


def _is_spacing(values: NDArray[Any]) -> bool:
    return values.shape == (3,) and values.dtype.kind in "iuf" and bool((np.isfinite(values) & (values > 0)).all())


def _place(
    path: Path, axes: Axes, spacing: Sequence[float] | None, stored: NDArray[Any] | None
) -> tuple[Affine, tuple[Oddity, ...]]:
    """The affine to RAS, and what of it is not known."""
    found = f"the file holds no orientation or position; axes are taken as {', '.join(axes)} of an LPS grid at 0"
    fix = "name the order of axes (xyz for UA-MT, zyx for SSL4MIS); left and right cannot be told apart"
    oddities = [Oddity("no_orientation", found, fix)]
    if spacing is None and stored is not None:
        if not _is_spacing(stored):
            raise DataError(f"{path}: data set 'spacing': three positive numbers are wanted, found {stored.tolist()}")
        spacing = stored.tolist()
    if spacing is None:
        fix = "give the spacing of the scans in millimetres: x, y, z"
        oddities.append(Oddity("no_spacing", "the file holds no spacing; voxels are taken as 1 x 1 x 1 mm", fix))
        spacing = (1.0, 1.0, 1.0)
    x, y, z = spacing
    return np.diag([-x, -y, z, 1.0]), tuple(oddities)
