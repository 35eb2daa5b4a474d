"""Read a DICOM series as one volume, with slices ordered and spaced by their positions, never by file name.

A folder may hold several series; its subfolders are not searched. SimpleITK reads the headers one file at a time,
because its own series reader drops slices that it cannot read and spaces the others evenly. `stack` turns the positions
of the slices into a grid.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.data.itk import affine_of
from medssl.data.stack import Slice, numbers_of, placed_slice, stack
from medssl.data.volume import Oddity, Volume
from medssl.errors import DataError
from medssl.words import by, how_many, some, some_lines

SUFFIXES = (".dcm", ".dicom", ".ima")
"""Suffixes of files that count as DICOM even without the magic bytes; other files need them."""
FEW = 8
"""Number of files in a folder that are opened to tell whether it holds a series."""

TELLING = {
    "TemporalPositionIdentifier": "0020|0100",
    "EchoNumbers": "0018|0086",
    "AcquisitionNumber": "0020|0012",
    "EchoTime": "0018|0081",
    "TriggerTime": "0018|1060",
    "AcquisitionTime": "0008|0032",
    "ImageType": "0008|0008",
}
"""Elements of the header that tell slices of several volumes apart."""

_NO_IMAGES = re.compile(
    # The media directory, and under 1.2.840.10008.5.1.4.1.1: waveforms, presentation states, raw data, registrations,
    # surfaces and segmentations, reports, documents, and doses, structures, plans and records of radiotherapy.
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.((9|11|88|104)(\.\d+)*|66(\.\d+)?|67|481\.[2-9]))$"
)

_READ = re.compile(r"1\.2\.840\.10008\.1\.2(\.[125]|\.1\.99|\.4\.(5[017]|70|8[01]|9[01]))?")
"""Transfer syntaxes that SimpleITK reads: uncompressed, deflated, run-length, JPEG, JPEG-LS and JPEG 2000."""


@dataclass(frozen=True)
class Series:
    """One series, as its headers describe it."""

    uid: str
    description: str
    """Empty if the scanner gave none."""
    modality: str
    size: tuple[int, int, int]
    """Columns, rows and frames of the first file; a file of one slice has one frame."""
    paths: tuple[Path, ...]
    """Sorted by name, which is not the order of slices."""

    @property
    def files(self) -> int:
        """Number of files."""
        return len(self.paths)

    @property
    def slices(self) -> int:
        """Number of slices or frames in all files."""
        return self.files * self.size[2]

    def __str__(self) -> str:
        frames = "" if self.size[2] == 1 else f" of {self.size[2]} frames"
        files = how_many(self.files, "file") + frames
        text = f"{self.uid}  {self.modality or '?'}  {files}, {by(self.size[:2])} pixels"
        return f"{text}  {self.description}".rstrip()


def is_series_folder(folder: Path) -> bool:
    """Whether one of the first files directly in a folder is a DICOM image, judged by its first bytes."""
    folder = Path(folder)
    return folder.is_dir() and first_image(_visible_files(folder)) is not None


def first_image(files: Iterable[Path]) -> Path | None:
    """Return the first DICOM image among the first files of a folder, by its first bytes; None if there is none."""
    return next((path for path in islice(files, FEW) if _is_image(path)), None)


def is_one_slice(folder: Path) -> bool:
    """Whether a folder holds a single DICOM image of one slice, like a scout."""
    images = list(islice(filter(_is_image, _visible_files(folder)), 2))
    try:
        return len(images) == 1 and _read_header(images[0]).size[2] == 1
    except DataError:
        return False


def patient_of(path: Path) -> str:
    """Return the PatientID of a DICOM image; empty if it has none.

    It may identify a real person: only compare it, and never write it anywhere.

    Raises:
        DataError: the file cannot be read.
    """
    reader, _ = _reader(path, lambda reader: reader.ReadImageInformation())
    return _text(reader, "0010|0020")


def series_of(folder: Path) -> dict[str, Series]:
    """Return the series directly in a folder, by uid.

    Other files are skipped, and so are DICOM objects that are not images.

    Raises:
        DataError: a DICOM file or the folder cannot be read.
    """
    return {uid: _summary(headers) for uid, headers in _grouped(Path(folder)).items()}


def read_series(folder: Path, series: str | None = None) -> Volume:
    """Read one series as a volume, with the rescaling of each slice applied.

    Slices are ordered along their normal. The third axis of the affine runs from slice to slice. If slices shift in
    their plane, as with a tilted gantry, this axis is sheared, and `oddities` says so. A series of one slice becomes a
    volume of one slice.

    Args:
        series: its uid; needed if several series in the folder have more than one slice.

    Raises:
        DataError: no such series, or several and none named; a file cannot be read; slices belong to several volumes,
            are missing, share a position, are uneven, or differ in direction, size or spacing; a film; colours.
    """
    folder = Path(folder)
    grouped = _grouped(folder)
    uid = _pick(folder, {uid: _summary(each) for uid, each in grouped.items()}, series)
    volume = replace(_read(folder, grouped[uid]), series=uid)
    if series is not None or len(grouped) == 1:
        return volume
    found = f"{len(grouped) - 1} other series of one slice each in the folder, probably scouts; not read"
    odd = Oddity("scout", found, f"if one of them is the case, name it by its uid, as in {folder}#{uid}")
    return replace(volume, oddities=(*volume.oddities, odd))


@dataclass(frozen=True)
class _Header:
    path: Path
    uid: str
    description: str
    modality: str
    size: tuple[int, int, int]
    components: int
    depth: float
    """Millimetres from slice to slice in the header; used only if there is a single slice."""
    spaced: bool
    """Whether the header gives the spacing of pixels."""
    rescaled: bool
    """Whether the header gives a rescale slope or intercept."""
    slice: Slice | None
    """None if the header does not give its position."""


def _visible_files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:  # tells files from folders without a call for each
            return sorted(folder / entry.name for entry in entries if entry.name[0] != "." and entry.is_file())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from None


def _is_image(path: Path) -> bool:
    """Whether a file is a DICOM image, by the object class near its beginning or, without magic bytes, by its name."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if start[128:132] != b"DICM":
        return path.name.lower().endswith(SUFFIXES)
    kind = re.search(rb"\x02\x00\x02\x00UI..([0-9.]+)", start, re.DOTALL)
    return kind is None or _NO_IMAGES.match(kind[1].decode()) is None


