"""Read and write volumes of any format: NIfTI, NRRD and MetaImage, DICOM series, data sets of HDF5 files.

An array is indexed `[x, y, z]` as stored in the file, and `affine` maps such an index to RAS millimetres (the world of
NIfTI), whatever the format. A file that cannot be trusted is a DataError that names it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Header
from numpy.typing import NDArray

from medssl.data import itk, nifti
from medssl.data.dicom import read_series, series_of
from medssl.data.grid import aligned, off_grid
from medssl.data.hdf5 import SUFFIXES as H5_SUFFIXES
from medssl.data.hdf5 import Axes, read_h5
from medssl.data.volume import Affine, Source, Volume, check_affine
from medssl.errors import DataError
from medssl.words import by, plain

SUFFIXES = (*nifti.SUFFIXES, *itk.SUFFIXES)

INTEGER_TOLERANCE = 1e-3
"""A float this close to an integer is that label value; others come from interpolation or are probabilities."""

_INT32 = np.iinfo(np.int32)
_NUMBER = r"(?:\d+\.?\d*|\.\d+)"


def is_volume(path: Path) -> bool:
    """Whether a file name has the suffix of a volume that can be read, in upper or lower case."""
    return path.name.lower().endswith(SUFFIXES)


def case_id(path: Path) -> str:
    """Return the file name without its volume suffix; other dots in the name stay."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def label_id(path: Path) -> str:
    """Return the `case_id` of a label, without the `.seg` of 3D Slicer segmentations."""
    id = case_id(path)
    return id[:-4] if path.name.lower().endswith(itk.SEGMENTATION) else id


