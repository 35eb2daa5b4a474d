"""A folder for each case with a file for each modality: `P1/P1-t1.nii.gz` and `P1/P1-flair.nii.gz`, as BraTS has it.

The file name without the name of its folder is the modality, or says that the file is the label of the case. The
channels are the modalities that more than half of the cases have, in alphabetical order. A configuration selects them
by name, in its own order, and may leave some out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from medssl.data.cases import Case
from medssl.data.io import case_id, label_id
from medssl.data.layouts import description
from medssl.data.layouts.base import LABEL, Declared, Layout, Reader, case, others, subfolders, volumes
from medssl.errors import ConfigError, DataError

_KNOWN = re.compile(r"t[12](?:[-_]?(?:w|n|c|ce|gd|post|wce|f|flair|map))?|flair|pd|dwi|adc|swi|cbv|cbf|ct|cta|ctp|pet")
"""Modalities by which folders without labels are recognised."""


@dataclass(frozen=True)
class _Folder:
    """The files of a case."""

    path: Path
    images: dict[str, list[Path]]
    """By modality, in lower case."""
    labels: tuple[Path, ...]
    of_others: dict[str, list[Path]]
    """Labels by what their names add, such as `t1` or `tumour`."""


def fits(source: Path) -> bool:
    """Whether most folders share at least two modalities, which are known ones or lie beside a label.

    The layout does not fit if a modality has a label of its own.
    """
    if volumes(source):
        return False
    folders = _folders(source)
    words = _words(folders)
    if len(words) < 2 or any(word.isdecimal() for word in words):
        return False
    if any(folder.images.keys() & folder.of_others.keys() for folder in folders):
        return False
    return all(map(_KNOWN.fullmatch, words)) or (len(folders) > 1 and any(folder.labels for folder in folders))


def read(source: Path) -> Layout:
    folders = _folders(source)
    return _layout(source, folders, _words(folders))


def read_channels(source: Path, channels: Sequence[str]) -> Layout:
    """As `read`, with the modalities of these names as the channels, in this order.

    Raises:
        ConfigError: a modality that at most half of the cases have is named.
    """
    folders = _folders(source)
    wanted, there = [name.lower() for name in channels], _words(folders)
    if there and not set(wanted) <= set(there):
        raise ConfigError(f"{source}: data.channels names {', '.join(channels)}, but the files of cases are named "
                          f"{', '.join(there)}; set data.channels to the modalities to use")  # fmt: skip
    return _layout(source, folders, wanted)


def cases_in(folder: Path, channels: Sequence[str]) -> list[Case]:
    """Return the cases in a folder, or the folder itself as a case, by modality names; none if none has them.

    Labels are ignored. With a single channel, a folder is not recognised as a case itself.

    Raises:
        DataError: a case lacks a modality.
    """
    wanted = [name.lower() for name in channels]
    if files := volumes(folder):
        alone = _folder(folder, files)
        meant = [alone] if len(wanted) > 1 and set(wanted) <= alone.images.keys() else []
    else:
        meant = [one for one in _folders(folder) if set(wanted) & one.images.keys()]
    return list(_layout(folder, [replace(one, labels=()) for one in meant], wanted).cases)


def declared(source: Path) -> Declared:
    """Return the modalities, and the classes that a `dataset.json` declares."""
    return replace(description.declared(source), channels=_words(_folders(source)) or None)


def _layout(source: Path, folders: Sequence[_Folder], words: Sequence[str]) -> Layout:
    """Return the cases with these modalities.

    Raises:
        DataError: a case lacks a modality, or has two files of one.
    """
    faults = [f"  {folder.path}: {fault}" for folder in folders for fault in _faults(folder, words)]
    if faults:
        title = f"{source}: each case needs one file of each modality ({', '.join(words)})"
        raise DataError("\n".join([title, *faults, "Correct these folders, or list the files in a datalist."]))
    cases = [found for folder in folders for found in _cases(folder, words)] if words else []
    known = {*words, *_words(folders)}
    lone: list[Path] = []
    unread: list[Path] = []
    for folder in folders:
        unread += chain(*(files for word, files in folder.images.items() if word not in known))
        (unread if folder.labels else lone).extend(chain(*folder.of_others.values()))
    return Layout(tuple(cases), tuple(lone), others=(*unread, *others(folder.path for folder in folders)))


def _faults(folder: _Folder, words: Sequence[str]) -> list[str]:
    files = {word: folder.images.get(word, []) for word in words}
    lacking = [f"no file of {word}" for word, found in files.items() if not found]
    twice = [(word, [file.name for file in found]) for word, found in files.items() if len(found) > 1]
    return lacking + [f"{' and '.join(names)} are both of {word}" for word, names in twice]


def _cases(folder: _Folder, words: Sequence[str]) -> list[Case]:
    images = [folder.images[word][0] for word in words]
    return [case(folder.path.name, images, label) for label in folder.labels or (None,)]


def _words(folders: Sequence[_Folder]) -> tuple[str, ...]:
    """The modalities that more than half of the cases have."""
    counts = Counter(word for folder in folders for word in folder.images)
    return tuple(sorted(word for word, count in counts.items() if 2 * count > len(folders)))


def _folders(source: Path) -> list[_Folder]:
    """Folders with volumes, at most two levels down, such as `HGG/P1`."""
    outer = {path: volumes(path) for path in subfolders(source)}
    inner = {path: volumes(path) for folder, files in outer.items() if not files for path in subfolders(folder)}
    return [_folder(path, files) for path, files in (outer | inner).items() if files]


def _folder(path: Path, files: Sequence[Path]) -> _Folder:
    images: dict[str, list[Path]] = {}
    of_others: dict[str, list[Path]] = {}
    labels, path = [], path.absolute()  # `.` has no name
    named = "|".join(re.escape(one.name) for one in (path, path.resolve()))  # a link has its own name
    name = re.compile(rf"(?:(?:{named})[-_. ]+)?(.+)", re.IGNORECASE)
    for file in files:
        word = name.sub(r"\1", case_id(file))
        label = LABEL.fullmatch(word)
        if (own := label_id(file)) != case_id(file):  # Segmentation.seg.nrrd, as Slicer calls it
            label = LABEL.fullmatch(name.sub(r"\1", own)) or label
        if label is None:
            images.setdefault(word.lower(), []).append(file)
        elif label[1] is None:
            labels.append(file)
        else:
            of_others.setdefault(label[1].lower(), []).append(file)
    return _Folder(path, images, tuple(labels), of_others)


READER = Reader("modalities", "folders with a file for each modality, such as P1/t1.nii.gz and P1/flair.nii.gz",
                fits, read, declared, read_channels)  # fmt: skip
