"""Who trains, who is unlabelled, who validates, who tests: drawn by patient, written before training."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medssl.config import Settings
from medssl.data.prepared import PreparedDataset
from medssl.errors import ConfigError, DataError
from medssl.files import write_json

Part = Literal["labelled", "unlabelled", "val", "test"]
PARTS: tuple[Part, ...] = ("labelled", "unlabelled", "val", "test")
SplitQuirk = Literal["selection on test", "renamed frames"]
"""Habits of the literature that a split may follow when asked to; a report says so."""

FRAME = re.compile(r"(.+)_frame(\d+)")
"""A patient and the number of a frame, as in `patient001_frame12`."""


class Split(Settings):
    """Case ids by part, as splits.json holds them."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Unlabelled scans of validation and test patients: nobody may train on them."""
    seed: int | None = None
    """Seed of the draw; null when every part was given as a list."""
    sha256: str
    """Digest of the prepared case list that the split divides."""
    patients: dict[str, str] = {}
    """Patient of each case that the split lists; empty in a file of a version that did not record them."""
    quirks: tuple[SplitQuirk, ...] = ()
    """`selection on test`: the validation cases are the test cases. `renamed frames`: the lists counted frames."""

    def part_of(self, id: str) -> str | None:
        """The part that holds a case."""
        return next((part for part in PARTS if id in getattr(self, part)), None)


