"""NRRD and MetaImage files by SimpleITK, their LPS world turned to RAS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.data.volume import LPS_TO_RAS, Affine, Volume, check_type
from medssl.errors import DataError

SUFFIXES = (".nrrd", ".mha", ".mhd")
VOXEL_FILES = (".raw", ".zraw")
"""Voxels that a `.mhd` header beside them names."""


def read(path: Path) -> Volume:
    """A file's voxels as stored, and its affine.

    Raises:
        DataError: it cannot be read, is not of three axes and real numbers, or names a file that is missing.
    """
    import SimpleITK as sitk

    _check_parts(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read: {str(error).strip().splitlines()[-1]}") from None
    if image.GetDimension() != 3:
        raise DataError(f"{path}: a 3D volume is wanted, found {image.GetDimension()} axes")
    array = sitk.GetArrayFromImage(image)  # (Z, Y, X[, M])
    check_type(path, array.dtype)
    array = np.moveaxis(array, (0, 1, 2), (2, 1, 0))
    return Volume(array, affine_of(image), None, path)


def read_grid(path: Path) -> tuple[tuple[int, ...], Affine]:
    """Voxels along the axes, then channels, and the affine, from the header alone; ITK's RuntimeError if it is none."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return (*reader.GetSize(), reader.GetNumberOfComponents()), affine_of(reader)


def affine_of(image: Any) -> Affine:
    """Of an image of SimpleITK, or of a reader that has read its header."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def rewrite(path: Path, out: Path, array: NDArray[Any] | None) -> None:
    """Write a file again, with other voxels of the same shape if given."""
    import SimpleITK as sitk

    old = sitk.ReadImage(str(path))
    new = old if array is None else sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    new.CopyInformation(old)
    sitk.WriteImage(new, str(out), useCompression=True)


def _check_parts(path: Path) -> None:
    """A MetaImage header names the file of its voxels; ITK would not say which one is missing."""
    if path.suffix.lower() != ".mhd":
        return
    for name in re.findall(r"^\s*ElementDataFile\s*=(.+)$", path.read_text(errors="replace"), re.MULTILINE):
        voxels = path.parent / name.strip()
        if not re.search("^LOCAL$|LIST|%", name.strip()) and not voxels.exists():
            raise DataError(f"{path}: its voxels should lie in {voxels}, which does not exist")
