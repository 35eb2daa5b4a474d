"""Read and write volumes: NIfTI by nibabel, other formats by SimpleITK, DICOM series and HDF5 files by their readers.

An array is indexed `[x, y, z]` as stored in the file, and `affine` takes such an index to RAS
millimetres (the NIfTI world). Files of other formats come in through SimpleITK, whose LPS world is
turned to RAS here and nowhere else. A file that cannot be trusted is a DataError; one that can be
read but looks odd comes back with `oddities`, for `medssl check` to report.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medssl.data.dicom import read_series, series_of
from medssl.data.hdf5 import SUFFIXES as H5_SUFFIXES
from medssl.data.hdf5 import Axes, read_h5
from medssl.data.volume import Affine, Oddity, Source, Volume, by, corners_apart, spacing_of
from medssl.errors import DataError
from medssl.files import whole_file

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha", ".mhd")
VOXEL_FILES = (".raw", ".zraw")
"""Voxels that a `.mhd` header beside them names."""

INTEGER_TOLERANCE = 1e-3
"""A stored float this close to an integer is that label; farther away it was interpolated or is a probability."""
SPACING_TOLERANCE = 0.01
"""sform and pixdim may differ by this share of a spacing, more than rounding and less than any real difference."""
FORM_TOLERANCE = 0.1
"""sform and qform may place a corner this many voxels apart: a quaternion in float32 rounds to less."""

_MILLIMETRES = {1: 1000.0, 3: 0.001}  # unit codes of the NIfTI header: metre, micron
_INT32 = np.iinfo(np.int32)
_NIBABEL_ERRORS = (OSError, ValueError, TypeError, KeyError, ImageFileError, HeaderDataError)
_QUIET = logging.Logger("quiet", logging.CRITICAL + 1)  # `oddities` tells of repairs, with the file's name


def is_volume(path: Path) -> bool:
    """Whether the file name ends like a volume that can be read, in any case."""
    return path.name.lower().endswith(SUFFIXES)


def case_id(path: Path) -> str:
    """The file name without its volume suffix; dots inside the name stay."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def list_volumes(folder: Path) -> list[Path]:
    """Volume files directly inside a folder, sorted by name; hidden files are left out."""
    return sorted(path for path in folder.iterdir() if is_volume(path) and not path.name.startswith("."))


