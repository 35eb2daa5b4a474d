"""Read the HDF5 files of UA-MT and SSL4MIS: data sets `image` and `label`, with hardly any geometry.

A file does not say the order of its axes. UA-MT stores the left atrium as x, y, z, as pynrrd reads it. Files of SSL4MIS
come from arrays of SimpleITK: z, y, x, and slices y, x. So the caller gives the order (`axes`) and the `spacing`.

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
"""Order in which a file stores its axes; a slice has the same order without z."""


def read_h5(path: Path, dataset: str, *, axes: Axes = "xyz", spacing: Sequence[float] | None = None) -> Volume:
    """Read one data set as a volume in its own number type; a slice becomes a volume of one slice.

    The file holds no orientation, so indices are assumed to increase towards the left, back and head of the patient, as
    in an ITK image without directions. This is right for UA-MT's left atrium.

    Args:
        dataset: `image` or `label`.
        axes: `xyz` for UA-MT's files, `zyx` for those of SSL4MIS.
        spacing: millimetres along x, y and z. None: the data set `spacing`, which some files of SSL4MIS have, or else
            1 mm.

    Raises:
        DataError: the file is missing or damaged, or has no such data set of real numbers with 2 or 3 axes.
        ConfigError: a spacing that is not 3 positive numbers.
        DeviceError: h5py is not installed.
    """
    path = Path(path)
    if spacing is not None and not _is_spacing(np.asarray(spacing)):
        raise ConfigError(f"spacing must be three positive numbers (mm along x, y and z), got {spacing}")
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
    """Whether a file has a data set `label`; its content is not read.

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
        raise DeviceError(f"{path}: the package h5py is missing; install it with `pip install 'medssl[h5]'`") from None
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # h5py raises either for bytes that make no sense
        raise DataError(f"{path}: damaged, cut short or not an HDF5 file ({error}); copy it again") from None


def _array(path: Path, file: Any, name: str) -> NDArray[Any]:
    found = file.get(name)
    if not hasattr(found, "shape"):
        known = ", ".join(sorted(file)) or "none"
        raise DataError(f"{path}: no data set {name!r}; found: {known}")
    return np.asarray(found[()])


def _check(path: Path, dataset: str, array: NDArray[Any]) -> None:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: data set {dataset!r} must hold one real number per voxel, found {array.dtype}")
    if array.ndim not in (2, 3) or not array.size:
        found = f"shape {by(array.shape)}" if array.ndim else "one number"
        raise DataError(f"{path}: data set {dataset!r} must be a volume or a slice, found {found}")


def _is_spacing(values: NDArray[Any]) -> bool:
    return values.shape == (3,) and values.dtype.kind in "iuf" and bool((np.isfinite(values) & (values > 0)).all())


def _place(
    path: Path, axes: Axes, spacing: Sequence[float] | None, stored: NDArray[Any] | None
) -> tuple[Affine, tuple[Oddity, ...]]:
    """The affine to RAS, and oddities for what is not known of it."""
    found = f"the file holds no orientation or position; the axes are read as {', '.join(axes)} of an LPS grid at 0"
    fix = "give the order of axes (xyz for UA-MT, zyx for SSL4MIS); left and right remain unknown"
    oddities = [Oddity("no_orientation", found, fix)]
    if spacing is None and stored is not None:
        if not _is_spacing(stored):
            raise DataError(f"{path}: data set 'spacing' must be three positive numbers, found {stored.tolist()}")
        spacing = stored.tolist()
    if spacing is None:
        fix = "give the spacing in millimetres along x, y, z in a datalist, such as #image@zyx@1.5x1.5x10"
        oddities.append(Oddity("no_spacing", "the file holds no spacing; voxels are read as 1 x 1 x 1 mm", fix))
        spacing = (1.0, 1.0, 1.0)
    x, y, z = spacing
    return np.diag([-x, -y, z, 1.0]), tuple(oddities)
