"""Read NRRD and MetaImage files with SimpleITK, and turn their LPS coordinates to RAS."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.data.volume import LPS_TO_RAS, Affine, Oddity, Volume, check_type
from medssl.errors import DataError

SUFFIXES = (".nrrd", ".mha", ".mhd")
SEGMENTATION = ".seg.nrrd"
"""Suffix of 3D Slicer segmentations; their header names the segments and the full grid of a cropped one."""
LENGTHS = {"um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3,
           "micrometers": 1e-3, "cm": 10.0, "centimeter": 10.0, "centimeters": 10.0, "m": 1e3, "meter": 1e3,
           "meters": 1e3}  # fmt: skip
"""Millimetres in the units that NRRD may name."""
VOXEL_FILES = (".raw", ".zraw")
"""Suffixes of voxel files that belong to a `.mhd` header."""


def read(path: Path) -> Volume:
    """Read the voxels of a file as stored, and its affine; a cropped segmentation is padded to its full grid.

    Raises:
        DataError: it cannot be read, has not three axes of real numbers, names a file that is missing, or is a
            segmentation of several layers.
    """
    import SimpleITK as sitk

    _check_parts(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        told = [line.strip() for line in str(error).splitlines() if not line.startswith("Reason:")]  # of the system
        raise DataError(f"{path}: cannot be read; it may be damaged or cut short ({' '.join(told[-1:])})") from None
    return _volume(path, _of_three_axes(image))


def _volume(path: Path, image: Any) -> Volume:
    """Turn an image of SimpleITK, read from a file, into the result of `read`."""
    import SimpleITK as sitk

    if image.GetDimension() != 3:
        raise DataError(f"{path}: expected a 3D volume, found {image.GetDimension()} axes")
    array = sitk.GetArrayFromImage(image)  # (Z, Y, X[, M])
    check_type(path, array.dtype)
    array = np.moveaxis(array, (0, 1, 2), (2, 1, 0))
    volume = Volume(array, _scaled(affine_of(image), unit := _unit_of(path)), None, path)
    if unit != 1:
        odd = f"lengths are in units of {unit:g} mm; they are converted to millimetres"
        volume = replace(volume, oddities=(Oddity("unit", odd, "write the file in millimetres; ITK ignores the unit"),))
    return _segmentation(volume, image) if path.name.lower().endswith(SEGMENTATION) else volume


def _of_three_axes(image: Any) -> Any:
    """Drop axes of length 1 after the third."""
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = image[(*[slice(None)] * (image.GetDimension() - 1), 0)]
    return image


def _segmentation(volume: Volume, image: Any) -> Volume:
    """Add the names of the segments, and pad to the full grid if the header gives it."""
    if volume.array.ndim > 3:
        raise DataError(
            f"{volume.path}: {volume.array.shape[3]} layers of overlapping segments, but a voxel has only one class; "
            "in 3D Slicer, remove the overlaps, or export the segments as a labelmap"
        )
    said = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    names = [(int(value), said.get(key.replace("_LabelValue", "_Name"), "")) for key, value in said.items()
             if re.fullmatch(r"Segment\d+_LabelValue", key)]  # fmt: skip
    volume = replace(volume, segments=tuple(sorted(names)))
    start = [*map(int, re.findall(r"-?\d+", said.get("Segmentation_ReferenceImageExtentOffset", "")))]
    grid = re.search(r"Reference image geometry\|([^|]*)\|", said.get("Segmentation_ConversionParameters", ""))
    numbers = [*map(float, re.findall(r"-?[\d.]+(?:e[-+]?\d+)?", grid[1]))] if grid else []
    if len(start) != 3 or len(numbers) != 22:  # a matrix of 4 x 4, then the first and last voxel along each axis
        return volume
    spacing = np.linalg.norm(np.reshape(numbers[:16], (4, 4))[:3, :3], axis=0)
    whole = [int(last - first) + 1 for first, last in zip(numbers[16::2], numbers[17::2], strict=True)]
    start = [int(offset - first) for offset, first in zip(start, numbers[16::2], strict=True)]
    pads = [(a, n - a - b) for a, b, n in zip(start, volume.shape, whole, strict=True)]
    if not np.allclose(spacing, volume.spacing, rtol=1e-4) or min(map(min, pads)) < 0:
        return volume
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ start
    return replace(volume, array=np.pad(volume.array, pads), affine=affine)


def read_grid(path: Path) -> tuple[tuple[int, ...], Affine]:
    """Read voxels along the axes, channels and the affine from the header alone; a RuntimeError if there is none."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = [*reader.GetSize()]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    return (*size, reader.GetNumberOfComponents()), _scaled(affine_of(reader), _unit_of(path))


def affine_of(image: Any) -> Affine:
    """Return the affine of an image of SimpleITK, or of a reader that has read its header."""
    axes = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (axes, axes))[:3, :3] * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ affine


def _unit_of(path: Path) -> float:
    """Return the millimetres in the unit of a file. NRRD may name one per axis of space, which ITK ignores.

    Raises:
        DataError: the axes have different units.
    """
    if not path.name.lower().endswith(".nrrd"):
        return 1.0
    with path.open("rb") as file:
        for line in file:
            key, _, said = line.decode("utf-8", "replace").strip().partition(":")
            if not key:
                break
            if key.lower() == "space units":
                names = [name.strip().lower() for name in re.findall(r'"([^"]+)"', said)[:3]]
                if len(units := {LENGTHS.get(name, 1.0) for name in names}) > 1:
                    raise DataError(f"{path}: `space units` must be equal for all axes, found {', '.join(names)}")
                return min(units, default=1.0)  # a unit that is no length, such as "pixel", counts as mm
    return 1.0


def _scaled(affine: Affine, unit: float) -> Affine:
    return np.diag([unit, unit, unit, 1.0]) @ affine if unit != 1 else affine


def rewrite(path: Path, out: Path, array: NDArray[Any] | None) -> None:
    """Write a file again, with new voxels of the same shape if given."""
    import SimpleITK as sitk

    old = _of_three_axes(sitk.ReadImage(str(path)))
    new, unit = old if array is None else sitk.GetImageFromArray(np.ascontiguousarray(array.T)), _unit_of(path)
    origin = (LPS_TO_RAS @ _volume(path, old).affine)[:3, 3] if array is not None else unit * np.array(old.GetOrigin())
    new.SetSpacing([unit * side for side in old.GetSpacing()])  # no unit is written, which means millimetres
    new.SetDirection(old.GetDirection())
    new.SetOrigin([float(place) for place in origin])
    sitk.WriteImage(new, str(out), useCompression=True)


def _check_parts(path: Path) -> None:
    """Check that the voxel file of a MetaImage header exists; ITK would not say which one is missing."""
    if path.suffix.lower() != ".mhd":
        return
    for name in re.findall(r"^\s*ElementDataFile\s*=(.+)$", path.read_text(errors="replace"), re.MULTILINE):
        voxels = path.parent / name.strip()
        if not re.search("^LOCAL$|LIST|%", name.strip()) and not voxels.exists():
            raise DataError(f"{path}: its voxel file {voxels} does not exist")