def read_volume(source: Path | Source) -> Volume:
    """Read a volume in its own number type, the file's scaling applied.

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
    _check_affine(path, volume.affine)
    shape = (*volume.shape, *(n for n in volume.array.shape[3:] if n > 1))
    return replace(volume, array=volume.array.reshape(shape), path=path)


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
    return _read_nifti(path) if path.name.lower().endswith(NIFTI_SUFFIXES) else _read_itk(path)


@lru_cache(maxsize=1)
def _read_once(path: Path, stamp: tuple[int, int] | None) -> Volume:
    """A file as it was at `stamp`, kept until another is read: the frames of one come one after the other."""
    return _read_file(path)


def _read_h5(source: Source) -> Volume:
    """A data set by name, then what its file does not say: the order of its axes and its spacing."""
    match = re.fullmatch(r"([^@]*)(?:@(xyz|zyx))?(?:@([\d.]+(?:x[\d.]+x[\d.]+)?))?", source.part)
    if match is None:
        raise DataError(
            f"{source}: after the # a data set is wanted, such as image, image@zyx or image@xyz@0.6x0.6x1.2"
        )
    numbers = [float(number) for number in match[3].split("x")] if match[3] else []
    axes: Axes = "zyx" if match[2] == "zyx" else "xyz"
    return read_h5(source.path, match[1] or "image", axes=axes, spacing=(numbers * 3)[:3] or None)


def _frame(volume: Volume, source: Source) -> Volume:
    """One of the volumes along the fourth axis."""
    count = volume.array.shape[3] if volume.array.ndim > 3 else 1
    if not source.part.isdecimal() or int(source.part) >= count:
        raise DataError(f"{source.path}: frame {source.part} is wanted, it has {count}, counted from 0")
    array = volume.array.reshape(*volume.shape, count, -1)
    return replace(volume, array=np.ascontiguousarray(array[..., int(source.part), :]))


def read_grid(source: Source) -> tuple[tuple[int, ...], Affine]:
    """Voxels along all axes of the file, also where a frame of it is meant, and the affine, from headers alone.

    Lengths are in millimetres, as `read_volume` has them; the spacing of a DICOM series is that of one slice.

    Raises:
        DataError: the header cannot be read, or its affine cannot be inverted.
    """
    shape, affine = _read_grid(source)
    _check_affine(source.path, affine)
    return shape, affine


def _read_grid(source: Source) -> tuple[tuple[int, ...], Affine]:
    path, name = source.path, source.path.name.lower()
    if name.endswith(H5_SUFFIXES):
        volume = read_volume(source)
        return volume.array.shape, volume.affine
    try:
        if path.is_dir():
            series = series_of(path)
            found = series[source.part] if source.part else next(iter(series.values()))
            (columns, rows, frames), (_, affine) = found.size, _read_itk_grid(found.paths[0])
            return (columns, rows, frames * found.files), affine
        if not name.endswith(NIFTI_SUFFIXES):
            return _read_itk_grid(path)
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_packed else path.open("rb") as file:
            raw = file.read(nib.Nifti2Header.sizeof_hdr)
        header = _header_class(path, raw).from_fileobj(io.BytesIO(raw), check=False)
        shape = tuple(int(n) for n in header.get_data_shape())
        header.check_fix(_QUIET)
        return shape, _in_millimetres(_affine_of(header), header)
    except (EOFError, zlib.error, RuntimeError, StopIteration, *_NIBABEL_ERRORS) as error:
        raise DataError(f"{path}: its header cannot be read ({' '.join(str(error).split())})") from None


def read_image(*sources: Path | Source) -> Volume:
    """Read an intensity volume as float32; values too large for it become infinite.

    Several files are stacked along the fourth axis, in the place of the first.

    Raises:
        DataError: as `read_volume`, or the files have different shapes.
    """
    return stacked([_as_image(read_volume(source)) for source in sources])


def stacked(volumes: Sequence[Volume]) -> Volume:
    """Volumes of one shape as the channels of one, in the place of the first.

    Raises:
        DataError: their shapes differ.
    """
    first = volumes[0]
    for other in volumes[1:]:
        if other.shape != first.shape:
            raise DataError(
                f"{other.path}: shape {by(other.shape)}, where {first.path} of the same case has {by(first.shape)}"
            )
    if len(volumes) == 1:
        return first
    return replace(first, array=np.concatenate([one.array.reshape(*first.shape, -1) for one in volumes], axis=3))


def _as_image(volume: Volume) -> Volume:
    with np.errstate(over="ignore"):
        return replace(volume, array=np.asarray(volume.array, np.float32))


def read_label(path: Path | Source) -> Volume:
    """Read a label map as int32; float files are accepted when every value is within 1e-3 of an integer.

    Raises:
        DataError: as `read_volume`, or a value is not an integer.
    """
    return as_label(read_volume(path))


def as_label(volume: Volume) -> Volume:
    """The same volume with int32 voxels.

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
                f"{volume.path}: a label map holds whole numbers, found {int(odd.sum())} other voxels, "
                f"for example {float(array[odd][0]):g}; was it interpolated, or is it a probability map?"
            )
        array = rounded
    low, high = array.min(), array.max()
    if low < _INT32.min or high > _INT32.max:
        raise DataError(f"{volume.path}: a label map holds class numbers, found values from {low:g} to {high:g}")
    return replace(volume, array=array.astype(np.int32))


def write_label(path: Path, array: NDArray[Any], like: Volume) -> None:
    """Write a label map with the geometry and header of `like`, as the smallest unsigned type that fits.

    Codes, units and both forms of a NIfTI header are kept; the scaling is reset. The file appears
    whole or not at all.
    """
    dtype = np.uint8 if array.max(initial=0) < 256 else np.uint16
    _write(Path(path), array.astype(dtype), like.affine, like.header)


