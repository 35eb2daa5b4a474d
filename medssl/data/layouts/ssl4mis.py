"""The HDF5 files of UA-MT, SSL4MIS and the repositories derived from them, with their lists of names.

A file holds the data sets `image` and, if annotated, `label`; see `medssl.data.hdf5`. The case is named after the file,
or after its folder in UA-MT's left atrium (`CASE/mri_norm2.h5`). `train.list`, `val.list`, `test.list` and the like
give the part of a case. Slices (`..._slice_1.h5`) and their lists are left out, because the volumes contain them.
A file does not give the order of its axes. They are x, y, z in UA-MT's `mri_norm2.h5`, with voxels of 0.625 mm as
published by the challenge, and z, y, x in all others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from medssl.data.cases import Case
from medssl.data.hdf5 import SUFFIXES, has_label
from medssl.data.layouts.base import Layout, Reader, case
from medssl.data.volume import Source
from medssl.errors import DataError

PARTS = {
    r"train": "train",
    r"(train[-_]?)?(lab|labeled|labelled)([-_]?\d.*)?": "labelled",
    r"(train[-_]?)?un(lab|labeled|labelled)([-_]?\d.*)?": "unlabelled",
    r"val|eval|validation": "val",
    r"test": "test",
}
"""Names of lists without their suffix (regular expressions), and the part that they list."""
LISTS = (".list", ".txt")
UAMT = "mri_norm2"
"""Name of the files of UA-MT, one in the folder of each case."""
FRAME = re.compile(r"(patient\d+)_frame\d+")
"""Ids of ACDC in this form, which begin with the patient."""


def fits(source: Path) -> bool:
    return next(_files(source), None) is not None


def read(source: Path) -> Layout:
    files: dict[str, list[Path]] = {}
    for path in _files(source):
        files.setdefault(_id(path), []).append(path)
    parts = _parts(source)
    ids = dict.fromkeys([*parts, *files])
    cases = [_case(id, path, parts.get(id)) for id in ids for path in files.get(id, [source / f"{id}.h5"])]
    return Layout(tuple(cases))


def _case(id: str, path: Path, part: str | None) -> Case:
    """Return a case; a listed file that does not exist is still a case, which `check` reports."""
    grid = "xyz@0.625" if path.stem == UAMT else "zyx"
    label = Source(path, f"label@{grid}") if path.is_file() and has_label(path) else None
    patient = FRAME.fullmatch(id)
    return case(id, [Source(path, f"image@{grid}")], label, patient[1] if patient else "", part)


def _files(source: Path) -> Iterator[Path]:
    """Volumes in the source or up to two folders below."""
    for depth in ("*", "*/*", "*/*/*"):
        for path in sorted(source.glob(depth)):
            if path.suffix.lower() in SUFFIXES and "slice" not in path.stem and path.parent.name != "slices":
                yield path


def _id(path: Path) -> str:
    return path.parent.name if path.stem == UAMT else path.stem


def _parts(source: Path) -> dict[str, str]:
    """Return the part of each listed case, in the order of the lists.

    Raises:
        DataError: a list cannot be read, or lists put a case into two parts.
    """
    found: dict[str, tuple[str, Path]] = {}
    for path in _lists(source):
        part = next(part for name, part in PARTS.items() if re.fullmatch(name, path.stem.lower()))
        for id in _names(path):
            before, other = found.get(id, (part, path))
            if before != part and (before, part) not in (("train", "labelled"), ("train", "unlabelled")):
                raise DataError(f"{path}: lists {id} for {part}, and {other} lists it for {before}; keep one of them")
            found[id] = (part, path)
    return {id: part for id, (part, _) in found.items()}


def _lists(source: Path) -> list[Path]:
    """Lists in the source or one folder below; `train` comes first, because others divide it."""
    paths = [path for depth in ("*", "*/*") for path in sorted(source.glob(depth)) if path.suffix.lower() in LISTS]
    known = [path for path in paths if any(re.fullmatch(name, path.stem.lower()) for name in PARTS)]
    return sorted(known, key=lambda path: path.stem.lower() != "train")


def _names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list cannot be read: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    return [Path(name).stem if name.lower().endswith(SUFFIXES) else name for name in names]


READER = Reader("ssl4mis", "HDF5 volumes (.h5), with train.list and test.list", fits, read)