def _grouped(folder: Path) -> dict[str, list[_Header]]:
    """Headers of all images by series, sorted by file name."""
    grouped: dict[str, list[_Header]] = {}
    for path in _visible_files(folder):
        if _is_image(path):
            header = _read_header(path)
            grouped.setdefault(header.uid, []).append(header)
    return grouped


def _reader(path: Path, read: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A reader of a file after calling `read` on it, and what `read` returned."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        return reader, read(reader)
    except RuntimeError:
        if syntax := _unread_syntax(path):
            raise DataError(
                f"{path}: its pixels are compressed as {syntax}, which medssl cannot read; convert the folder with a "
                "tool that can, such as dcm2niix"
            ) from None
        raise DataError(
            f"{path}: not a complete DICOM image ({path.stat().st_size} bytes); copy the file again, or move it "
            "elsewhere if it is not an image"
        ) from None


def _unread_syntax(path: Path) -> str | None:
    """The transfer syntax of a file if SimpleITK does not read it; otherwise None."""
    with path.open("rb") as file:
        found = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", file.read(1024), re.DOTALL)
    name = found[1].decode() if found else ""
    return None if not name or _READ.fullmatch(name) else name


def _read_header(path: Path) -> _Header:
    reader, _ = _reader(path, lambda reader: reader.ReadImageInformation())
    text = partial(_text, reader)
    size = (*reader.GetSize(), 1)[:3]
    spacing = (*reader.GetSpacing(), 1.0)[:3]
    depth = numbers_of(text("0018|0088"), 1)  # SpacingBetweenSlices includes gaps, SliceThickness does not
    if depth is None:
        depth = numbers_of(text("0018|0050"), 1)
    between = text("0028|0030")
    said = {name: value for name, tag in TELLING.items() if (value := text(tag))}
    plane = between or f"{spacing[1]}\\{spacing[0]}"  # ImagerPixelSpacing, if SimpleITK finds it
    return _Header(
        path=path,
        uid=text("0020|000e"),
        description=text("0008|103e"),
        modality=text("0008|0060"),
        size=size,
        components=reader.GetNumberOfComponents(),
        depth=spacing[2] if depth is None or depth[0] <= 0 else float(depth[0]),
        spaced=bool(between) or spacing[:2] != (1, 1),
        rescaled=bool(text("0028|1052") or text("0028|1053")),
        slice=placed_slice(path.name, size[:2], text("0020|0032"), text("0020|0037"), plane, said),
    )


def _text(reader: Any, tag: str) -> str:
    found = reader.GetMetaData(tag) if reader.HasMetaDataKey(tag) else ""
    return str(found).encode(errors="surrogateescape").decode(errors="replace").strip(" \0")


def _summary(headers: Sequence[_Header]) -> Series:
    first = headers[0]
    return Series(first.uid, first.description, first.modality, first.size, tuple(header.path for header in headers))


def _pick(folder: Path, found: dict[str, Series], wanted: str | None) -> str:
    if not found:
        raise DataError(f"{folder}: no DICOM image in this folder; subfolders are not searched, and segmentations, "
                        "doses and reports are not images")  # fmt: skip
    thick = [uid for uid, series in found.items() if series.slices > 1]
    if wanted is None and 1 in (len(found), len(thick)):
        return (thick or [*found])[0]
    if wanted is not None and wanted in found:
        return wanted
    title = f"{len(found)} series in one folder" if wanted is None else f"no series {wanted} in this folder; it holds"
    lines = some_lines(map(str, found.values()), FEW)
    named = f"name one by its uid, as in {folder}#{next(iter(found))}"
    raise DataError("\n".join([f"{folder}: {title}", *lines, f"{named}, or move the others to folders of their own"]))


def _read(folder: Path, headers: Sequence[_Header]) -> Volume:
    """The slices of one series as a volume."""
    for header in headers:
        if header.components > 1:
            raise DataError(f"{header.path}: expected one number per voxel, found colours")
    if any(header.size[2] > 1 for header in headers):
        return _read_frames(folder, headers)
    if any(header.slice is None for header in headers):
        return _read_unplaced(folder, headers)
    slices = [header.slice for header in headers if header.slice is not None]
    order, affine, oddities = stack(folder, slices, depth=headers[0].depth)
    unspaced = [header.path.name for header in headers if not header.spaced]
    if unspaced:
        found = f"no PixelSpacing in {some(unspaced)}; pixels are read as 1 x 1 mm"
        oddities = (*oddities, Oddity("no_spacing", found, "export the series again with its geometry"))
    stored = [header.path.name for header in headers if not header.rescaled]
    if 0 < len(stored) < len(headers):
        found = f"no RescaleSlope and RescaleIntercept in {some(stored)}, unlike the other slices"
        oddities = (*oddities, Oddity("rescale", found, "export the series again; grey levels jump between slices"))
    return Volume(_read_slices([headers[i].path for i in order]), affine, None, folder, oddities=oddities)


def _read_slices(paths: Sequence[Path]) -> NDArray[Any]:
    """`(X, Y, Z)`, in a number type that holds all slices; slices with different slopes may differ in type."""
    array: NDArray[Any] | None = None
    for number, path in enumerate(paths):
        pixels = _pixels(path)[..., 0]
        if array is None:
            array = np.empty((*pixels.shape, len(paths)), pixels.dtype, order="F")
        array = array.astype(np.result_type(array, pixels), copy=False)
        array[..., number] = pixels
    assert array is not None
    return array


def _pixels(path: Path) -> NDArray[Any]:
    """`(X, Y, Z)`, rescaled."""
    import SimpleITK as sitk

    _, image = _reader(path, lambda reader: reader.Execute())
    array = sitk.GetArrayFromImage(image)  # (Z, Y, X), or (Y, X)
    return np.asarray(array.T if array.ndim == 3 else array.T[..., None])


def _read_unplaced(folder: Path, headers: Sequence[_Header]) -> Volume:
    lost = [header.path.name for header in headers if header.slice is None]
    what = "ImagePositionPatient, ImageOrientationPatient or PixelSpacing is missing or invalid"
    advice = "export the series again with its geometry"
    if len(headers) > 1:
        files = f"in {len(lost)} of {len(headers)} files ({some(lost)})"
        raise DataError(f"{folder}: {what} {files}, so the order of slices is unknown; {advice}")
    odd = Oddity("no_orientation", f"{what}; orientation and position are unknown", advice)
    return replace(_as_simpleitk_has_it(folder, headers[0].path), oddities=(odd,))


def _as_simpleitk_has_it(folder: Path, path: Path) -> Volume:
    reader, _ = _reader(path, lambda reader: reader.ReadImageInformation())
    return Volume(_pixels(path), affine_of(reader), None, folder)


def _read_frames(folder: Path, headers: Sequence[_Header]) -> Volume:
    """Read a series that is one multi-frame file."""
    if len(headers) > 1:
        most = max(headers, key=lambda header: header.size[2])
        raise DataError(
            f"{folder}: {len(headers)} files in one series, but {most.path.name} alone holds {most.size[2]} frames; "
            "keep one volume per series, or convert the folder with dcm2niix"
        )
    path, (columns, rows, count) = headers[0].path, headers[0].size
    raw = _header_of(path.read_bytes(), columns * rows * count)
    if _elements(raw, 0x0018, 0x1063) or _elements(raw, 0x0018, 0x1065):  # FrameTime, FrameTimeVector
        raise DataError(
            f"{path}: its {count} frames are a film (the header has a FrameTime), not the slices of one volume; leave "
            "the file out, or convert it to volumes"
        )
    slopes = {tuple(pair) for pair in zip(_elements(raw, 0x0028, 0x1053), _elements(raw, 0x0028, 0x1052), strict=False)}
    if len(slopes) > 1:
        raise DataError(f"{path}: its frames differ in slope or intercept, which is not read; convert it with dcm2niix")
    placed = _frames(raw, (columns, rows), count)
    if placed is None:
        volume = _as_simpleitk_has_it(folder, path)
        found = f"the positions of the {count} frames are not found"
        between = [numbers_of(text, 2) for text in _elements(raw, 0x0028, 0x0030)]
        is_unit = bool(between) and all(pair is not None and (pair == 1).all() for pair in between)
        if volume.spacing == (1, 1, 1) and not is_unit:  # SimpleITK found nothing, or frames out of order
            raise DataError(
                f"{path}: {found}, nor is their spacing; convert the file with dcm2niix, or export it again"
            )
        found += f"; order and spacing ({by(volume.spacing)} mm) are those that SimpleITK reads"
        odd = Oddity("multi_frame", found, "compare the volume with the result of dcm2niix")
        return replace(volume, oddities=(odd,))
    order, affine, oddities = stack(path, placed, depth=headers[0].depth)
    return Volume(_pixels(path)[..., order], affine, None, folder, oddities=oddities)


def _frames(raw: bytes, size: tuple[int, int], count: int) -> list[Slice] | None:
    """Positions of the frames of an enhanced image; None if the file does not give them plainly.

    SimpleITK does not show the sequences that hold them, and if frames are unordered it sets every spacing to 1.
    """
    found = [_elements(raw, 0x0020, 0x0032), _elements(raw, 0x0020, 0x0037), _elements(raw, 0x0028, 0x0030)]
    if len(found[0]) != count or any(len(values) not in (1, count) for values in found[1:]):
        return None
    slices = []
    for number in range(count):
        position, axes, between = (values[number % len(values)] for values in found)
        placed = placed_slice(f"frame {number + 1}", size, position, axes, between)
        if placed is None:
            return None
        slices.append(placed)
    return slices


def _header_of(raw: bytes, pixels: int) -> bytes:
    """The bytes before the pixels, in which anything could look like an element; icons have pixels too."""
    for match in re.finditer(b"\xe0\x7f\x10\x00(?:O[BW]\0\0)?(....)", raw, re.DOTALL):
        if int.from_bytes(match[1], "little") >= pixels:  # compressed pixels have an undefined length, 2^32 - 1
            return raw[: match.start()]
    return raw


def _elements(raw: bytes, group: int, element: int) -> list[str]:
    """All values of a decimal element in a little-endian file, in the order of the file."""
    implicit = b"1.2.840.10008.1.2\0" in raw[:1024]  # the transfer syntax whose elements do not name their type
    mark = re.escape(group.to_bytes(2, "little") + element.to_bytes(2, "little"))
    return [
        raw[match.end() : match.end() + int.from_bytes(match[1], "little")].decode("ascii", "replace").strip(" \0")
        for match in re.finditer(mark + (b"(....)" if implicit else b"DS(..)"), raw, re.DOTALL)
    ]