def write_shares(path: Path, array: NDArray[np.floating[Any]], like: Volume) -> None:
    """Write numbers from 0 to 1 with the geometry and header of `like`, a byte a voxel in steps of 1/255."""
    _write(Path(path), np.rint(255 * array.clip(0, 1)).astype(np.uint8), like.affine, like.header, slope=1 / 255)


def write_image(path: Path, array: NDArray[Any], affine: Affine) -> None:
    """Write an array in its own dtype, bool as uint8, with an affine in RAS millimetres.

    The file appears whole or not at all.
    """
    _write(Path(path), array.astype(np.uint8) if array.dtype == bool else array, affine, None)


def rewrite(path: Path, out: Path, header: nib.Nifti1Header | None, array: NDArray[Any] | None = None) -> None:
    """Write a file again with a mended header, or with other voxels of the same shape; all else stays as it is.

    The name of `out` decides whether it is packed.

    Args:
        header: of `Volume.header`, changed at will; None for a file that is not NIfTI, which keeps its own.
        array: takes the place of the voxels in its own dtype, without scaling; None keeps their bytes.
    """
    if header is None:
        _rewrite_itk(path, out, array)
        return
    raw, header = _content(path)[0], header.copy()
    start = max(int(header["vox_offset"]), len(header.binaryblock))
    voxels = raw[start:]
    if array is not None:
        header.set_data_dtype(array.dtype)
        header.set_slope_inter(1, 0)
        voxels = array.astype(header.get_data_dtype()).tobytes(order="F")
    content = header.binaryblock + raw[len(header.binaryblock) : start] + voxels
    out.write_bytes(gzip.compress(content, 6, mtime=0) if out.name.lower().endswith(".gz") else content)


def _rewrite_itk(path: Path, out: Path, array: NDArray[Any] | None) -> None:
    import SimpleITK as sitk

    old = sitk.ReadImage(str(path))
    new = old if array is None else sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    new.CopyInformation(old)
    sitk.WriteImage(new, str(out), useCompression=True)


