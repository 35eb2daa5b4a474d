"""DICOM as an archive exports it: a folder for each patient, with series inside, perhaps by study.

A folder with slices directly inside is a case. It is named after the folder of its patient, or after all folders from
there on if the patient has several series. The folders at the top are the patients. If all lie in a single folder such
as `DICOM/` and their headers name several patients, the folders inside it are the patients. If headers name several
patients, folders of the same patient, such as studies, count for the first of them. A series of one slice beside others
of its patient is a scout, not a case. A folder with several series cannot be read as it is: name one series in a
datalist, as `folder#uid`. Labels may lie in `labels/`, as volumes with the names of their cases.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medssl.data.dicom import first_image, is_one_slice, patient_of
from medssl.data.io import is_volume
from medssl.data.layouts.base import Layout, Reader, paired, subfolder, unreadable, volumes
from medssl.data.layouts.description import declared
from medssl.errors import DataError

LABELS = "labels"


def fits(source: Path) -> bool:
    return next(series_folders(source), None) is not None


def read(source: Path) -> Layout:
    searched = list(_searched(source))
    owners = {folder: _patient_of(image) for folder, image, _ in searched if image is not None}
    top, same = _patients_folder(source, owners)
    is_one = len({*owners.values()}) == 1 and "" not in owners.values()
    scouts = _scouts(list(owners), None if is_one else top)
    images = [folder for folder in owners if folder not in scouts]
    folders = [folder.relative_to(top).parts for folder in images]
    patients = Counter(parts[0] for parts in folders if parts)
    ids = [source.name if not parts else parts[0] if patients[parts[0]] == 1 else "_".join(parts) for parts in folders]
    subjects = {id: same.get(parts[0], parts[0]) for id, parts in zip(ids, folders, strict=True) if parts}
    layout = paired(
        [(id, (folder,)) for id, folder in zip(ids, images, strict=True)], volumes(subfolder(source, LABELS))
    )
    cases = tuple(replace(c, subject=subjects.get(c.id, c.id)) for c in layout.cases)
    return replace(
        layout, cases=cases, scouts=tuple(scouts),
        others=tuple(path for _, _, files in searched for path in files if is_volume(path)),
    )  # fmt: skip


def _scouts(folders: Sequence[Path], top: Path | None) -> list[Path]:
    """Series of one slice whose patient has others; `top` holds the patients, None if there is only one."""
    by_patient: dict[str, list[Path]] = {}
    for folder in folders:
        if folder != top:
            by_patient.setdefault("" if top is None else folder.relative_to(top).parts[0], []).append(folder)
    found: list[Path] = []
    for own in by_patient.values():
        thin = [folder for folder in own if is_one_slice(folder)] if len(own) > 1 else []
        found += thin if len(thin) < len(own) else []
    return found


def _patients_folder(source: Path, owners: Mapping[Path, str]) -> tuple[Path, dict[str, str]]:
    """Find the folder whose subfolders are the patients, and which of these belong to the same patient.

    Args:
        owners: the folders of series, with their PatientID.

    Returns:
        That folder, and for each subfolder the first one with the same PatientID, which may be itself.
    """
    folders, top = list(owners), source
    while len(folders) > 1 and len({folder.relative_to(top).parts[:1] for folder in folders}) == 1:
        only = top / folders[0].relative_to(top).parts[0]
        if only in owners:  # slices beside its subfolders: the folder of one patient
            break
        top = only
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for folder, patient in owners.items():
        if folder != top and patient:
            inside = folder.relative_to(top).parts[0]
            same.setdefault(inside, first.setdefault(patient, inside))
    return (top, same) if len(first) > 1 else (source, {})


def _patient_of(image: Path) -> str:
    try:
        return patient_of(image)
    except DataError:
        return ""  # the check of the case reports it


def series_folders(source: Path) -> Iterator[Path]:
    """Return all folders with DICOM slices directly inside, sorted by name; the source itself may be one."""
    return (folder for folder, image, _ in _searched(source) if image is not None)


def _searched(source: Path) -> Iterator[tuple[Path, Path | None, list[Path]]]:
    """The source and all folders below, sorted, without hidden ones and its labels: each with its first DICOM image, or
    None, and its files."""
    labels = subfolder(source, LABELS).name
    for name, inside, files in os.walk(source, onerror=unreadable):
        folder = Path(name)
        inside[:] = sorted(one for one in inside if not one.startswith(".") and (folder != source or one != labels))
        paths = [folder / file for file in sorted(files) if not file.startswith(".")]
        is_of_labels = LABELS in (part.lower() for part in folder.relative_to(source).parts)
        yield folder, None if is_of_labels else first_image(path for path in paths if path.is_file()), paths


READER = Reader("dicom", "folders with DICOM slices (.dcm, or without a suffix)", fits, read, declared)
