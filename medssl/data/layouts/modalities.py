"""A folder for each case with a file for each modality: `P1/P1-t1.nii.gz` and `P1/P1-flair.nii.gz`, as BraTS has it.

What is left of a file's name without that of its folder is the modality, or calls the file a label. The modalities are
the channels of a case, in the order of the alphabet; what less than half of the cases have is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medssl.data.cases import Case
from medssl.data.io import case_id
from medssl.data.layouts import description
from medssl.data.layouts.base import Declared, Layout, Reader, case, others, subfolders, volumes
from medssl.errors import DataError
from medssl.words import some

_LABEL = re.compile(r"(?:labels?|labelmap|gt|segs?|segmentation|mask)", re.IGNORECASE)
_KNOWN = re.compile(
    r"(?:t1|t2)(?:[-_]?(?:w|n|c|ce|gd|post|wce|f|flair|map))?|flair|pd|dwi|adc|swi|cbv|cbf|ct|cta|ctp|pet"
)
"""Modalities by which folders without labels are known."""


@dataclass(frozen=True)
class _Folder:
    """The files of a case."""

    path: Path
    images: dict[str, Path]
    """By modality, in small letters."""
    labels: tuple[Path, ...]


def fits(source: Path) -> bool:
    """Whether most folders have the same two modalities or more, and a label of no other name, or known modalities."""
    folders = _folders(source)
    words = _words(folders)
    return len(words) > 1 and (any(folder.labels for folder in folders) or all(map(_KNOWN.fullmatch, words)))


def read(source: Path) -> Layout:
    folders = _folders(source)
    words = _words(folders)
    faults = [f"  {folder.path.name} lacks {some(lacking)}" for folder in folders
              if (lacking := [word for word in words if word not in folder.images])]  # fmt: skip
    if faults:
        title = f"{source}: {len(faults)} of {len(folders)} cases lack a file of a modality that others have"
        raise DataError("\n".join([title, *faults, "Add these files, or leave these cases out with a datalist."]))
    unread = [file for folder in folders for word, file in folder.images.items() if word not in words]
    return Layout(
        tuple(found for folder in folders for found in _cases(folder, words)),
        others=(*unread, *others(folder.path for folder in folders)),
    )


def declared(source: Path) -> Declared:
    """The modalities, and what a `dataset.json` says of the classes."""
    return replace(description.declared(source), channels=_words(_folders(source)) or None)


def _cases(folder: _Folder, words: Sequence[str]) -> list[Case]:
    images = [folder.images[word] for word in words]
    return [case(folder.path.name, images, label) for label in folder.labels or (None,)]


def _words(folders: Sequence[_Folder]) -> tuple[str, ...]:
    """The modalities that more than half of the cases have."""
    counts = Counter(word for folder in folders for word in folder.images)
    return tuple(sorted(word for word, count in counts.items() if 2 * count > len(folders)))


def _folders(source: Path) -> list[_Folder]:
    """Those with volumes, up to two folders down: `HGG/P01` as well."""
    outer = subfolders(source)
    inner = [path for folder in outer if not volumes(folder) for path in subfolders(folder)]
    return [_folder(path, files) for path in (*outer, *inner) if (files := volumes(path))]


def _folder(path: Path, files: Sequence[Path]) -> _Folder:
    words = {file: _word(case_id(file), path.name) for file in files}
    return _Folder(path, {word.lower(): file for file, word in words.items() if not _LABEL.fullmatch(word)},
                   tuple(file for file, word in words.items() if _LABEL.fullmatch(word)))  # fmt: skip


def _word(name: str, folder: str) -> str:
    """What the name of a file says beside that of its folder."""
    rest = name[len(folder) :] if name.lower().startswith(folder.lower()) else name
    return rest.lstrip("-_. ") or name


READER = Reader("modalities", "folders with a file for each modality, such as P01/t1.nii.gz and P01/flair.nii.gz",
                fits, read, declared)  # fmt: skip