def make_split(
    dataset: PreparedDataset,
    *,
    labelled: int,
    val: int,
    test: int,
    seed: int,
    unit: Literal["patients", "cases"] = "patients",
    given: Mapping[Part, Sequence[str]] | None = None,
    renamed_frames: bool = False,
    val_is_test: bool = False,
) -> Split:
    """Divide a dataset by patient.

    Patients are shuffled once by `seed`; test takes the first, then val, then labelled, and the rest
    is unlabelled. So val and test do not depend on the number of labelled ones and, when patients are
    counted, a larger labelled part contains the smaller one.

    Args:
        unit: what the numbers count. With `cases`, a patient with more cases than are still wanted
            is passed over, so that the number is met without dividing anyone.
        given: case or patient ids for some parts; a given list wins over its number.
        renamed_frames: in the given lists `P_frame02` is the second frame of patient P, whatever its number.
        val_is_test: validate on the test cases, as some published code does; the split says so.

    Raises:
        ConfigError: too few labelled patients, or an unknown or twice used id in a given list.
    """
    if val_is_test and (val or "val" in (given or {})):
        raise ConfigError(
            "the validation cases cannot be the test cases and others too; leave out --val and --val-list"
        )
    patients: dict[str, list[str]] = {}
    for id, case in sorted(dataset.cases.items()):
        patients.setdefault(case.subject, []).append(id)
    annotated = {p: [id for id in ids if dataset.cases[id].labelled] for p, ids in patients.items()}
    if renamed_frames:
        if not any(FRAME.fullmatch(name) for names in (given or {}).values() for name in names):
            raise ConfigError("--renamed-frames: no given list names a frame such as patient001_frame02; leave it out")
        given = {part: _frames_by_order(names, dataset) for part, names in (given or {}).items()}
    chosen = {p: _resolve(ids, patients if p == "unlabelled" else annotated, p) for p, ids in (given or {}).items()}
    taken = {dataset.cases[id].subject for ids in chosen.values() for id in ids}

    order = [sorted(patients)[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    free = [patient for patient in order if patient not in taken and annotated[patient]]
    wanted: dict[Part, int] = {"test": test, "val": val, "labelled": labelled}
    for part, number in wanted.items():
        if part == "val" and val_is_test:
            chosen["val"] = chosen["test"]
        elif part not in chosen:
            drawn = _draw(free, annotated, number, unit, part)
            free = [patient for patient in free if patient not in drawn]
            chosen[part] = [id for patient in drawn for id in annotated[patient]]

    held = {dataset.cases[id].subject for part in ("val", "test") for id in chosen[part]}
    used = {id for ids in chosen.values() for id in ids}
    rest = [id for id in dataset.cases if id not in used]
    chosen.setdefault("unlabelled", [id for id in rest if dataset.cases[id].subject not in held])
    split = Split(
        **{part: tuple(sorted(chosen[part])) for part in PARTS},
        left_out=tuple(sorted(id for id in rest if id not in chosen["unlabelled"])),
        seed=seed,
        sha256=dataset.sha256,
        patients=_patients(dataset, dataset.cases),
        quirks=(*["selection on test"] * val_is_test, *["renamed frames"] * renamed_frames),
    )
    check_split(split, dataset, "the split")
    return split


def read_split(path: Path, dataset: PreparedDataset) -> Split:
    """Read splits.json and check it against the dataset; patients that an old file lacks are filled in.

    Raises:
        DataError: it cannot be read, was made for another case list, names unknown ids or other patients,
            divides a patient, or lists a labelled case that has no label.
    """
    try:
        values: Any = json.loads(Path(path).read_text())
        split = Split.model_validate(values)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; write one with `medssl split {dataset.root} ... -o {path}`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a splits.json: {error}") from None
    check_split(split, dataset, str(path))
    listed = [id for part in (*PARTS, "left_out") for id in getattr(split, part) if id in dataset.cases]
    return split.model_copy(update={"patients": _patients(dataset, listed)})


def write_split(path: Path, split: Split) -> None:
    """Write splits.json whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, split.model_dump(mode="json"))


def check_split(split: Split, dataset: PreparedDataset, where: str) -> None:
    """Raise one DataError that lists everything wrong with a split; `where` names it in the message."""
    faults = []
    if split.sha256 != dataset.sha256:
        faults.append(f"was made for another case list (sha256 {split.sha256[:12]}, {dataset.root} has "
                      f"{dataset.sha256[:12]}); split again")  # fmt: skip
    parts_apart = PARTS
    if "selection on test" in split.quirks:
        parts_apart = ("labelled", "unlabelled", "test")
        if not split.test or set(split.val) != set(split.test):
            faults.append("says `selection on test`, so its val must list the cases of its test, at least one")
    listed = [(id, part) for part in parts_apart for id in getattr(split, part)]
    unknown = [id for id, _ in listed if id not in dataset.cases]
    faults += [f"unknown case {id}" for id in unknown]
    known = [(id, part) for id, part in listed if id not in unknown]
    faults += [f"{part} case {id} has no label" for id, part in known
               if part != "unlabelled" and not dataset.cases[id].labelled]  # fmt: skip
    parts: dict[str, set[str]] = {}
    seen: set[str] = set()
    for id, part in known:
        if id in seen:
            faults.append(f"case {id} is listed twice")
        seen.add(id)
        # Labelled and unlabelled scans of one patient may both train; val and test share nobody.
        parts.setdefault(dataset.cases[id].subject, set()).add("train" if part in ("labelled", "unlabelled") else part)
    faults += [f"patient {subject} is in {' and '.join(sorted(p))}" for subject, p in parts.items() if len(p) > 1]
    faults += [f"patient of case {id} is {subject}, in {dataset.root} {dataset.cases[id].subject}"
               for id, subject in split.patients.items()
               if id in dataset.cases and subject != dataset.cases[id].subject]  # fmt: skip
    if not split.labelled:
        faults.append("no labelled case")
    if faults:
        raise DataError(f"{where} cannot be used\n" + "\n".join(f"  {fault}" for fault in faults[:20]))


def read_id_list(path: Path) -> list[str]:
    """Case or patient ids from a text file, one a line."""
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"{path}: the list cannot be read: {error}") from None


def _patients(dataset: PreparedDataset, ids: Collection[str]) -> dict[str, str]:
    return {id: dataset.cases[id].subject for id in sorted(ids)}


def _resolve(names: Sequence[str], patients: dict[str, list[str]], part: str) -> list[str]:
    """Case ids from names of cases or of patients, whose usable cases `patients` holds."""
    ids = {id for members in patients.values() for id in members}
    unknown = [name for name in names if name not in ids and not patients.get(name)]
    if unknown:
        frames = [match for name in unknown if (match := FRAME.fullmatch(name))]
        known = any(id.startswith(f"{match.group(1)}_frame") for match in frames for id in ids)
        raise ConfigError(
            f"the {part} list names neither a usable case nor a patient: {', '.join(unknown[:10])}"
            + ("; if the list counts frames, frame02 being a patient's second one whatever its number, as the lists of "
               "SSL4MIS do, add --renamed-frames" if known else "")
        )  # fmt: skip
    return [id for name in names for id in ([name] if name in ids else patients[name])]


def _frames_by_order(names: Sequence[str], dataset: PreparedDataset) -> list[str]:
    """Names that count a patient's frames to the ids of those frames; other names as they are.

    Counted are the annotated frames, in the order of their numbers; all of a patient where none is annotated.
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
            raise ConfigError(f"{name}: {match.group(1)} has {len(counted)} frames to count: {', '.join(counted)}")
        found.append(counted[place - 1])
    return found


def _draw(free: Sequence[str], annotated: dict[str, list[str]], number: int, unit: str, part: str) -> Collection[str]:
    drawn: list[str] = []
    missing = number
    for patient in free:
        size = 1 if unit == "patients" else len(annotated[patient])
        if size <= missing:
            drawn.append(patient)
            missing -= size
    if missing:
        raise ConfigError(f"{part}: {number} {unit} wanted, only {number - missing} labelled ones are left")
    return drawn
