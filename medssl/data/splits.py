"""Who trains, who is unlabelled, who validates, who tests: drawn by patient, written before training."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medssl.config import Settings
from medssl.data.names import by_patient, resolve_names
from medssl.data.prepared import PreparedDataset
from medssl.data.strata import Strata
from medssl.errors import ConfigError, DataError
from medssl.files import write_json

Part = Literal["labelled", "unlabelled", "val", "test"]
PARTS: tuple[Part, ...] = ("labelled", "unlabelled", "val", "test")
Unit = Literal["patients", "cases"]
Amount = int | Fraction | Literal["all"]
"""A number, a share of those who train, or all that have a label."""
SplitQuirk = Literal["selection on test", "renamed frames", "stratified by labels", "unlabelled labels seen"]
"""What a split does only when asked to; a report says so."""

SHOWN = 20
"""Faults of a split that an error spells out."""


class Split(Settings):
    """Case ids by part, as splits.json holds them."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Nobody may train on these: unlabelled scans of validation and test patients, and what an imported file leaves
    out."""
    seed: int | None = None
    """Seed of the draw; null when every part was given as a list."""
    sha256: str
    """Digest of the prepared case list that the split divides."""
    patients: dict[str, str] = {}
    """Patient of each case that the split lists; empty in a file of a version that did not record them."""
    quirks: tuple[SplitQuirk, ...] = ()
    """`selection on test`: the validation cases are the test cases. `renamed frames`: the lists counted frames.
    `stratified by labels`: drawn by what labels hold. `unlabelled labels seen`: among these were labels of cases that
    now count as unlabelled."""

    def part_of(self, id: str) -> str | None:
        """The part that holds a case."""
        return next((part for part in PARTS if id in getattr(self, part)), None)


def parse_amount(text: str) -> Amount:
    """`8`, `10%` or `all`, as `--labelled` takes it.

    Raises:
        ConfigError: it is none of these, or not above 0 and at most 100%.
    """
    percent = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text.strip())
    if text.strip() == "all":
        return "all"
    if percent and 0 < (share := Fraction(percent.group(1)) / 100) <= 1:
        return share
    if re.fullmatch(r"\d+", text.strip()):
        return int(text)
    raise ConfigError(f"--labelled {text}: expected a number such as 8, a percentage such as 10%, or all")


def number_of(amount: Amount, total: int, of: str) -> int:
    """An amount of `total` as a number; a share is rounded down, so that 5% of 70 are the published 3.

    Raises:
        ConfigError: a share is less than one.
    """
    if isinstance(amount, int):
        return amount
    number = total if amount == "all" else int(total * amount)
    if not number:
        raise ConfigError(f"--labelled {_words(amount)}: of {total} {of} that is less than one; ask for more")
    return number


def make_split(
    dataset: PreparedDataset,
    *,
    labelled: Amount,
    val: int,
    test: int,
    seed: int,
    unit: Unit = "patients",
    given: Mapping[Part, Sequence[str]] | None = None,
    renamed_frames: bool = False,
    val_is_test: bool = False,
    strata: Strata | None = None,
    where: str = "the split",
) -> Split:
    """Divide a dataset by patient.

    Patients are shuffled once by `seed`; test takes the first, then val, then labelled, and the rest
    is unlabelled. So val and test do not depend on the number of labelled ones and, when patients are
    counted, a larger labelled part contains the smaller one. Patients whom the dataset itself declares to validate or
    test are drawn for nothing else, and train only where a given list names them.

    Args:
        labelled: a share counts all who are neither in val nor in test, with labels or without.
        unit: what the numbers count. With `cases`, a patient with more cases than are still wanted
            is passed over, so that the number is met without dividing anyone.
        given: case or patient ids for some parts, or slices of cases; a given list wins over its number.
        renamed_frames: in the given lists `P_frame02` is the second frame of patient P, whatever its number.
        val_is_test: validate on the test cases, as some published code does; the split says so.
        strata: take the next patient by what its label holds, see `Strata.next_patient`; the split says so.
        where: what an error calls the split.

    Raises:
        ConfigError: too few labelled patients, or an unknown or twice used id in a given list.
        DataError: the lists divide a patient.
    """
    if val_is_test and (val or "val" in (given or {})):
        raise ConfigError(
            "the validation cases cannot be the test cases and others too; leave out --val and --val-list"
        )
    annotated = by_patient(dataset, annotated=True)
    chosen = resolve_names(dataset, given or {}, renamed_frames=renamed_frames)
    taken = _subjects(dataset, *chosen.values())
    free = [patient for patient in shuffled(annotated, seed) if patient not in taken and annotated[patient]]
    apart = declared_apart(dataset)
    is_drawn = False
    wanted: dict[Part, Amount] = {"test": test, "val": val, "labelled": labelled}
    for part, amount in wanted.items():
        if part == "val" and val_is_test:
            chosen["val"] = chosen["test"]
        elif part not in chosen:
            if isinstance(amount, Fraction):
                held = _subjects(dataset, chosen["val"], chosen["test"]) | apart.keys()
                training = [id for id, case in dataset.cases.items() if case.subject not in held]
                total = len(training if unit == "cases" else _subjects(dataset, training))
                amount = number_of(amount, total, f"training {unit}")
            able = [patient for patient in free if apart.get(patient, part) == part]
            drawn = able if amount == "all" else _draw(able, annotated, amount, unit, part, strata)
            free = [patient for patient in free if patient not in drawn]
            chosen[part] = [id for patient in drawn for id in annotated[patient]]
            is_drawn |= bool(drawn)

    held = _subjects(dataset, chosen["val"], chosen["test"]) | apart.keys()
    used = {id for ids in chosen.values() for id in ids}
    rest = [id for id in dataset.cases if id not in used]
    chosen.setdefault("unlabelled", [id for id in rest if dataset.cases[id].subject not in held])
    has_seen = strata is not None and any(dataset.cases[id].labelled for id in chosen["unlabelled"])
    split = Split(
        **{part: tuple(sorted(chosen[part])) for part in PARTS},
        left_out=tuple(sorted(set(rest) - set(chosen["unlabelled"]))),
        seed=seed if is_drawn else None,
        sha256=dataset.sha256,
        patients=_patients(dataset, dataset.cases),
        quirks=(
            *["selection on test"] * val_is_test, *["renamed frames"] * renamed_frames,
            *["stratified by labels"] * (strata is not None), *["unlabelled labels seen"] * has_seen,
        ),
    )  # fmt: skip
    check_split(split, dataset, where)
    return split


def declared_apart(dataset: PreparedDataset) -> dict[str, Part]:
    """Patients of whom the dataset says that they validate or test.

    Raises:
        DataError: it says two things of one patient.
    """
    said: dict[str, set[str]] = {}
    for case in dataset.cases.values():
        if case.part:
            said.setdefault(case.subject, set()).add(case.part if case.part in ("val", "test") else "train")
    divided = [f"  {patient}: {' and '.join(sorted(parts))}" for patient, parts in said.items() if len(parts) > 1]
    if divided:
        raise DataError(f"{dataset.root}: the dataset divides patients\n" + "\n".join(divided[:20]))
    found: dict[str, Part] = {}
    for patient, parts in said.items():
        if "val" in parts or "test" in parts:
            found[patient] = "val" if "val" in parts else "test"
    return found


def declared_parts(dataset: PreparedDataset) -> dict[Part, list[str]]:
    """The parts that the dataset itself declares, of the cases that can be in them; a part of nobody is left out."""
    found: dict[Part, list[str]] = {}
    for part in PARTS:
        ids = [id for id, case in dataset.cases.items() if case.part == part]
        found[part] = [id for id in ids if part == "unlabelled" or dataset.cases[id].labelled]
    return {part: ids for part, ids in found.items() if ids}


def make_folds(
    dataset: PreparedDataset,
    folds: int,
    *,
    labelled: Amount,
    test: int,
    seed: int,
    unit: Unit = "patients",
    given: Mapping[Part, Sequence[str]] | None = None,
    renamed_frames: bool = False,
    strata: Strata | None = None,
) -> list[Split]:
    """Splits that share their test cases, and in which each other annotated patient validates once.

    Patients in given lists of labelled or unlabelled ones train in every fold. See `make_split`.

    Raises:
        ConfigError: fewer than two folds, a given list of validation cases, or more folds than patients.
    """
    if folds < 2:
        raise ConfigError(f"--folds {folds}: expected two or more")
    if "val" in (given or {}):
        raise ConfigError("--folds: every patient validates once, so leave out --val and --val-list")
    base = make_split(dataset, labelled="all", val=0, test=test, seed=seed, unit=unit, given=given,
                      renamed_frames=renamed_frames, strata=strata)  # fmt: skip
    kept: dict[Part, Sequence[str]] = {part: getattr(base, part) for part in {**(given or {}), "test": ()}}
    taken = _subjects(dataset, *kept.values())
    annotated = by_patient(dataset, annotated=True)
    free = [patient for patient in shuffled(annotated, seed) if patient not in taken and annotated[patient]]
    if folds > len(free):
        raise ConfigError(f"--folds {folds}: only {len(free)} patients with labels are left to validate on; "
                          "ask for fewer folds or fewer test patients")  # fmt: skip
    made = []
    for members in _deal(free, folds, strata):
        parts = {**kept, "val": [id for patient in members for id in annotated[patient]]}
        split = make_split(dataset, labelled=labelled, val=0, test=0, seed=seed, unit=unit, given=parts, strata=strata)
        made.append(_as_drawn(split, base, seed))
    return made


def make_draws(
    dataset: PreparedDataset,
    draws: int,
    *,
    labelled: Amount,
    val: int,
    test: int,
    seed: int,
    unit: Unit = "patients",
    given: Mapping[Part, Sequence[str]] | None = None,
    renamed_frames: bool = False,
    val_is_test: bool = False,
    strata: Strata | None = None,
) -> list[Split]:
    """Splits that share validation and test cases, with labelled ones drawn by `seed`, `seed + 1` and so on.

    They are those of `medssl bench` with these seeds as its `draws`. See `make_split`.

    Raises:
        ConfigError: no draw is wanted, or the labelled cases are given.
    """
    if draws < 1:
        raise ConfigError(f"--draws {draws}: expected one or more")
    if "labelled" in (given or {}) or labelled == "all":
        raise ConfigError("--draws: the labelled cases are named already; give --labelled a number to draw")
    base = make_split(dataset, labelled=labelled, val=val, test=test, seed=seed, unit=unit, given=given,
                      renamed_frames=renamed_frames, val_is_test=val_is_test, strata=strata)  # fmt: skip
    held: dict[Part, Sequence[str]] = {"test": base.test} if val_is_test else {"test": base.test, "val": base.val}
    held |= {part: getattr(base, part) for part in given or {} if part == "unlabelled"}
    others = [make_split(dataset, labelled=labelled, val=0, test=0, seed=seed + n, unit=unit, given=held,
                         val_is_test=val_is_test, strata=strata) for n in range(1, draws)]  # fmt: skip
    return [base, *(_as_drawn(split, base, seed + n) for n, split in enumerate(others, 1))]


def read_split(path: Path, dataset: PreparedDataset) -> Split:
    """Read splits.json and check it against the dataset; patients that an old file lacks are filled in.

    Raises:
        DataError: it cannot be read, was made for another case list, names unknown ids or other patients,
            divides a patient, or lists a labelled case that has no label.
    """
    split = load_split(path, dataset.root)
    check_split(split, dataset, str(path))
    listed = [id for part in (*PARTS, "left_out") for id in getattr(split, part) if id in dataset.cases]
    return split.model_copy(update={"patients": _patients(dataset, listed)})


def load_split(path: Path, root: Path | str = "PREPARED") -> Split:
    """Read splits.json without a look at the dataset; `root` is named in the advice of an error.

    Raises:
        DataError: it cannot be read.
    """
    try:
        values: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        return Split.model_validate(values)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; write one with `medssl split {root} ... -o {path}`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a splits.json: {error}") from None


def write_split(path: Path, split: Split) -> None:
    """Write splits.json whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, split.model_dump(mode="json"))


