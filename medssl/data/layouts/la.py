"""The 2018 left atrium challenge as published: a folder for each scan with `lgemri.nrrd` and `laendo.nrrd`.

The folders may lie in others, such as `Training Set/` and `Testing Set/`. Labels hold 0 and 255. The cropped HDF5 files
of UA-MT have a layout of their own: ssl4mis.
"""

from __future__ import annotations

from pathlib import Path

from medssl.data.layouts.base import Declared, Layout, Reader, case

IMAGE = "lgemri.nrrd"
LABEL = "laendo.nrrd"


def fits(source: Path) -> bool:
    return bool(_folders(source, IMAGE))


def read(source: Path) -> Layout:
    folders = _folders(source, IMAGE)
    cases = [
        case(
            folder.name,
            [folder / IMAGE],
            folder / LABEL if (folder / LABEL).is_file() else None,
            part="test" if folder.parent.name.lower().startswith("test") else None,
        )
        for folder in folders
    ]
    spare = [folder / LABEL for folder in _folders(source, LABEL) if folder not in folders]
    return Layout(tuple(cases), labels_without_image=tuple(spare))


def declared(source: Path) -> Declared:
    return Declared(("MRI",), ("background", "left atrium"), {"left atrium": (255,)})


def _folders(source: Path, name: str) -> list[Path]:
    return [path.parent for depth in ("*", "*/*") for path in sorted(source.glob(f"{depth}/{name}"))]


READER = Reader("la", "CASE/lgemri.nrrd and CASE/laendo.nrrd", fits, read, declared)
