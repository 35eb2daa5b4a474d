"""Write a copy of a dataset in which all faults are fixed that need no guess: `medssl check --fix`.

The source is read and never written to. Its folder is copied whole, so the copy has the same layout. `fixes.csv` in it
lists what was changed in which file, from what to what. A change to a header leaves the bytes of the voxels as they
are. Faults that could be fixed in several ways are left, and `check` lists them again.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medssl.config import dump
from medssl.data.cases import IGNORED, DatasetConfig
from medssl.data.findings import Report
from medssl.data.inspect import STRAIGHTENED
from medssl.data.io import as_label, is_volume, read_volume, rewrite
from medssl.data.labels import as_classes
from medssl.data.nifti import FORM_TOLERANCE, MILLIMETRES, SPACING_TOLERANCE
from medssl.data.volume import SHEAR, Affine, Volume, corners_apart, spacing_of
from medssl.errors import ConfigError, DataError
from medssl.files import refuse_existing, whole_folder
from medssl.progress import mapper, tracked
from medssl.words import by

if TYPE_CHECKING:
    from rich.console import Console

LOG = "fixes.csv"
SETTINGS = "data.yaml"
"""The configuration of a copy whose label values were remapped."""

_SPOILT_VALUES = ("unreadable", "label_axes", "not_integer", "negative", "unknown_value", "scaled_label")


@dataclass(frozen=True)
class Fix:
    """One change to one file."""

    case: str
    file: str
    """Path inside the folder of the dataset."""
    change: str
    before: str
    after: str


@dataclass(frozen=True)
class Job:
    """A volume of the dataset and what may be changed in it."""

    case: str
    file: str
    is_label: bool
    is_part: bool
    """Whether cases are parts of this file; its voxels then stay as they are."""
    remap: DatasetConfig | None


@dataclass(frozen=True)
class Fixed:
    """The result of `apply_fixes`."""

    folder: Path
    fixes: tuple[Fix, ...]
    dataset: DatasetConfig | None
    """The settings that hold for the copy: those of the source, without `values` where labels were remapped."""
    unmapped: tuple[Path, ...]
    """Labels whose values could not be mapped; because of them, all labels keep their values."""

    def to_json(self) -> dict[str, Any]:
        """Return everything in plain values."""
        return {
            "fixed": str(self.folder),
            "fixes": [asdict(fix) for fix in self.fixes],
            "unmapped": [str(path) for path in self.unmapped],
        }

    def print(self, console: Console) -> None:
        """Print the changes, grouped by kind."""
        from rich.text import Text

        for change, fixes in groupby(sorted(self.fixes, key=lambda fix: fix.change), key=lambda fix: fix.change):
            for number, fix in enumerate(fixes):
                if not number:
                    console.print(Text(f"fixed {change}", "bold green"), soft_wrap=True)
                console.print(Text(f"  {fix.file}  {fix.before} -> {fix.after}"), soft_wrap=True)
        if self.unmapped:
            files = ", ".join(path.name for path in self.unmapped)
            console.print(Text(f"label values were not mapped, because these files cannot be: {files}"), soft_wrap=True)
        where = f"{len(self.fixes)} fixes written to {self.folder}, listed in {LOG} there; the findings below are left"
        console.print(Text(where), soft_wrap=True)


def apply_fixes(
    report: Report, out: Path, dataset: DatasetConfig | None = None, *, workers: int = 2, overwrite: bool = False
) -> Fixed:
    """Write a fixed copy of the dataset of `report`. It appears whole or not at all.

    Slightly skewed axes are straightened, and contradictions in headers, units and compression are corrected. Float
    labels of whole numbers become integers. Label values are mapped by `dataset.values` to positions of classes, and
    `data.yaml` in the copy is the configuration for it.

    Raises:
        ConfigError: `out` exists and is no fixed copy or must not be replaced, or one folder lies in the other.
        DataError: a file of a case lies outside the dataset's folder, or the folder cannot be copied.
    """
    source, out = fix_places(report.source, Path(out), overwrite)
    unmapped = () if dataset is None or dataset.is_plain else _unmappable(report)
    jobs = _jobs(report, source, None if unmapped or (dataset is not None and dataset.is_plain) else dataset)
    with whole_folder(out) as partial:
        _copy(source, partial)
        with mapper(workers if len(jobs) > 1 else 0) as apply:
            done = tracked("fix", [job.file for job in jobs], apply(_mend, jobs, repeat(source), repeat(partial)))
        fixes = tuple(fix for found in done for fix in found)
        _write_log(partial / LOG, fixes)
        if dataset is not None and any(job.remap for job in jobs):
            dataset = _plain(dataset)
            dump({"data": dataset.model_dump(mode="json", exclude_unset=True)}, partial / SETTINGS)
    return Fixed(out, fixes, dataset, unmapped)


def fix_places(dataset: Path | None, out: Path, overwrite: bool) -> tuple[Path, Path]:
    """Return the folder to copy and the output folder, checked before the dataset is read.

    Raises:
        ConfigError: as `apply_fixes`.
    """
    if dataset is not None and dataset.is_file():
        raise ConfigError(f"{dataset}: a list, whose files may lie anywhere; only a folder can be copied and fixed. "
                          "Give a folder, or fix the files that `medssl check` names")  # fmt: skip
    if dataset is None or not dataset.is_dir():
        raise ConfigError(f"{dataset}: not a folder; only a folder can be copied and fixed")
    source, place = dataset.resolve(), out.resolve()
    if source == place or source in place.parents or place in source.parents:
        raise ConfigError(f"{out}: lies inside the dataset or contains it; choose a folder beside it")
    refuse_existing(out, overwrite)
    if out.exists() and not (out / LOG).is_file():
        raise ConfigError(f"{out}: has no {LOG}, so it is not a fixed copy and is not replaced; remove it yourself")
    return dataset.absolute(), out


def _copy(source: Path, out: Path) -> None:
    """Copy all files without their permissions, so that a read-only source does not make a read-only copy."""
    try:
        for folder, inside, names in os.walk(source, followlinks=True):
            way = Path(folder).relative_to(source)
            passed = {(source / part).resolve() for part in (way, *way.parents)} | {*source.resolve().parents}
            inside[:] = [name for name in inside if (Path(folder) / name).resolve() not in passed]  # no circle
            to = out / way
            to.mkdir(exist_ok=True)
            for name in names:
                if (Path(folder) / name).is_file():  # not a dangling link
                    shutil.copyfile(Path(folder) / name, to / name)
    except OSError as error:
        raise DataError(f"{source}: cannot be copied to {out}: {error.strerror or error}") from None


def _jobs(report: Report, source: Path, remap: DatasetConfig | None) -> list[Job]:
    """List the volumes of cases and the labels that no case uses; each file once."""
    found: dict[Path, Job] = {}
    for case in report.cases:
        for each in case.images:
            found.setdefault(each.path, Job(case.id, "", False, bool(each.part), None))
        if case.label is not None:
            found.setdefault(case.label.path, Job(case.id, "", True, bool(case.label.part), remap))
    for finding in report.findings:
        if finding.code in ("no_image", "unlisted_label"):
            found.setdefault(finding.file, Job(finding.case or "", "", True, False, remap))
    jobs = []
    for path, job in found.items():
        if is_volume(path) and path.is_file():
            if source not in path.absolute().parents:
                raise DataError(f"{path}: lies outside {source}, so a copy of that folder would not contain it")
            jobs.append(replace(job, file=str(path.absolute().relative_to(source))))
    return jobs


def _unmappable(report: Report) -> tuple[Path, ...]:
    """Labels whose values cannot be mapped. If there is one, no label is mapped: a mixture has no meaning."""
    labels = {case.label.path for case in report.cases if case.label}
    labels |= {finding.file for finding in report.errors if finding.code == "no_image"}
    return tuple(f.file for f in report.errors if f.code in _SPOILT_VALUES and f.file in labels)


def _plain(dataset: DatasetConfig) -> DatasetConfig:
    """The settings for label files whose values are the positions of classes."""
    return dataset.model_copy(update={"values": {}, "ignore": (IGNORED,) if dataset.ignore else ()})


def _write_log(path: Path, fixes: tuple[Fix, ...]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Fix))
        writer.writerows(map(astuple, fixes))


# ---- one file


def _mend(job: Job, source: Path, out: Path) -> list[Fix]:
    """Fix one file of the copy; a file that cannot be read or trusted is left as it is."""
    try:
        volume = read_volume(source / job.file)
    except DataError:
        return []
    odd = {oddity.code: oddity.found for oddity in volume.oddities}
    if "pixdim" in odd:  # the true spacing is not in the file
        return []
    header = None if volume.header is None else volume.header.copy()
    changes = [] if header is None else list(_mend_header(header, volume, odd))
    array = None
    if job.is_label and not job.is_part:
        array, more = _mend_values(volume, job.remap)
        changes += more
    if changes:
        rewrite(source / job.file, out / job.file, header, array)
    return [Fix(job.case, job.file, *change) for change in changes]


Change = tuple[str, str, str]
"""The kind of change, the old value and the new value."""


def _mend_header(header: Any, volume: Volume, odd: dict[str, str]) -> Iterator[Change]:
    """Correct a header in place, and yield the changes."""
    if "suffix" in odd:
        yield "suffix", odd["suffix"], "packed as its name says"
    if "header_size" in odd:
        yield "header_size", odd["header_size"], f"the true size, {int(header['sizeof_hdr'])} bytes"
    true = _behind_unit_sform(header) if odd.keys() & {"unit_sform", "spacing_disagrees"} else None
    unit = int(header["xyzt_units"]) & 7
    if unit in MILLIMETRES:
        _scale(header, MILLIMETRES[unit])
        if true is not None:
            true[:3] *= MILLIMETRES[unit]
        yield "unit", "metres" if unit == 1 else "micrometres", "millimetres"
    affine = volume.affine
    if true is not None:
        before = by(spacing_of(header.get_sform()))
        header.set_sform(true, int(header["sform_code"]))
        yield "sform", f"spacing {before} mm", f"spacing {by(spacing_of(true))} mm, {_origin(header)}"
        affine = true
    shear = replace(volume, affine=affine).shear
    if SHEAR < shear <= STRAIGHTENED:
        yield _straighten(header, affine, volume.shape, shear)


def _scale(header: Any, factor: float) -> None:
    """Convert every length in a header to millimetres."""
    header["xyzt_units"] = (int(header["xyzt_units"]) & ~7) | 2
    header["pixdim"][1:4] *= factor
    for name in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        header[name] = header[name] * factor


def _behind_unit_sform(header: Any) -> Affine | None:
    """The true affine of a header whose sform has voxels of 1 mm although pixdim says otherwise: the qform, or else the
    sform with the spacing of pixdim. None if the sform has another spacing."""
    sform = np.array(header.get_sform(), np.float64)
    if np.abs(np.array(spacing_of(sform)) - 1).max() > SPACING_TOLERANCE:
        return None
    if int(header["qform_code"]) > 0:
        try:
            return np.array(header.get_qform(), np.float64)
        except (ValueError, ArithmeticError):
            return None
    sform[:3, :3] *= np.abs(np.array(header["pixdim"][1:4], np.float64)) / np.array(spacing_of(sform))
    return sform


def _origin(header: Any) -> str:
    return "from the qform" if int(header["qform_code"]) > 0 else "from pixdim"


def _straighten(header: Any, affine: Affine, shape: tuple[int, int, int], shear: float) -> Change:
    """Set the nearest axes at right angles, keeping the middle of the volume in place."""
    spacing = np.array(spacing_of(affine))
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight = np.eye(4)
    straight[:3, :3] = left @ right * spacing
    middle = (np.array(shape) - 1) / 2
    straight[:3, 3] = affine[:3, 3] + (affine[:3, :3] - straight[:3, :3]) @ middle
    moved = corners_apart(shape, affine, straight)
    codes = int(header["sform_code"]), int(header["qform_code"])
    header.set_sform(straight, codes[0])
    near = moved + FORM_TOLERANCE * spacing.min()
    if codes[1] > 0 and corners_apart(shape, straight, header.get_qform()) <= near:
        header.set_qform(straight, codes[1])  # it differed only by the skew
    after = f"at right angles; no voxel moves by more than {moved:.3g} mm"
    return "sheared", f"cosine of {shear:.2g} between two voxel axes", after


def _mend_values(volume: Volume, remap: DatasetConfig | None) -> tuple[NDArray[Any] | None, list[Change]]:
    """The voxels of a label to write, or None if they stay as they are, and the changes."""
    if volume.array.ndim != 3 or (volume.array.dtype.kind == "f" and volume.scaling != (1.0, 0.0)):
        return None, []
    try:
        label = as_label(volume)
        mapped = label if remap is None else as_classes(label, remap)
    except DataError:
        return None, []
    changes: list[Change] = []
    narrow = mapped.array.astype(_type_of(mapped.array))
    if volume.array.dtype.kind == "f":
        changes.append(("float_label", str(volume.array.dtype), str(narrow.dtype)))
    if not np.array_equal(mapped.array, label.array):
        before, after = (", ".join(map(str, np.unique(each.array)[:20])) for each in (label, mapped))
        changes.append(("values", before, after))
    return (narrow, changes) if changes else (None, [])


def _type_of(array: NDArray[np.int32]) -> type[np.generic]:
    low, high = int(array.min()), int(array.max())
    if low >= 0 and high < 256:
        return np.uint8
    return np.int16 if low >= -(2**15) and high < 2**15 else np.int32
