"""Read and write NIfTI files with nibabel: voxels, the affine in use, and oddities of the header.

A file that cannot be trusted is a DataError. A file that can be read but looks odd has `oddities`, which `medssl check`
reports.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medssl.data.volume import Affine, Oddity, Volume, check_type, corners_apart, spacing_of
from medssl.errors import DataError
from medssl.files import whole_file
from medssl.words import by

SUFFIXES = (".nii.gz", ".nii")

SPACING_TOLERANCE = 0.01
"""sform and pixdim may differ by this share of a spacing: more than rounding, less than any real difference."""
FORM_TOLERANCE = 0.1
"""sform and qform may place a corner this many voxels apart; rounding of a float32 quaternion causes less."""

MILLIMETRES = {1: 1000.0, 3: 0.001}
"""Millimetres in the other units of length, by their code in the header: metre and micrometre."""

ERRORS = (OSError, ValueError, TypeError, KeyError, ImageFileError, HeaderDataError)
"""Errors that nibabel raises for a file that it cannot read."""

_QUIET = logging.Logger("quiet", logging.CRITICAL + 1)  # repairs are reported in `oddities`


def read(path: Path) -> Volume:
    """Read the scaled voxels of a file, its affine in millimetres, its repaired header, and its oddities.

    Raises:
        DataError: it is damaged, or not a volume of real numbers.
    """
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
    except ERRORS as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({' '.join(str(error).split())})") from None
    except MemoryError:
        raise DataError(f"{path}: its voxels do not fit into memory") from None
    oddities += _header_oddities(header, repaired, affine)
    return Volume(
        array, _in_millimetres(affine, header), repaired, path, (float(voxels.slope), float(voxels.inter)), oddities
    )


def read_grid(path: Path) -> tuple[tuple[int, ...], Affine]:
    """Read the voxels along all axes and the affine in millimetres from the header alone.

    Raises:
        DataError, EOFError, zlib.error, or one of ERRORS: the header cannot be read.
    """
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if is_packed else path.open("rb") as file:
        raw = file.read(nib.Nifti2Header.sizeof_hdr)
    header = _header_class(path, raw).from_fileobj(io.BytesIO(raw), check=False)
    shape = tuple(int(n) for n in header.get_data_shape())
    header.check_fix(_QUIET)
    return shape, _in_millimetres(_affine_of(header), header)


def rewrite(path: Path, out: Path, header: nib.Nifti1Header, array: NDArray[Any] | None) -> None:
    """Write a file again with a corrected header, or with new voxels of the same shape; all else is kept."""
    raw, header = _content(path)[0], header.copy()
    start = max(int(header["vox_offset"]), len(header.binaryblock))
    voxels = raw[start:]
    if array is not None:
        header.set_data_dtype(array.dtype)
        header.set_slope_inter(1, 0)
        voxels = array.astype(header.get_data_dtype()).tobytes(order="F")
    content = header.binaryblock + raw[len(header.binaryblock) : start] + voxels
    out.write_bytes(gzip.compress(content, 6, mtime=0) if out.name.lower().endswith(".gz") else content)


def write(
    path: Path, array: NDArray[Any], affine: Affine, header: nib.Nifti1Header | None, *, slope: float = 1
) -> None:
    """Write voxels with a given header, or with a new one from an affine; the file appears whole or not at all.

    A given header keeps its codes, units, both forms and its description, and `affine` is ignored. Its extensions and
    the fields of databases are removed.
    """
    if header is None:
        image = nib.Nifti1Image(array, affine, dtype=array.dtype)
        image.header.set_xyzt_units("mm")
    else:
        header = header.copy()
        header.set_data_dtype(array.dtype)
        header.set_intent("none")
        header["cal_min"] = header["cal_max"] = 0
        for field in {"db_name", "aux_file"}.intersection(header.keys()):
            header[field] = b""  # some scanners and databases name the patient here
        header.extensions.clear()  # such as a whole DICOM header
        image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        # No affine is passed: nibabel then keeps both forms of the header, codes included.
        image = image_class(array, None, header)
    image.header.set_slope_inter(slope, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        nib.save(image, partial)


def foreign(head: bytes) -> str | None:
    """Say what a file is by its first bytes, if it is no volume; otherwise None."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the volume itself; fetch it with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not a volume; was the download refused?"
    if head[128:132] == b"DICM":
        return "one DICOM slice; name the folder of its series"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive, not a volume; unpack it"
    return None


def _content(path: Path) -> tuple[bytes, tuple[Oddity, ...]]:
    """The bytes of a file, unpacked if they are gzip data, whatever the name says, with the checksum verified."""
    raw = path.read_bytes()
    packed, named = raw[:2] == b"\x1f\x8b", path.name.lower().endswith(".gz")
    if packed:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: the gzip stream is damaged or cut short ({error}); copy the file again") from None
    if packed == named:
        return raw, ()
    found = "gzip data in a file named .nii" if packed else "plain NIfTI in a file named .nii.gz"
    return raw, (Oddity("suffix", found, "rename the file; other tools may refuse it"),)


