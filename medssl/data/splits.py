"""Splits of a dataset into training, validation and test cases: the content of splits.json and its checks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from medssl.config import Settings, read_model
from medssl.data.prepared import PreparedDataset
from medssl.errors import ConfigError, DataError
from medssl.files import write_json
from medssl.words import some_lines

Part = Literal["labelled", "unlabelled", "val", "test"]
PARTS: tuple[Part, ...] = ("labelled", "unlabelled", "val", "test")
Unit = Literal["patients", "cases"]
SplitQuirk = Literal["selection on test", "renamed frames", "stratified by labels", "unlabelled labels seen"]
"""Deviations that must be requested; the split records them and a report names them."""


class Split(Settings):
    """The case ids of each part, as in splits.json."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Cases that no part uses: unlabelled scans of validation and test patients, and cases that an imported file does
    not name."""
    seed: int | None = None
    """Seed of the draw; null if every part was given as a list."""
    counted: Unit | None = None
    """What the number of labelled cases counted when they were drawn; null if they were given as a list."""
    sha256: str
    """Digest of the prepared case list that the split was made for."""
    patients: dict[str, str] = {}
    """Patient of each case that the split lists; empty in files of older versions."""
    content: dict[str, str] = {}
    """In a run folder, a digest of the files of each case that it learned from; for an unlabelled case, of its images
    only, because a label may be added or changed. In a split of a bench, that of its test cases."""
    quirks: tuple[SplitQuirk, ...] = ()
    """`selection on test`: the validation cases are the test cases. `renamed frames`: the lists counted frames.
    `stratified by labels`: drawn by what labels hold. `unlabelled labels seen`: these included labels of cases that now
    count as unlabelled."""

    def part_of(self, id: str) -> str | None:
        """Return the part that holds a case; None if no part does."""
        return next((part for part in PARTS if id in getattr(self, part)), None)


def read_split(path: Path, dataset: PreparedDataset) -> Split:
    """Read splits.json and check it against the dataset; patients missing in an old file are added.

    Raises:
        DataError: it cannot be read, was made for another case list, names unknown ids or other patients,
            divides a patient, or lists a labelled case that has no label.
    """
    split = load_split(path, dataset.root)
    check_split(split, dataset, str(path))
    listed = [id for part in (*PARTS, "left_out") for id in getattr(split, part) if id in dataset.cases]
    return split.model_copy(update={"patients": patients_of(dataset, listed)})


def load_split(path: Path, root: Path | str = "PREPARED") -> Split:
    """Read splits.json without checking it against the dataset; error messages name `root`.

    Raises:
        DataError: it cannot be read.
    """
    if not Path(path).exists():
        if folds := sorted(Path(path).parent.glob("splits/*.json")):
            raise DataError(f"{path}: no such file; choose one of {len(folds)} with --set data.splits={folds[0]}")
        raise DataError(f"{path}: no such file; write one with `medssl split {root} ... -o {path}`")
    return read_model(Split, Path(path))


def write_split(path: Path, split: Split) -> None:
    """Write splits.json whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, split.model_dump(mode="json"))


def write_series(folder: Path, stem: str, splits: Sequence[Split], *, overwrite: bool = False) -> list[Path]:
    """Write `stem_0.json`, `stem_1.json` and so on.

    Raises:
        ConfigError: the folder holds such files, and `overwrite` is not set.
    """
    refuse_file(folder)
    found = [path for path in folder.glob(f"{stem}_*.json") if re.fullmatch(rf"{stem}_\d+", path.stem)]
    if found and not overwrite:
        raise ConfigError(
            f"{folder}: has {found[0].name}; choose another folder, or replace all {stem}s with --overwrite"
        )
    paths = [folder / f"{stem}_{n}.json" for n in range(len(splits))]
    for path, split in zip(paths, splits, strict=True):
        write_split(path, split)
    for path in set(found) - set(paths):
        path.unlink()  # from an earlier, longer series
    return paths


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
            faults.append("has the quirk `selection on test`, so val must list the same cases as test, at least one")
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
        # Labelled and unlabelled scans of one patient may both train; val and test share no patient with others.
        parts.setdefault(dataset.cases[id].subject, set()).add("train" if part in ("labelled", "unlabelled") else part)
    divided = [f"patient {subject} is in {' and '.join(sorted(p))}" for subject, p in parts.items() if len(p) > 1]
    faults += divided
    faults += [f"patient of case {id} is {subject}, but {dataset.cases[id].subject} in {dataset.root}"
               for id, subject in split.patients.items()
               if id in dataset.cases and subject != dataset.cases[id].subject]  # fmt: skip
    faults += [f"unknown case {id} in left_out" for id in split.left_out if id not in dataset.cases]
    left_out = set(split.left_out)
    faults += [f"case {id} is in left_out and in {part}" for id, part in known if id in left_out]
    if not split.labelled:
        faults.append("no labelled case; set their number with --labelled, or name them in a list")
    if faults:
        lines = [f"{where} cannot be used", *some_lines(faults)]
        lines += ["All scans of a patient must be on one side; move them there, or draw by patient with `medssl split`."
                  ] * bool(divided)  # fmt: skip
        raise DataError("\n".join(lines))


def refuse_file(folder: Path) -> None:
    """Raise a ConfigError if the path is a file instead of a folder."""
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; name a folder with --out")


def content_of(dataset: PreparedDataset, split: Split) -> dict[str, str]:
    """Return `Split.content` for a run with this split."""
    whole = {id: dataset.cases[id].content for id in (*split.labelled, *split.val)}
    images = {id: dataset.cases[id].image_content for id in split.unlabelled}
    return whole | {id: content for id, content in images.items() if content}


def changed_content(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the cases whose digests are known at both times and differ."""
    return [id for id, content in before.items() if now.get(id, content) != content]


def patients_of(dataset: PreparedDataset, ids: Collection[str]) -> dict[str, str]:
    """Return the patient of each case."""
    return {id: dataset.cases[id].subject for id in sorted(ids)}
