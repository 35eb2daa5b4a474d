"""DICOM as an archive exports it: series in folders, a patient's under one folder, perhaps by study and series.

A folder with slices directly inside is a case, named after the patient's folder, or after all folders from there on
where that patient has several. Patients' folders are those at the top, or, where all lie in a single folder such as
`DICOM/` and their headers name several patients, those inside it; several of one patient, such as its studies, then
have the first one's name as their patient. A folder with several series cannot be read as it is: name the wanted one in
a datalist, as `folder#uid`. Labels may lie in `labels/`, as volumes that are named as their cases.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from medssl.data.dicom import is_series_folder, patient_of
from medssl.data.layouts.base import Layout, Reader, paired, subfolder, volumes, volumes_below
from medssl.data.layouts.description import declared
from medssl.errors import DataError

LABELS = "labels"


def fits(source: Path) -> bool:
    return next(series_folders(source), None) is not None


def read(source: Path) -> Layout:
    top, same = _patients_folder(source)
    folders = [folder.relative_to(top).parts for folder in series_folders(source)]
    patients = Counter(parts[0] for parts in folders if parts)
    ids = [source.name if not parts else parts[0] if patients[parts[0]] == 1 else "_".join(parts) for parts in folders]
    images = [(id, (top.joinpath(*parts),)) for id, parts in zip(ids, folders, strict=True)]
    subjects = {id: same.get(parts[0], parts[0]) for id, parts in zip(ids, folders, strict=True) if parts}
    labels = subfolder(source, LABELS)
    layout = paired(images, volumes(labels))
    cases = tuple(replace(c, subject=subjects.get(c.id, c.id)) for c in layout.cases)
    return replace(layout, cases=cases, others=volumes_below(source, without=(labels,)))


def _patients_folder(source: Path) -> tuple[Path, dict[str, str]]:
    """The folder whose folders are patients; headers are asked only where all lie in a single one.

    Returns:
        It, and of a folder inside that is of an earlier one's patient, such as another study, that one.
    """
    folders, top = list(series_folders(source)), source
    while len(folders) > 1 and len({folder.relative_to(top).parts[:1] for folder in folders}) == 1:
        top = top / folders[0].relative_to(top).parts[0]
    if top == source:
        return source, {}
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for folder in folders:
        if patient := _patient_of(folder):
            inside = folder.relative_to(top).parts[0]
            same.setdefault(inside, first.setdefault(patient, inside))
    return (top, same) if len(first) > 1 else (source, {})


def _patient_of(folder: Path) -> str:
    try:
        return patient_of(folder)
    except DataError:
        return ""  # the check of the case will tell


def series_folders(source: Path) -> Iterator[Path]:
    """All folders with DICOM slices directly inside, the source itself included, by name."""
    if not source.is_dir():
        return
    for folder, inside, files in os.walk(source):
        inside[:] = sorted(name for name in inside if not name.startswith(".") and name.lower() != LABELS)
        if files and is_series_folder(Path(folder)):
            yield Path(folder)


READER = Reader("dicom", "folders with DICOM slices (.dcm, or without a suffix)", fits, read, declared)
