"""Images and labels side by side: `a.nii.gz` with `a_label.nii.gz`, or `a/image.nrrd` with `a/label.nrrd`.

A file is a label if the last word of its name says so. Its image has the rest of the name, or is the only other volume
in the folder. Volumes lie in the source itself, or in a folder for each case or patient; a single folder with many
images is not a patient. An image with two labels becomes two cases, which `check` reports.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

from medssl.data.io import case_id
from medssl.data.layouts.base import (
    LABEL,
    Layout,
    Reader,
    case,
    refuse_labels_elsewhere,
    subfolders,
    volumes,
    volumes_below,
)
from medssl.data.layouts.description import declared


def fits(source: Path) -> bool:
    return bool(volumes(source)) or any(volumes(folder) for folder in subfolders(source))


def read(source: Path) -> Layout:
    folders = [folder for folder in subfolders(source) if volumes(folder)]
    refuse_labels_elsewhere(folders)
    found = [_read(source, alone=False), *(_read(folder, alone=True) for folder in folders)]
    cases = [case for layout in found for case in layout.cases]
    if len(folders) == 1:
        cases = [replace(case, subject=case.id) for case in cases]
    return Layout(
        cases=tuple(cases),
        labels_without_image=tuple(label for layout in found for label in layout.labels_without_image),
        others=tuple(
            path for folder in subfolders(source) for inner in subfolders(folder) for path in volumes_below(inner)
        ),
    )


def _read(folder: Path, alone: bool) -> Layout:
    """Return the cases of one folder; `alone`: it is the folder of a patient, perhaps with one case only."""
    files = [(path, LABEL.fullmatch(case_id(path))) for path in volumes(folder)]
    images = [path for path, match in files if not match]
    labels: dict[str, list[Path]] = {}
    for path, match in files:
        if match:
            labels.setdefault(match[1] or "", []).append(path)
    if alone and len(images) == 1 and len(labels) <= 1:
        return Layout(tuple(case(folder.name, images, label) for label in next(iter(labels.values()), [None])))
    cases = []
    for image in images:
        id = f"{folder.name}_{case_id(image)}" if alone else case_id(image)
        own = labels.pop(case_id(image), [None])
        cases += [case(id, [image], label, folder.name if alone else "") for label in own]
    return Layout(tuple(cases), labels_without_image=tuple(chain(*labels.values())))


READER = Reader("pairs", "volumes with labels beside them, such as a.nii.gz and a_label.nii.gz", fits, read, declared)