def _write(
    path: Path, array: NDArray[Any], affine: Affine, header: nib.Nifti1Header | None, *, slope: float = 1
) -> None:
    if header is None:
        image = nib.Nifti1Image(array, affine, dtype=array.dtype)
        image.header.set_xyzt_units("mm")
    else:
        header = header.copy()
        header.set_data_dtype(array.dtype)
        header.set_intent("none")
        header["cal_min"] = header["cal_max"] = 0
        image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        # No affine is passed: nibabel then keeps both forms of the header, codes included.
        image = image_class(array, None, header)
    image.header.set_slope_inter(slope, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        nib.save(image, partial)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not is_volume(path):
        raise DataError(f"{path}: not a format that can be read; known are {', '.join(SUFFIXES)}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    if foreign := _foreign(head):
        raise DataError(f"{path}: the file holds {foreign}")


def _foreign(head: bytes) -> str | None:
    """What the first bytes of a file give away when they are no volume."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the volume itself; fetch it with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not a volume; was the download refused?"
    if head[128:132] == b"DICM":
        return "one DICOM slice; name the folder of its series"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive, not a volume; unpack it"
    return None


def _check_affine(path: Path, affine: Affine) -> None:
    if not np.isfinite(affine).all():
        raise DataError(f"{path}: its affine holds NaN or infinity, so the volume has no place in space")
    spacing = np.array(spacing_of(affine))
    # Of unit axes, so that a tiny spacing is not taken for a missing axis.
    if (spacing == 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-4:
        raise DataError(f"{path}: its affine cannot be inverted, so the volume has no place in space")


def _read_nifti(path: Path) -> Volume:
    raw, oddities = _content(path)
    header_class = _header_class(path, raw)
    try:
        # Unchecked: nibabel's own check repairs what the user ought to hear about.
        header = header_class.from_fileobj(io.BytesIO(raw), check=False)
        _check_header(path, header, len(raw))
        repaired = header.copy()
        repaired.check_fix(_QUIET)
        voxels = ArrayProxy(io.BytesIO(raw), repaired)
        array = np.asanyarray(voxels)
        affine = _affine_of(repaired)
    except _NIBABEL_ERRORS as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({' '.join(str(error).split())})") from None
    except MemoryError:
        raise DataError(f"{path}: its voxels are more than memory holds") from None
    oddities += _header_oddities(header, repaired, affine)
    return Volume(
        array, _in_millimetres(affine, header), repaired, path, (float(voxels.slope), float(voxels.inter)), oddities
    )


def _content(path: Path) -> tuple[bytes, tuple[Oddity, ...]]:
    """The file's bytes, unpacked and with their checksum compared whatever the name says."""
    raw = path.read_bytes()
    packed, named = raw[:2] == b"\x1f\x8b", path.name.lower().endswith(".gz")
    if packed:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: the gzip stream is damaged or cut ({error}); copy the file again") from None
    if packed == named:
        return raw, ()
    found = "gzip data in a file named .nii" if packed else "plain NIfTI in a file named .nii.gz"
    return raw, (Oddity("suffix", found, "rename the file; other tools may refuse it"),)


def _header_class(path: Path, raw: bytes) -> Any:
    """Nifti1Header or Nifti2Header, by the magic text in it."""
    if len(raw) < 348:
        raise DataError(f"{path}: the header is incomplete: {len(raw)} bytes where NIfTI needs 348")
    if raw[4:7] == b"n+2":
        return nib.Nifti2Header
    if raw[344:347] == b"n+1":
        return nib.Nifti1Header
    foreign = _foreign(raw[:512])
    raise DataError(f"{path}: no NIfTI magic in the header" + (f"; the file holds {foreign}" if foreign else ""))


def _check_header(path: Path, header: nib.Nifti1Header, size: int) -> None:
    """Compare what the header promises with the file before anything is allocated."""
    axes = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : axes + 1]]
    if not 1 <= axes <= 7 or min(shape) < 1:
        raise DataError(f"{path}: every axis needs at least one voxel, the header says {by(shape)}")
    if axes < 3 or sum(n > 1 for n in shape[3:]) > 1:
        raise DataError(f"{path}: a 3D volume is wanted, found shape {by(shape)}")
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        raise DataError(f"{path}: unknown voxel type, datatype code {int(header['datatype'])}") from None
    _check_type(path, dtype)
    promised, held = math.prod(shape) * dtype.itemsize, max(0, size - int(header["vox_offset"]))
    if promised > held:
        raise DataError(f"{path}: the header promises {by(shape)} voxels ({promised} bytes), the file has {held} bytes")


