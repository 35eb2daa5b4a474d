"""The parts of every layout: how it is recognised, how its cases are listed, and what it declares.

No volume is read here; the names of files and folders are enough.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from medssl.config import parse
from medssl.data.cases import Case, DatasetConfig
from medssl.data.io import case_id, is_volume, label_id, list_volumes
from medssl.data.itk import VOXEL_FILES
from medssl.data.volume import Oddity, Source
from medssl.errors import DataError

OF_THE_DISK = ("lost+found", "System Volume Information", "$RECYCLE.BIN")
"""Folders of the file system itself, which users cannot read."""
CHANNEL = re.compile(r"(.+)_(\d{4})")
"""Matches the name of a file with one channel: its case and its number."""
LABEL = re.compile(r"(?:(.*)[-_. ])?(?:labels?|labelmap|gt|seg|segmentation|mask)", re.IGNORECASE)
"""Matches the name of a label file, and what it is the label of if the name says so."""
_LABELS = re.compile(
    r"(?:.*[-_. ])?(?:labels?|labelmaps?|gt|segs?|segmentations?|masks?|annotations?|ground[-_. ]?truth)", re.IGNORECASE
)
"""Matches names of folders that hold labels."""


@dataclass(frozen=True)
class Layout:
    """The cases of a dataset, with its faults: an id may occur twice, a label may lack its image."""

    cases: tuple[Case, ...]
    labels_without_image: tuple[Path, ...] = ()
    unlisted_labels: tuple[Path, ...] = ()
    """Labels of existing images that `dataset.json` does not list; their cases count as unlabelled."""
    absent_labels: tuple[tuple[str, Path], ...] = ()
    """Case ids and label files that `dataset.json` lists and that do not exist; these cases count as unlabelled too."""
    others: tuple[Path, ...] = ()
    """Files and folders among the images and labels that are not volumes in a known format, and volumes elsewhere."""
    scouts: tuple[Path, ...] = ()
    """DICOM folders with one slice, left out because the patient has other series."""
    names_patients: bool = False
    """Whether the layout itself gives the patient of each case; the rule in a configuration is then not used."""
    name: str = ""
    """Its name in `LAYOUTS`."""
    contradictions: tuple[Oddity, ...] = ()
    """Where the dataset declares other channels or classes than the configuration."""


@dataclass(frozen=True)
class Declared:
    """What a dataset declares itself; the fields are those of `DatasetConfig`."""

    channels: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    values: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def config(self, name: str) -> DatasetConfig | None:
        """Return the declaration as a `data` section; None if it names no classes.

        Raises:
            ConfigError: it is not a valid `data` section.
        """
        if self.classes is None:
            return None
        section = asdict(self) | {"name": name, "channels": self.channels or ("image",)}
        return parse(DatasetConfig, section, where=name)


def nothing_declared(source: Path) -> Declared:
    """Return an empty declaration, for layouts in which no file names the classes."""
    return Declared()


@dataclass(frozen=True)
class Reader:
    """One layout: an entry of `LAYOUTS`."""

    name: str
    looks_for: str
    """How the layout is recognised, in a few words, for error messages."""
    fits: Callable[[Path], bool]
    """Whether an existing file or folder looks like this layout; must always be quick."""
    read: Callable[[Path], Layout]
    """Return the cases; none if the layout does not fit."""
    declared: Callable[[Path], Declared] = nothing_declared
    read_channels: Callable[[Path, Sequence[str]], Layout] | None = None
    """As `read`, for layouts in which the files of channels are found by name and not by order."""


def volumes(folder: Path) -> list[Path]:
    """Return the volume files directly inside a folder; none if there is no such folder."""
    return list_volumes(folder) if folder.is_dir() else []


def subfolders(folder: Path) -> list[Path]:
    """Return the subfolders by name, without hidden ones and OF_THE_DISK; none if there is no such folder."""
    if not folder.is_dir():
        return []
    seen = (path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in OF_THE_DISK)
    return sorted(path for path in seen if path.is_dir())


def subfolder(folder: Path, name: str) -> Path:
    """Return the subfolder of this name (lower case), or else one whose name differs only in capital letters."""
    found = [path for path in subfolders(folder) if path.name.lower() == name]
    return folder / name if not found or folder / name in found else found[0]


def is_named_as_labels(folder: Path) -> bool:
    """Whether the name of a folder says that it holds labels."""
    return _LABELS.fullmatch(folder.name) is not None


def refuse_labels_elsewhere(folders: Sequence[Path]) -> None:
    """Stop if a folder is named like labels and all its volumes are named like those of another one.

    Raises:
        DataError: its labels would be read as images, or not at all.
    """
    names = {folder: {label_id(path) for path in volumes(folder)} for folder in folders}
    for images in folders:
        stems = names[images] | {_stem(path) for path in volumes(images)}
        for labels in folders:
            if is_named_as_labels(labels) and not is_named_as_labels(images) and set() < names[labels] <= stems:
                raise DataError(
                    f"{labels}: looks like the labels of {images.name}/, whose files have the same names, but is not "
                    "read as labels\n  Rename the two folders to labels/ and images/, or list the files of each case "
                    "in a datalist (docs/data.md, Datalists)."
                )


def unreadable(error: OSError) -> None:
    """Raise a DataError for a folder without read permission; the `onerror` of `os.walk`, which would skip it."""
    if isinstance(error, PermissionError) and Path(error.filename).name not in OF_THE_DISK:
        raise DataError(
            f"{error.filename}: cannot be searched ({error.strerror}) and may hold cases; make it readable, or move it "
            "out of the dataset"
        )


def volumes_below(folder: Path, without: Collection[Path] = ()) -> tuple[Path, ...]:
    """Return the volumes in a folder and all folders below, except hidden ones and those in `without`."""
    found: list[Path] = []
    for inner, inside, _ in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith(".") and Path(inner, name) not in without)
        found += volumes(Path(inner))
    return tuple(found)


def others(folders: Iterable[Path], used: Iterable[Path] = ()) -> tuple[Path, ...]:
    """Return what lies in the folders except volumes, `used`, hidden files and the voxel files of headers."""
    used = set(used)
    return tuple(
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if not is_volume(path)
        and path not in used
        and not path.name.startswith(".")
        and path.suffix.lower() not in VOXEL_FILES
    )


def single_files(images: Iterable[Path]) -> list[tuple[str, tuple[Path, ...]]]:
    """Return each file as a case of its own, named after the file."""
    return [(case_id(image), (image,)) for image in images]


def channel_files(images: Iterable[Path]) -> list[tuple[str, tuple[Path, ...]]]:
    """Group files of one channel each into cases, by `_0000`, `_0001` and so on at the end of their names.

    A file without such a number is a case of its own.

    Raises:
        DataError: a list of all cases whose numbers do not run from `_0000` without a gap.
    """
    cases: dict[str, list[Path]] = {}
    faults = []
    for image in sorted(images, key=case_id):
        cases.setdefault(_stem(image), []).append(image)
    for id, files in cases.items():
        numbers = [int(match[2]) for file in files if (match := CHANNEL.fullmatch(case_id(file)))]
        if numbers and numbers != list(range(len(files))):
            faults.append(f"  {id}  {', '.join(file.name for file in files)}")
    if faults:
        where = next(iter(cases.values()))[0].parent
        raise DataError(
            f"{where}: a case needs one file for each channel, numbered _0000, _0001 and so on. Correct these:\n"
            + "\n".join(faults)
        )
    return [(id, tuple(files)) for id, files in cases.items()]


def are_channels(images: Sequence[Path], labels: Sequence[Path]) -> bool:
    """Whether numbers such as `_0001` at the end of names count channels rather than cases.

    They do if the names of labels lack them. Without labels, they do if there are several cases and all of them have
    the same numbers, from `_0000` on.
    """
    if not images or not all(CHANNEL.fullmatch(case_id(image)) for image in images):
        return False
    stems = {_stem(image) for image in images}
    if labels:
        named = {label_id(label) for label in labels}
        return bool(named & stems) and not named & {case_id(image) for image in images}
    found = {stem: [case_id(image)[-4:] for image in images if _stem(image) == stem] for stem in stems}
    each = {tuple(sorted(numbers)) for numbers in found.values()}
    return len(stems) > 1 and each == {tuple(f"{n:04}" for n in range(len(images) // len(stems)))}


def paired(images: Iterable[tuple[str, tuple[Path, ...]]], labels: Sequence[Path]) -> Layout:
    """Pair images and labels by id; an id with two files becomes two cases, which `check` reports."""
    images = list(images)
    by_id: dict[str, list[Path | None]] = {}
    for label in labels:
        by_id.setdefault(label_id(label), []).append(label)
    ids = {id for id, _ in images}
    return Layout(
        cases=tuple(case(id, files, label) for id, files in images for label in by_id.get(id) or [None]),
        labels_without_image=tuple(label for label in labels if label_id(label) not in ids),
    )


def case(
    id: str, images: Iterable[Path | Source], label: Path | Source | None, subject: str = "", part: str | None = None
) -> Case:
    """Return a case from files or parts of files; without `subject` it is its own patient."""
    return Case(
        id, subject or id, tuple(_source(image) for image in images), None if label is None else _source(label), part
    )


def _source(place: Path | Source) -> Source:
    return place if isinstance(place, Source) else Source(place)


def _stem(image: Path) -> str:
    match = CHANNEL.fullmatch(case_id(image))
    return match[1] if match else case_id(image)
