"""Resolve names in lists to case ids: names of cases, patients, slices, or frames by their order."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from medssl.data.hdf5 import SUFFIXES as H5_SUFFIXES
from medssl.data.io import SUFFIXES
from medssl.data.prepared import PreparedDataset
from medssl.errors import ConfigError
from medssl.words import some

FRAME = re.compile(r"(.+)_frame(\d+)")
"""A patient and the number of a frame, as in `patient001_frame12`."""
SLICE = re.compile(r"(.+)_slice_?\d+")
"""A case and the number of a slice, as in `patient001_frame12_slice_3`."""
ENDING = re.compile(f"({'|'.join(map(re.escape, (*SUFFIXES, *H5_SUFFIXES, '.npy', '.npz')))})$", re.IGNORECASE)
"""Suffixes that lists may add to an id."""
SHOWN = 10
"""Number of unknown names that an error message lists."""
PartT = TypeVar("PartT", bound=str)


def read_id_list(path: Path) -> list[str]:
    """Read ids of cases, patients or slices from a text file, one per line; a suffix such as .h5 is dropped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the list cannot be read: {error}") from None
    return [ENDING.sub("", line.strip()) for line in lines if line.strip()]


def resolve_names(
    dataset: PreparedDataset, given: Mapping[PartT, Sequence[str]], *, renamed_frames: bool = False
) -> dict[PartT, list[str]]:
    """Return the case ids of each part from names of cases, patients, or slices of cases.

    The name of a patient stands for all annotated scans, or for all scans in a list of unlabelled or training cases.

    Raises:
        ConfigError: a name is unknown, or has no label but needs one.
    """
    every, annotated = by_patient(dataset, annotated=False), by_patient(dataset, annotated=True)
    plain = {part: _without_slices(names, dataset, every) for part, names in given.items()}
    if renamed_frames:
        if not any(FRAME.fullmatch(name) for names in plain.values() for name in names):
            raise ConfigError("--renamed-frames: no given list names a frame such as patient001_frame02; leave it out")
        plain = {part: _frames_by_order(names, dataset) for part, names in plain.items()}
    return {part: _resolve(names, every if part in ("unlabelled", "train") else annotated, part, dataset)
            for part, names in plain.items()}  # fmt: skip


def by_patient(dataset: PreparedDataset, *, annotated: bool) -> dict[str, list[str]]:
    """Return the sorted case ids of each patient; with `annotated`, only cases with a label, perhaps none."""
    found: dict[str, list[str]] = {}
    for id, case in sorted(dataset.cases.items()):
        found.setdefault(case.subject, []).extend([id] if case.labelled or not annotated else [])
    return found


def _without_slices(names: Sequence[str], dataset: PreparedDataset, patients: Collection[str]) -> list[str]:
    """Replace names of slices by their cases, each once; other names stay as they are."""
    found, seen = [], set()
    for name in names:
        match = None if name in dataset.cases or name in patients else SLICE.fullmatch(name)
        if match is None:
            found.append(name)
        elif match.group(1) not in seen:
            seen.add(match.group(1))
            found.append(match.group(1))
    return found


def _resolve(names: Sequence[str], patients: dict[str, list[str]], part: str, dataset: PreparedDataset) -> list[str]:
    """Case ids from names of cases or patients; `patients` holds the usable cases of each patient."""
    ids = {id for members in patients.values() for id in members}
    unknown = [name for name in names if name not in ids and not patients.get(name)]
    if unknown:
        bare = [name for name in unknown if name in dataset.cases or name in patients]
        frames = [match for name in unknown if (match := FRAME.fullmatch(name))]
        known = any(id.startswith(f"{match.group(1)}_frame") for match in frames for id in ids)
        fault = "cases without a label" if bare else "unknown cases or patients"
        wrong = bare or unknown
        advice = "leave them out of the list" + ("" if bare else ", or prepare them as well")
        advice += f" ({dataset.root} has {len(ids)} usable cases, such as {min(ids, default='none')})"
        if known:
            advice = ("if frame02 in the list means a patient's second frame, whatever its number, as in the lists of "
                      "SSL4MIS, add --renamed-frames")  # fmt: skip
        raise ConfigError(f"the {part} list names {fault}: {some(wrong, SHOWN)}; {advice}")
    return [id for name in names for id in ([name] if name in ids else patients[name])]


def _frames_by_order(names: Sequence[str], dataset: PreparedDataset) -> list[str]:
    """Replace names that count the frames of a patient by the ids of these frames; other names stay as they are.

    Annotated frames are counted, in the order of their numbers; if a patient has none, all frames are counted.
    """
    frames: dict[str, list[tuple[bool, int, str]]] = {}
    for id, case in dataset.cases.items():
        if match := FRAME.fullmatch(id):
            frames.setdefault(match.group(1), []).append((case.labelled, int(match.group(2)), id))
    found = []
    for name in names:
        match = FRAME.fullmatch(name)
        if match is None or match.group(1) not in frames:
            found.append(name)
            continue
        of_patient = frames[match.group(1)]
        kind = any(labelled for labelled, _, _ in of_patient)
        counted = [id for labelled, _, id in sorted(of_patient) if labelled == kind]
        place = int(match.group(2))
        if not 1 <= place <= len(counted):
            raise ConfigError(
                f"{name}: no such frame; {match.group(1)} has {len(counted)}, in this order: {', '.join(counted)}"
            )
        found.append(counted[place - 1])
    return found