def _check_type(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iuf":
        kind = {"c": "complex numbers", "V": "colours"}.get(dtype.kind, str(dtype))
        raise DataError(f"{path}: one real number per voxel is wanted, found {kind}")


def _header_oddities(header: nib.Nifti1Header, repaired: nib.Nifti1Header, affine: Affine) -> tuple[Oddity, ...]:
    """What readers pass over in silence; `affine` is the one in use, in the header's own unit."""
    found = []
    if int(header["sizeof_hdr"]) != header.template_dtype.itemsize:
        text = f"the header gives its own size as {int(header['sizeof_hdr'])} bytes"
        found.append(Oddity("header_size", text, "rewrite the file; other tools may refuse it"))
    unit = int(header["xyzt_units"]) & 7
    if unit in _MILLIMETRES:
        text = f"lengths are in {'metres' if unit == 1 else 'micrometres'}; they are read as millimetres"
        found.append(Oddity("unit", text, "rewrite the file in millimetres; other tools ignore the unit"))
    pixdim = np.asarray(header["pixdim"][1:4], np.float64)
    if not (pixdim > 0).all():
        text = f"pixdim is {by(pixdim)}; the spacing is taken as {by(spacing_of(affine))} mm"
        found.append(Oddity("pixdim", text, "write the true spacing into the header"))
    return (*found, *_form_oddities(repaired, affine, np.abs(pixdim)))


def _affine_of(header: nib.Nifti1Header) -> Affine:
    """The affine that is used of those in a header, in the header's own unit."""
    return np.array(header.get_qform() if _is_unit_scale(header) else header.get_best_affine(), np.float64)


def _in_millimetres(affine: Affine, header: nib.Nifti1Header) -> Affine:
    scaled = affine.copy()
    scaled[:3] *= _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    return scaled


def _is_unit_scale(header: nib.Nifti1Header) -> bool:
    """Whether a tool wrote directions without lengths into the sform, as in ACDC, beside a qform that has them."""
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return False
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    is_unit = np.allclose(spacing_of(header.get_sform()), 1, atol=1e-3)
    return bool(is_unit and (np.abs(pixdim - 1) > SPACING_TOLERANCE * np.maximum(pixdim, 1)).any())


def _form_oddities(header: nib.Nifti1Header, affine: Affine, pixdim: NDArray[np.float64]) -> tuple[Oddity, ...]:
    """Disagreement between the two affines and the spacing of a header; the sform is the one in use."""
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not sform and not qform:
        text = "sform_code and qform_code are 0: orientation and position are unknown"
        return (Oddity("no_orientation", text, "convert again from the source; left and right cannot be told apart"),)
    if not sform:
        return ()
    if _is_unit_scale(header):
        text = f"the sform gives a spacing of 1 x 1 x 1 mm, pixdim and qform {by(pixdim)} mm; the qform is used"
        return (Oddity("unit_sform", text, "rewrite the header (`--fix` does); some tools take the sform"),)
    spacing = np.array(spacing_of(affine))
    if (np.abs(spacing - pixdim) > SPACING_TOLERANCE * np.maximum(spacing, pixdim)).any():
        text = f"the sform gives a spacing of {by(spacing)} mm, pixdim {by(pixdim)} mm; the sform is used"
        return (Oddity("spacing_disagrees", text, "find out which is right and rewrite the header"),)
    if not qform:
        return ()
    try:
        other = header.get_qform()
    except _NIBABEL_ERRORS:
        return (Oddity("qform", "the qform cannot be computed; the sform is used", "rewrite the header"),)
    shift = corners_apart(header.get_data_shape(), affine, other)
    if shift <= FORM_TOLERANCE * spacing.min():
        return ()
    codes = ["".join(nib.aff2axcodes(form)) for form in (affine, other)]
    turned = f" and turn it to {codes[0]} and {codes[1]}" if codes[0] != codes[1] else ""
    text = f"sform and qform place the volume up to {shift:.3g} mm apart{turned}; the sform is used"
    return (Oddity("forms_disagree", text, "find out which is right and write it into both"),)


def _read_itk(path: Path) -> Volume:
    import SimpleITK as sitk

    _check_parts(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read: {str(error).strip().splitlines()[-1]}") from None
    if image.GetDimension() != 3:
        raise DataError(f"{path}: a 3D volume is wanted, found {image.GetDimension()} axes")
    array = sitk.GetArrayFromImage(image)  # (Z, Y, X[, M])
    _check_type(path, array.dtype)
    array = np.moveaxis(array, (0, 1, 2), (2, 1, 0))
    return Volume(array, _itk_affine(image), None, path)


def _read_itk_grid(path: Path) -> tuple[tuple[int, ...], Affine]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return (*reader.GetSize(), reader.GetNumberOfComponents()), _itk_affine(reader)


def _itk_affine(image: Any) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1, 1, 1]) @ affine  # LPS to RAS


def _check_parts(path: Path) -> None:
    """A MetaImage header names the file of its voxels; ITK would not say which one is missing."""
    if path.suffix.lower() != ".mhd":
        return
    for name in re.findall(r"^\s*ElementDataFile\s*=(.+)$", path.read_text(errors="replace"), re.MULTILINE):
        voxels = path.parent / name.strip()
        if not re.search("^LOCAL$|LIST|%", name.strip()) and not voxels.exists():
            raise DataError(f"{path}: its voxels should lie in {voxels}, which does not exist")