def _header_class(path: Path, raw: bytes) -> Any:
    """Nifti1Header or Nifti2Header, by the magic text of the header."""
    if len(raw) < 348:
        raise DataError(f"{path}: the header is incomplete: {len(raw)} bytes where NIfTI needs 348")
    if raw[4:7] == b"n+2":
        return nib.Nifti2Header
    if raw[344:347] == b"n+1":
        return nib.Nifti1Header
    held = foreign(raw[:512])
    raise DataError(f"{path}: no NIfTI magic in the header" + (f"; the file holds {held}" if held else ""))


def _check_header(path: Path, header: nib.Nifti1Header, size: int) -> None:
    """Compare the header with the size of the file before memory is allocated."""
    axes = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : axes + 1]]
    if not 1 <= axes <= 7 or min(shape) < 1:
        raise DataError(f"{path}: every axis needs at least one voxel, but the header says {by(shape)}")
    if axes < 3 or sum(n > 1 for n in shape[3:]) > 1:
        raise DataError(f"{path}: expected a 3D volume, found shape {by(shape)}")
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        raise DataError(f"{path}: unknown voxel type, datatype code {int(header['datatype'])}") from None
    check_type(path, dtype)
    begin, first = header["vox_offset"], header.template_dtype.itemsize
    if not begin >= first:
        raise DataError(
            f"{path}: the header says that voxels begin at byte {float(begin):g}, but the header itself has {first} "
            "bytes. Write the file again from its source"
        )
    promised, held = math.prod(shape) * dtype.itemsize, max(0, size - int(header["vox_offset"]))
    if promised > held:
        raise DataError(f"{path}: the header promises {by(shape)} voxels ({promised} bytes), the file has {held} bytes")


def _header_oddities(header: nib.Nifti1Header, repaired: nib.Nifti1Header, affine: Affine) -> tuple[Oddity, ...]:
    """Oddities that other readers do not report; `affine` is the one in use, in the unit of the header."""
    found = []
    if int(header["sizeof_hdr"]) != header.template_dtype.itemsize:
        text = f"the header gives its own size as {int(header['sizeof_hdr'])} bytes"
        found.append(Oddity("header_size", text, "rewrite the file; other tools may refuse it"))
    unit = int(header["xyzt_units"]) & 7
    if unit in MILLIMETRES:
        text = f"lengths are in {'metres' if unit == 1 else 'micrometres'}; they are converted to millimetres"
        found.append(Oddity("unit", text, "rewrite the file in millimetres; other tools ignore the unit"))
    pixdim = np.asarray(header["pixdim"][1:4], np.float64)
    if not (pixdim > 0).all():
        text = f"pixdim is {by(pixdim)}; the spacing is taken as {by(spacing_of(affine))} mm"
        found.append(Oddity("pixdim", text, "write the true spacing into the header"))
    return (*found, *_form_oddities(repaired, affine, np.abs(pixdim)))


def _affine_of(header: nib.Nifti1Header) -> Affine:
    """The affine in use of those in a header, in the unit of the header."""
    return np.array(header.get_qform() if _is_unit_scale(header) else header.get_best_affine(), np.float64)


def _in_millimetres(affine: Affine, header: nib.Nifti1Header) -> Affine:
    scaled = affine.copy()
    scaled[:3] *= MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    return scaled


def _is_unit_scale(header: nib.Nifti1Header) -> bool:
    """Whether the sform has directions without voxel lengths, as in ACDC, while the qform has both."""
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return False
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    is_unit = np.allclose(spacing_of(header.get_sform()), 1, atol=1e-3)
    return bool(is_unit and (np.abs(pixdim - 1) > SPACING_TOLERANCE * np.maximum(pixdim, 1)).any())


def _form_oddities(header: nib.Nifti1Header, affine: Affine, pixdim: NDArray[np.float64]) -> tuple[Oddity, ...]:
    """Report disagreement between the two affines and pixdim; the sform is the one in use."""
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
    except ERRORS:
        return (Oddity("qform", "the qform cannot be computed; the sform is used", "rewrite the header"),)
    shift = corners_apart(header.get_data_shape(), affine, other)
    if shift <= FORM_TOLERANCE * spacing.min():
        return ()
    codes = ["".join(nib.aff2axcodes(form)) for form in (affine, other)]
    turned = f" and turn it to {codes[0]} and {codes[1]}" if codes[0] != codes[1] else ""
    text = f"sform and qform place the volume up to {shift:.3g} mm apart{turned}; the sform is used"
    return (Oddity("forms_disagree", text, "find out which is right and write it into both"),)
