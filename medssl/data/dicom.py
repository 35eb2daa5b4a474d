"""Read a DICOM series as one volume: slices ordered and spaced by where they lie, never by file name.

A folder may hold several series; its subfolders are not searched. Headers are read through
SimpleITK one file at a time, because its own series reader drops what it cannot read and spaces
what is left evenly. What the headers say of the slices becomes a grid in `stack`.
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
from medssl.words import by, how_many, some

SUFFIXES = (".dcm", ".dicom", ".ima")
"""A file named so is taken for DICOM even where its magic is lost; others need the magic."""
FEW = 8
"""Files of a folder that are looked into to tell whether it holds a series."""

TELLING = {
    "TemporalPositionIdentifier": "0020|0100",
    "EchoNumbers": "0018|0086",
    "AcquisitionNumber": "0020|0012",
    "EchoTime": "0018|0081",
    "TriggerTime": "0018|1060",
    "AcquisitionTime": "0008|0032",
    "ImageType": "0008|0008",
}
"""Elements by which slices of several volumes differ."""

_NO_IMAGES = re.compile(
    # The media directory, and under 1.2.840.10008.5.1.4.1.1: waveforms, presentation states, raw data, registrations,
    # surfaces and segmentations, reports, documents, and doses, structures, plans and records of radiotherapy.
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.((9|11|88|104)(\.\d+)*|66(\.\d+)?|67|481\.[2-9]))$"
)

_READ = re.compile(r"1\.2\.840\.10008\.1\.2(\.[125]|\.1\.99|\.4\.(5[017]|70|8[01]|9[01]))?")
"""Transfer syntaxes that SimpleITK reads: plain, deflated, run-length, JPEG, JPEG-LS and JPEG 2000."""


@dataclass(frozen=True)
class Series:
    """What the headers say of one series."""

    uid: str
    description: str
    """Empty when the scanner gave none."""
    modality: str
    size: tuple[int, int, int]
    """Columns, rows and frames of the first file; a file of one slice has one frame."""
    paths: tuple[Path, ...]
    """Sorted by name, which says nothing of the order of slices."""

    @property
    def files(self) -> int:
        """Number of files."""
        return len(self.paths)

    @property
    def slices(self) -> int:
        """Of all files."""
        return self.files * self.size[2]

    def __str__(self) -> str:
        frames = "" if self.size[2] == 1 else f" of {self.size[2]} frames"
        files = how_many(self.files, "file") + frames
        text = f"{self.uid}  {self.modality or '?'}  {files}, {by(self.size[:2])} pixels"
        return f"{text}  {self.description}".rstrip()


def is_series_folder(folder: Path) -> bool:
    """Whether one of the first files directly in a folder is a DICOM image, by their first bytes."""
    folder = Path(folder)
    return folder.is_dir() and first_image(_visible_files(folder)) is not None


def first_image(files: Iterable[Path]) -> Path | None:
    """The first DICOM image among the first files of a folder, by their first bytes; None where there is none."""
    return next((path for path in islice(files, FEW) if _is_image(path)), None)


def is_one_slice(folder: Path) -> bool:
    """Whether a folder has one DICOM image of one slice, as a scout is."""
    images = list(islice(filter(_is_image, _visible_files(folder)), 2))
    try:
        return len(images) == 1 and _read_header(images[0]).size[2] == 1
    except DataError:
        return False


def patient_of(path: Path) -> str:
    """The PatientID of a DICOM image, empty where it has none.

    It may be anybody's real number: compare it, and write it nowhere.

    Raises:
        DataError: the file cannot be read.
    """
    reader, _ = _reader(path, lambda reader: reader.ReadImageInformation())
    return _text(reader, "0010|0020")


def series_of(folder: Path) -> dict[str, Series]:
    """The series directly in a folder, by their uid.

    Other files are passed over, and so are DICOM objects that are no images.

    Raises:
        DataError: a DICOM file cannot be read, or the folder cannot.
    """
    return {uid: _summary(headers) for uid, headers in _grouped(Path(folder)).items()}


def read_series(folder: Path, series: str | None = None) -> Volume:
    """Read one series as a volume, the rescaling of each slice applied.

    Slices are ordered along their normal. The third axis of the affine runs from slice to slice: where these shift
    in their plane, as under a tilted gantry, it is sheared, and `oddities` tell. A series of one slice is a volume of
    one slice.

    Args:
        series: uid; needed where the folder holds several of more than one slice.

    Raises:
        DataError: no such series, or several and none named; a file cannot be read; slices are of several volumes, are
            missing, share a position, lie unevenly, or differ in direction, size or spacing; frames of a film; colours.
    """
    folder = Path(folder)
    grouped = _grouped(folder)
    uid = _pick(folder, {uid: _summary(each) for uid, each in grouped.items()}, series)
    volume = replace(_read(folder, grouped[uid]), series=uid)
    if series is not None or len(grouped) == 1:
        return volume
    found = f"{len(grouped) - 1} other series in the folder, of one slice each as a scout is; not read"
    odd = Oddity("scout", found, f"name one by its uid, as in {folder}#{uid}, if it is the case")
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
    """Millimetres from slice to slice as the header has it: where there is but one slice, nothing says better."""
    spaced: bool
    """Whether the header tells how far pixels lie apart."""
    rescaled: bool
    """Whether the header tells what to make of stored numbers."""
    slice: Slice | None
    """None when the header does not say where it lies."""


def _visible_files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:  # tells files from folders without asking for each
            return sorted(folder / entry.name for entry in entries if entry.name[0] != "." and entry.is_file())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from None


def _is_image(path: Path) -> bool:
    """Whether a file is, or by its name should be, a DICOM image; the kind of object stands near its beginning."""
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
    """Headers of all images by series, each in the order of file names."""
    grouped: dict[str, list[_Header]] = {}
    for path in _visible_files(folder):
        if _is_image(path):
            header = _read_header(path)
            grouped.setdefault(header.uid, []).append(header)
    return grouped


def _reader(path: Path, read: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A reader of a file after `read`, and what that returned."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        return reader, read(reader)
    except RuntimeError:
        if syntax := _unread_syntax(path):
            raise DataError(
                f"{path}: its pixels are packed as {syntax}, which is not read; convert the folder with a tool that "
                "unpacks them, such as dcm2niix"
            ) from None
        raise DataError(
            f"{path}: not a whole DICOM image ({path.stat().st_size} bytes); copy the file again, or move it elsewhere "
            f"if it is none"
        ) from None


def _unread_syntax(path: Path) -> str | None:
    """The transfer syntax of a file where that is none that SimpleITK reads."""
    with path.open("rb") as file:
        found = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", file.read(1024), re.DOTALL)
    name = found[1].decode() if found else ""
    return None if not name or _READ.fullmatch(name) else name


def _read_header(path: Path) -> _Header:
    reader, _ = _reader(path, lambda reader: reader.ReadImageInformation())
    text = partial(_text, reader)
    size = (*reader.GetSize(), 1)[:3]
    spacing = (*reader.GetSpacing(), 1.0)[:3]
    depth = numbers_of(text("0018|0088"), 1)  # SpacingBetweenSlices, which counts gaps where SliceThickness does not
    if depth is None:
        depth = numbers_of(text("0018|0050"), 1)
    between = text("0028|0030")
    said = {name: value for name, tag in TELLING.items() if (value := text(tag))}
    plane = between or f"{spacing[1]}\\{spacing[0]}"  # ImagerPixelSpacing where SimpleITK finds that
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
                        "doses and reports are no images")  # fmt: skip
    thick = [uid for uid, series in found.items() if series.slices > 1]
    if wanted is None and 1 in (len(found), len(thick)):
        return (thick or [*found])[0]
    if wanted is not None and wanted in found:
        return wanted
    title = f"{len(found)} series in one folder" if wanted is None else f"no series {wanted} in this folder, but"
    lines = [f"  {series}" for series in found.values()]
    if len(lines) > FEW:
        lines[FEW:] = [f"  and {len(lines) - FEW} more"]
    named = f"name one by its uid, as in {folder}#{next(iter(found))}"
    raise DataError("\n".join([f"{folder}: {title}", *lines, f"{named}, or move the others to folders of their own"]))


def _read(folder: Path, headers: Sequence[_Header]) -> Volume:
    """The slices of one series as a volume."""
    for header in headers:
        if header.components > 1:
            raise DataError(f"{header.path}: one number per voxel is wanted, found colours")
    if any(header.size[2] > 1 for header in headers):
        return _read_frames(folder, headers)
    if any(header.slice is None for header in headers):
        return _read_unplaced(folder, headers)
    slices = [header.slice for header in headers if header.slice is not None]
    order, affine, oddities = stack(folder, slices, depth=headers[0].depth)
    unspaced = [header.path.name for header in headers if not header.spaced]
    if unspaced:
        found = f"no PixelSpacing in {some(unspaced)}: pixels are taken as 1 x 1 mm"
        oddities = (*oddities, Oddity("no_spacing", found, "export the series again with its geometry"))
    stored = [header.path.name for header in headers if not header.rescaled]
    if 0 < len(stored) < len(headers):
        found = f"{some(stored)} have no RescaleSlope and RescaleIntercept, the other slices have: read as they say"
        oddities = (*oddities, Oddity("rescale", found, "export the series again; grey levels jump there"))
    return Volume(_read_slices([headers[i].path for i in order]), affine, None, folder, oddities=oddities)


def _read_slices(paths: Sequence[Path]) -> NDArray[Any]:
    """`(X, Y, Z)`, in a type that holds every slice: with slopes of their own these may differ in it."""
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
    what = "ImagePositionPatient, ImageOrientationPatient or PixelSpacing is missing or no good"
    advice = "export the series again with its geometry"
    if len(headers) > 1:
        files = f"in {len(lost)} of {len(headers)} files ({some(lost)})"
        raise DataError(f"{folder}: {what} {files}: the order of slices is unknown; {advice}")
    odd = Oddity("no_orientation", f"{what}: orientation and position are unknown", advice)
    return replace(_as_simpleitk_has_it(folder, headers[0].path), oddities=(odd,))


def _as_simpleitk_has_it(folder: Path, path: Path) -> Volume:
    reader, _ = _reader(path, lambda reader: reader.ReadImageInformation())
    return Volume(_pixels(path), affine_of(reader), None, folder)


def _read_frames(folder: Path, headers: Sequence[_Header]) -> Volume:
    """A series of one multi-frame file."""
    if len(headers) > 1:
        most = max(headers, key=lambda header: header.size[2])
        raise DataError(
            f"{folder}: {len(headers)} files in a series where {most.path.name} alone holds {most.size[2]} frames; "
            "keep one volume per series, or convert the folder with dcm2niix"
        )
    path, (columns, rows, count) = headers[0].path, headers[0].size
    raw = _header_of(path.read_bytes(), columns * rows * count)
    if _elements(raw, 0x0018, 0x1063) or _elements(raw, 0x0018, 0x1065):  # FrameTime, FrameTimeVector
        raise DataError(
            f"{path}: {count} frames of a film, one after the other in time (it has a FrameTime), where slices of one "
            "volume are wanted; leave it out, or convert it to volumes"
        )
    slopes = {tuple(pair) for pair in zip(_elements(raw, 0x0028, 0x1053), _elements(raw, 0x0028, 0x1052), strict=False)}
    if len(slopes) > 1:
        raise DataError(f"{path}: frames with slopes or intercepts of their own are not read; convert with dcm2niix")
    placed = _frames(raw, (columns, rows), count)
    if placed is None:
        volume = _as_simpleitk_has_it(folder, path)
        found = f"positions of the {count} frames are not found"
        between = [numbers_of(text, 2) for text in _elements(raw, 0x0028, 0x0030)]
        is_unit = bool(between) and all(pair is not None and (pair == 1).all() for pair in between)
        if volume.spacing == (1, 1, 1) and not is_unit:  # SimpleITK found nothing, or frames out of order
            raise DataError(
                f"{path}: {found}, nor is their spacing; convert the file with dcm2niix, or export it again"
            )
        found += f": order and spacing, {by(volume.spacing)} mm, are as SimpleITK has them"
        odd = Oddity("multi_frame", found, "compare with what dcm2niix makes of the file")
        return replace(volume, oddities=(odd,))
    order, affine, oddities = stack(path, placed, depth=headers[0].depth)
    return Volume(_pixels(path)[..., order], affine, None, folder, oddities=oddities)


def _frames(raw: bytes, size: tuple[int, int], count: int) -> list[Slice] | None:
    """Where the frames of an enhanced image lie; None when the file does not say so plainly.

    SimpleITK keeps the sequences that hold this to itself, and where frames are unordered it makes every spacing 1.
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
    """A file without its pixels, in which anything may look like an element; icons may have pixels of their own."""
    for match in re.finditer(b"\xe0\x7f\x10\x00(?:O[BW]\0\0)?(....)", raw, re.DOTALL):
        if int.from_bytes(match[1], "little") >= pixels:  # or of no length, 2^32 - 1, where they are packed
            return raw[: match.start()]
    return raw


def _elements(raw: bytes, group: int, element: int) -> list[str]:
    """Values of a decimal element wherever it stands in a little-endian file, in the order of the file."""
    implicit = b"1.2.840.10008.1.2\0" in raw[:1024]  # the transfer syntax whose elements do not name their type
    mark = re.escape(group.to_bytes(2, "little") + element.to_bytes(2, "little"))
    return [
        raw[match.end() : match.end() + int.from_bytes(match[1], "little")].decode("ascii", "replace").strip(" \0")
        for match in re.finditer(mark + (b"(....)" if implicit else b"DS(..)"), raw, re.DOTALL)
    ]