def list_volumes(folder: Path) -> list[Path]:
    """Return the volume files directly inside a folder, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if is_volume(path) and not path.name.startswith("."))


def read_volume(source: Path | Source) -> Volume:
    """Read a volume in its own number type, with the scaling of the file applied.

    Axes of length 1 after the third are dropped; a true fourth axis is kept last. Micrometres and
    metres become millimetres.

    Raises:
        DataError: the file is missing, damaged, not a volume of real scalars, or its affine
            cannot be inverted.
    """
    source = source if isinstance(source, Source) else Source(Path(source))
    path = source.path
    try:
        volume = _read(source)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(f"{path}: its voxels do not fit into memory") from None
    check_affine(path, volume.affine)
    shape = (*volume.shape, *(n for n in volume.array.shape[3:] if n > 1))
    return replace(volume, array=volume.array.reshape(shape), path=path)


def read_grid(source: Source) -> tuple[tuple[int, ...], Affine]:
    """Read the voxels along all axes of the file and the affine, from headers alone.

    The shape is that of the whole file, even if `source` is one frame of it. Lengths are in millimetres. The spacing of
    a DICOM series is the one in the header of one slice.

    Raises:
        DataError: the header cannot be read, or its affine cannot be inverted.
    """
    shape, affine = _read_grid(source)
    check_affine(source.path, affine)
    return shape, affine


def read_image(*sources: Path | Source) -> Volume:
    """Read an intensity volume as float32; values too large for it become infinite.

    Several files are stacked along the fourth axis, on the grid of the first one.

    Raises:
        DataError: as `read_volume`, or the files lie on different grids.
    """
    return stacked([_as_image(read_volume(source)) for source in sources])


def read_label(path: Path | Source) -> Volume:
    """Read a label map as int32; float files are accepted when every value is within 1e-3 of an integer.

    Raises:
        DataError: as `read_volume`, or a value is not an integer.
    """
    return as_label(read_volume(path))


def as_label(volume: Volume) -> Volume:
    """Return a label map with int32 voxels.

    Raises:
        DataError: a value is not within 1e-3 of an integer that int32 holds.
    """
    array = volume.array
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        with np.errstate(invalid="ignore"):
            odd = ~(np.abs(array - rounded) <= INTEGER_TOLERANCE)  # NaN and infinity too
        if odd.any():
            raise DataError(
                f"{volume.path}: a label map must hold whole numbers, found {int(odd.sum())} other voxels, "
                f"for example {plain(array[odd][0])}; was it interpolated, or is it a probability map?"
            )
        array = rounded
    low, high = array.min(), array.max()
    if low < _INT32.min or high > _INT32.max:
        raise DataError(
            f"{volume.path}: a label map must hold class numbers, found values from {plain(low)} to {plain(high)}"
        )
    return replace(volume, array=array.astype(np.int32))


def stacked(volumes: Sequence[Volume]) -> Volume:
    """Stack volumes on the same grid in the world as channels of one volume, with the axes of the first.

    Raises:
        DataError: a volume lies on another grid.
    """
    first, *others = volumes
    if not others:
        return first
    for other in others:
        odd = off_grid(first, other, "other channel")
        if odd is not None and odd.code == "grid":
            raise DataError(f"{other.path}: {odd.found}\n{odd.fix}")
    arrays = [first.array, *(aligned(other, first).array for other in others)]
    return replace(first, array=np.concatenate([array.reshape(*first.shape, -1) for array in arrays], axis=3))


def write_label(path: Path, array: NDArray[Any], like: Volume) -> None:
    """Write a label map with the geometry and header of `like`, as the smallest unsigned type that fits.

    Codes, units and both forms of a NIfTI header are kept; the scaling is reset. The file appears
    whole or not at all.

    Raises:
        ValueError: the shape is not that of `like`, or a value is not a whole number from 0 to 65535.
    """
    if array.shape != like.shape:
        raise ValueError(f"{path}: the array must have the shape of `like`, {by(like.shape)}, got {by(array.shape)}")
    low, high = array.min(initial=0), array.max(initial=0)
    if low < 0 or high > np.iinfo(np.uint16).max or (array.dtype.kind == "f" and (array != np.rint(array)).any()):
        raise ValueError(f"{path}: a label map must hold whole numbers from 0 to 65535, got {low:g} to {high:g}")
    dtype = np.uint8 if array.max(initial=0) < 256 else np.uint16
    nifti.write(Path(path), array.astype(dtype), like.affine, like.header)


def write_shares(path: Path, array: NDArray[np.floating[Any]], like: Volume) -> None:
    """Write numbers from 0 to 1 with the geometry and header of `like`, a byte a voxel in steps of 1/255."""
    nifti.write(Path(path), np.rint(255 * array.clip(0, 1)).astype(np.uint8), like.affine, like.header, slope=1 / 255)


def write_image(path: Path, array: NDArray[Any], affine: Affine) -> None:
    """Write an array in its own dtype, bool as uint8, with an affine in RAS millimetres.

    The file appears whole or not at all.
    """
    nifti.write(Path(path), array.astype(np.uint8) if array.dtype == bool else array, affine, None)


def rewrite(path: Path, out: Path, header: Nifti1Header | None, array: NDArray[Any] | None = None) -> None:
    """Write a file again with a corrected header, or with new voxels of the same shape; all else is kept.

    The suffix of `out` decides whether the file is compressed.

    Args:
        header: a changed copy of `Volume.header`; None for a file that is not NIfTI, which keeps its own header.
        array: replaces the voxels, in its own dtype and without scaling; None keeps their bytes.
    """
    if header is None:
        itk.rewrite(path, out, array)
    else:
        nifti.rewrite(path, out, header, array)


def _read(source: Source) -> Volume:
    path, name = source.path, source.path.name.lower()
    if path.is_dir():
        return read_series(path, source.part or None)
    if name.endswith(H5_SUFFIXES):
        return _read_h5(source)
    if not source.part:
        return _read_file(path)
    stat = path.stat() if path.exists() else None
    return _frame(_read_once(path, stat and (stat.st_size, stat.st_mtime_ns)), source)


def _read_file(path: Path) -> Volume:
    _check_file(path)
    return nifti.read(path) if path.name.lower().endswith(nifti.SUFFIXES) else itk.read(path)


@lru_cache(maxsize=1)
def _read_once(path: Path, stamp: tuple[int, int] | None) -> Volume:
    """Read a file as it was at `stamp`, and keep it until another is read, because its frames are read in a row."""
    return _read_file(path)


def _read_h5(source: Source) -> Volume:
    """Read a data set; `source.part` names it, and may add the order of its axes and its spacing."""
    match = re.fullmatch(rf"([^@]*)(?:@(xyz|zyx))?(?:@({_NUMBER}(?:x{_NUMBER}x{_NUMBER})?))?", source.part)
    if match is None:
        raise DataError(
            f"{source}: the part after # must name a data set, such as image, image@zyx or image@xyz@0.6x0.6x1.2"
        )
    numbers = [float(number) for number in match[3].split("x")] if match[3] else []
    axes: Axes = "zyx" if match[2] == "zyx" else "xyz"
    return read_h5(source.path, match[1] or "image", axes=axes, spacing=(numbers * 3)[:3] or None)


def _frame(volume: Volume, source: Source) -> Volume:
    """Take one of the volumes along the fourth axis."""
    count = volume.array.shape[3] if volume.array.ndim > 3 else 1
    if not source.part.isdecimal() or int(source.part) >= count:
        raise DataError(f"{source.path}: no frame {source.part}; the file has {count}, counted from 0")
    array = volume.array.reshape(*volume.shape, count, -1)
    return replace(volume, array=np.ascontiguousarray(array[..., int(source.part), :]))


def _read_grid(source: Source) -> tuple[tuple[int, ...], Affine]:
    path, name = source.path, source.path.name.lower()
    if name.endswith(H5_SUFFIXES):
        volume = read_volume(source)
        return volume.array.shape, volume.affine
    try:
        if path.is_dir():
            series = series_of(path)
            found = series[source.part] if source.part else max(series.values(), key=lambda one: one.slices)
            (columns, rows, frames), (_, affine) = found.size, itk.read_grid(found.paths[0])
            return (columns, rows, frames * found.files), affine
        return nifti.read_grid(path) if name.endswith(nifti.SUFFIXES) else itk.read_grid(path)
    except (EOFError, zlib.error, RuntimeError, StopIteration, *nifti.ERRORS) as error:
        raise DataError(f"{path}: its header cannot be read ({' '.join(str(error).split())})") from None


def _as_image(volume: Volume) -> Volume:
    with np.errstate(over="ignore"):
        return replace(volume, array=np.asarray(volume.array, np.float32))


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: a folder, device or pipe; expected a file")
    if not is_volume(path):
        raise DataError(f"{path}: not a known format; expected one of {', '.join(SUFFIXES)}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    if held := nifti.foreign(head):
        raise DataError(f"{path}: the file holds {held}")
