"""The Automated Cardiac Diagnosis Challenge as published: a folder for each patient, also in `training/`, `testing/`.

`patientNNN/Info.cfg` gives the number of frames. `patientNNN_frameMM.nii.gz` are the annotated frames, with
`patientNNN_frameMM_gt.nii.gz` beside them. All other frames of `patientNNN_4d.nii.gz`, the whole heartbeat, are
unlabelled cases, also named `patientNNN_frameMM`. Frame numbers in names start at 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from medssl.data.cases import Case
from medssl.data.io import case_id
from medssl.data.layouts.base import Declared, Layout, Reader, case, volumes
from medssl.data.volume import Source
from medssl.errors import DataError

INFO = "Info.cfg"
LABEL = "_gt"
CINE = "_4d"


def fits(source: Path) -> bool:
    return any(_patients(source))


def read(source: Path) -> Layout:
    cases, spare = [], []
    for patient in _patients(source):
        files = {case_id(path): path for path in volumes(patient)}
        part = "test" if patient.parent.name.lower() == "testing" else None
        images = {id: path for id, path in files.items() if not id.endswith((LABEL, CINE))}
        for id, path in images.items():
            cases.append(case(id, [path], files.get(id + LABEL), patient.name, part))
        for id, cine in files.items():
            if id.endswith(CINE):
                cases += [extra for extra in _frames(patient, cine, part) if extra.id not in images]
        spare += [files[id] for id in files if id.endswith(LABEL) and id.removesuffix(LABEL) not in images]
    return Layout(tuple(cases), labels_without_image=tuple(spare), names_patients=True)


def declared(source: Path) -> Declared:
    return Declared(("MRI",), ("background", "right ventricle", "myocardium", "left ventricle"))


def _patients(source: Path) -> Iterator[Path]:
    """Folders with an `Info.cfg`, at most three levels down, such as `database/training/patient001`."""
    for depth in ("*", "*/*", "*/*/*"):
        yield from sorted(info.parent for info in source.glob(f"{depth}/{INFO}"))


def _frames(patient: Path, cine: Path, part: str | None) -> Iterator[Case]:
    try:
        text = (patient / INFO).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{patient / INFO}: cannot be read: {error}") from None
    found = re.search(r"^\s*NbFrame\s*:\s*(\d+)\s*$", text, re.MULTILINE)
    if found is None:
        raise DataError(f"{patient / INFO}: expected a line such as `NbFrame: 30`, found {text.split()!r}")
    stem = case_id(cine).removesuffix(CINE)
    for frame in range(int(found[1])):
        yield case(f"{stem}_frame{frame + 1:02}", [Source(cine, str(frame))], None, patient.name, part)


READER = Reader("acdc", "patientNNN/Info.cfg with patientNNN_frameMM.nii.gz", fits, read, declared)