def write_series(folder: Path, stem: str, splits: Sequence[Split], *, overwrite: bool = False) -> list[Path]:
    """Write `stem_0.json`, `stem_1.json` and so on.

    Raises:
        ConfigError: the folder holds such files and they are not to be replaced.
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
        path.unlink()  # of an earlier, longer series
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
    divided = [f"patient {subject} is in {' and '.join(sorted(p))}" for subject, p in parts.items() if len(p) > 1]
    faults += divided
    faults += [f"patient of case {id} is {subject}, in {dataset.root} {dataset.cases[id].subject}"
               for id, subject in split.patients.items()
               if id in dataset.cases and subject != dataset.cases[id].subject]  # fmt: skip
    if not split.labelled:
        faults.append("no labelled case; ask for some with --labelled, or name them in a list")
    if faults:
        lines = [f"{where} cannot be used", *(f"  {fault}" for fault in faults[:SHOWN])]
        lines += [f"  and {len(faults) - SHOWN} more"] * (len(faults) > SHOWN)
        lines += ["All scans of a patient belong on one side; move them there, or draw by patient with `medssl split`."
                  ] * bool(divided)  # fmt: skip
        raise DataError("\n".join(lines))


def refuse_file(folder: Path) -> None:
    """Raise a ConfigError where a file is in the place of a folder."""
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; name a folder with --out")


def shuffled(patients: Collection[str], seed: int) -> list[str]:
    """Patients in the order of a draw."""
    names = sorted(patients)
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def _words(amount: Amount) -> str:
    return f"{float(amount * 100):g}%" if isinstance(amount, Fraction) else str(amount)


def _subjects(dataset: PreparedDataset, *parts: Collection[str]) -> set[str]:
    return {dataset.cases[id].subject for ids in parts for id in ids}


def _patients(dataset: PreparedDataset, ids: Collection[str]) -> dict[str, str]:
    return {id: dataset.cases[id].subject for id in sorted(ids)}


def _as_drawn(split: Split, base: Split, seed: int) -> Split:
    """A split of a series, with the seed of its draw and the habits of the lists that the series began with."""
    more = [quirk for quirk in base.quirks if quirk == "renamed frames"]
    return split.model_copy(update={"seed": seed, "quirks": (*more, *split.quirks)})


def _draw(
    free: Sequence[str], annotated: dict[str, list[str]], number: int, unit: Unit, part: Part, strata: Strata | None
) -> list[str]:
    """The first patients of `free`, or those that `strata` names, until `number` are drawn."""
    size = {patient: 1 if unit == "patients" else len(annotated[patient]) for patient in free}
    drawn: list[str] = []
    left, missing = list(free), number
    while fitting := [patient for patient in left if size[patient] <= missing]:
        patient = _next(drawn, fitting, left, strata, spare=part != "labelled")
        drawn.append(patient)
        left.remove(patient)
        missing -= size[patient]
    if missing:
        raise ConfigError(f"{part}: {number} {unit} wanted, only {number - missing} labelled ones are left")
    return drawn


def _deal(free: Sequence[str], folds: int, strata: Strata | None) -> list[list[str]]:
    """Patients dealt out like cards, so that folds differ by one at most."""
    hands: list[list[str]] = [[] for _ in range(folds)]
    left = list(free)
    for n in range(len(free)):
        hand = hands[n % folds]
        hand.append(_next(hand, left, left, strata, spare=False))
        left.remove(hand[-1])
    return hands


def _next(drawn: Sequence[str], fitting: Sequence[str], left: Sequence[str], strata: Strata | None, spare: bool) -> str:
    return fitting[0] if strata is None else strata.next_patient(drawn, fitting, left, spare=spare)
