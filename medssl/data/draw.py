"""Draw the parts of a split by patient; given lists and parts that the dataset declares take precedence."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from medssl.data.names import by_patient, resolve_names
from medssl.data.prepared import PreparedDataset
from medssl.data.splits import PARTS, Part, Split, Unit, check_split, patients_of
from medssl.data.strata import Strata
from medssl.errors import ConfigError, DataError
from medssl.words import some_lines

Amount = int | Fraction | Literal["all"]
"""A number, a share of the training patients or cases, or all that have a label."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The options of a split."""

    labelled: Amount = 0
    """A share is of all patients or cases that are neither in val nor in test, with or without labels."""
    val: int = 0
    test: int = 0
    seed: int = 0
    """Seed of the draw."""
    unit: Unit = "patients"
    """What the numbers count. With `cases`, a patient with more cases than are still needed is skipped, so that the
    number is met without dividing a patient."""
    given: Mapping[Part, Sequence[str]] = field(default_factory=dict)
    """Ids of cases, patients or slices for some parts; a given list replaces the number of its part."""
    renamed_frames: bool = False
    """In the given lists, `P_frame02` is the second frame of patient P, whatever its number. The split records this."""
    val_is_test: bool = False
    """Validate on the test cases, as some published code does. The split records this."""
    strata: Strata | None = None
    """Choose patients by what their labels hold, see `Strata.next_patient`. The split records this."""


def make_split(dataset: PreparedDataset, wish: Wish, *, where: str = "the split") -> Split:
    """Divide a dataset by patient.

    Patients are shuffled once by the seed. Test takes the first ones, then val, then labelled; the rest is unlabelled.
    So val and test do not depend on the number of labelled patients, and if patients are counted, a larger labelled
    part contains the smaller one. Patients that the dataset itself declares as val or test are drawn for no other part,
    and train only if a given list names them.

    Args:
        where: the name of the split in error messages.

    Raises:
        ConfigError: too few labelled patients, or an unknown id in a given list.
        DataError: the lists divide a patient or name a case twice.
    """
    if wish.val_is_test and (wish.val or "val" in wish.given):
        raise ConfigError("--val-is-test: the test cases are the validation cases; leave out --val and --val-list")
    annotated = by_patient(dataset, annotated=True)
    chosen = resolve_names(dataset, wish.given, renamed_frames=wish.renamed_frames)
    free = _free(dataset, chosen, annotated, wish.seed)
    apart = declared_apart(dataset)
    is_drawn = False
    wanted: dict[Part, Amount] = {"test": wish.test, "val": wish.val, "labelled": wish.labelled}
    for part, amount in wanted.items():
        if part == "val" and wish.val_is_test:
            chosen["val"] = chosen["test"]
        elif part not in chosen:
            if isinstance(amount, Fraction):
                held = _subjects(dataset, chosen["val"], chosen["test"]) | apart.keys()
                training = [id for id, case in dataset.cases.items() if case.subject not in held]
                total = len(training if wish.unit == "cases" else _subjects(dataset, training))
                amount = number_of(amount, total, f"training {wish.unit}")
            able = [patient for patient in free if apart.get(patient, part) == part]
            drawn = able if amount == "all" else _draw(able, annotated, amount, part, wish)
            free = [patient for patient in free if patient not in drawn]
            chosen[part] = [id for patient in drawn for id in annotated[patient]]
            is_drawn |= bool(drawn)

    held = _subjects(dataset, chosen["val"], chosen["test"]) | apart.keys()
    used = {id for ids in chosen.values() for id in ids}
    rest = [id for id in dataset.cases if id not in used]
    chosen.setdefault("unlabelled", [id for id in rest if dataset.cases[id].subject not in held])
    has_strata = wish.strata is not None
    has_seen = has_strata and any(dataset.cases[id].labelled for id in chosen["unlabelled"])
    split = Split(
        **{part: tuple(sorted(chosen[part])) for part in PARTS},
        left_out=tuple(sorted(set(rest) - set(chosen["unlabelled"]))),
        seed=wish.seed if is_drawn else None,
        counted=None if "labelled" in wish.given else wish.unit,
        sha256=dataset.sha256,
        patients=patients_of(dataset, dataset.cases),
        quirks=(
            *["selection on test"] * wish.val_is_test, *["renamed frames"] * wish.renamed_frames,
            *["stratified by labels"] * has_strata, *["unlabelled labels seen"] * has_seen,
        ),
    )  # fmt: skip
    check_split(split, dataset, where)
    return split


def make_folds(dataset: PreparedDataset, wish: Wish, folds: int) -> list[Split]:
    """Make splits with the same test cases, in which each other annotated patient validates once.

    Patients in given lists of labelled or unlabelled cases train in every fold. See `make_split`.

    Raises:
        ConfigError: fewer than two folds, options for validation cases, or more folds than patients.
    """
    if folds < 2:
        raise ConfigError(f"--folds {folds}: must be 2 or more")
    if wish.val or wish.val_is_test or "val" in wish.given:
        raise ConfigError("--folds: every patient validates once; leave out --val, --val-list and --val-is-test")
    base = make_split(dataset, replace(wish, labelled="all"))
    kept: dict[Part, Sequence[str]] = {part: getattr(base, part) for part in {**wish.given, "test": ()}}
    annotated = by_patient(dataset, annotated=True)
    free = _free(dataset, kept, annotated, wish.seed)
    if folds > len(free):
        raise ConfigError(f"--folds {folds}: only {len(free)} patients with labels are left to validate on; "
                          "ask for fewer folds or fewer test patients")  # fmt: skip
    made = []
    for members in _deal(free, folds, wish.strata):
        given = {**kept, "val": [id for patient in members for id in annotated[patient]]}
        split = make_split(dataset, replace(wish, test=0, given=given, renamed_frames=False))
        made.append(_as_drawn(split, base, wish.seed))
    return made


def make_draws(dataset: PreparedDataset, wish: Wish, draws: int) -> list[Split]:
    """Make splits with the same validation and test cases, whose labelled cases are drawn by consecutive seeds.

    `medssl bench` makes the same splits with these seeds as its `draws`. See `make_split`.

    Raises:
        ConfigError: no draw is wanted, or the labelled cases are given.
    """
    if draws < 1:
        raise ConfigError(f"--draws {draws}: must be 1 or more")
    if "labelled" in wish.given or wish.labelled == "all":
        raise ConfigError("--draws: the labelled cases are fixed already; give --labelled a number to draw")
    base = make_split(dataset, wish)
    held: dict[Part, Sequence[str]] = {"test": base.test} if wish.val_is_test else {"test": base.test, "val": base.val}
    if "unlabelled" in wish.given:
        held["unlabelled"] = base.unlabelled
    made = [base]
    for seed in range(wish.seed + 1, wish.seed + draws):
        split = make_split(dataset, replace(wish, val=0, test=0, seed=seed, given=held, renamed_frames=False))
        made.append(_as_drawn(split, base, seed))
    return made


def declared_apart(dataset: PreparedDataset) -> dict[str, Part]:
    """Return the patients that the dataset declares as val or test.

    Raises:
        DataError: it declares several parts for one patient.
    """
    said: dict[str, set[str]] = {}
    for case in dataset.cases.values():
        if case.part:
            said.setdefault(case.subject, set()).add(case.part if case.part in ("val", "test") else "train")
    divided = [f"{patient}: {' and '.join(sorted(parts))}" for patient, parts in said.items() if len(parts) > 1]
    if divided:
        title = f"{dataset.root}: the dataset divides patients; put all scans of each into one part"
        raise DataError("\n".join([title, *some_lines(divided)]))
    found: dict[str, Part] = {}
    for patient, parts in said.items():
        if "val" in parts or "test" in parts:
            found[patient] = "val" if "val" in parts else "test"
    return found


def declared_parts(dataset: PreparedDataset) -> dict[Part, list[str]]:
    """Return the parts that the dataset declares, without cases that lack a needed label; empty parts are left out."""
    found: dict[Part, list[str]] = {}
    for part in PARTS:
        ids = [id for id, case in dataset.cases.items() if case.part == part]
        found[part] = [id for id in ids if part == "unlabelled" or dataset.cases[id].labelled]
    return {part: ids for part, ids in found.items() if ids}


def parse_amount(text: str) -> Amount:
    """Parse `8`, `10%` or `all`, as `--labelled` takes it.

    Raises:
        ConfigError: it is none of these, or a percentage that is not above 0 and at most 100%.
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
    """Turn an amount of `total` into a number; a share is rounded down, so that 5% of 70 are the published 3.

    Raises:
        ConfigError: the share is less than one.
    """
    if isinstance(amount, int):
        return amount
    number = total if amount == "all" else int(total * amount)
    if not number:
        raise ConfigError(f"--labelled {_words(amount)}: less than one of {total} {of}; ask for more")
    return number


def shuffled(patients: Collection[str], seed: int) -> list[str]:
    """Return the patients in the order of a draw."""
    names = sorted(patients)
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def _words(amount: Amount) -> str:
    return f"{float(amount * 100):g}%" if isinstance(amount, Fraction) else str(amount)


def _subjects(dataset: PreparedDataset, *parts: Collection[str]) -> set[str]:
    return {dataset.cases[id].subject for ids in parts for id in ids}


def _free(
    dataset: PreparedDataset, chosen: Mapping[Part, Sequence[str]], annotated: dict[str, list[str]], seed: int
) -> list[str]:
    """Annotated patients that are in no part yet, in the order of a draw."""
    taken = _subjects(dataset, *chosen.values())
    return [patient for patient in shuffled(annotated, seed) if patient not in taken and annotated[patient]]


def _as_drawn(split: Split, base: Split, seed: int) -> Split:
    """A split of a series, with the seed of its draw and the quirk of the lists of the first split."""
    more = [quirk for quirk in base.quirks if quirk == "renamed frames"]
    return split.model_copy(update={"seed": seed, "quirks": (*more, *split.quirks)})


def _draw(free: Sequence[str], annotated: dict[str, list[str]], number: int, part: Part, wish: Wish) -> list[str]:
    """Draw the first patients of `free`, or those that the strata choose, until `number` are drawn."""
    size = {patient: 1 if wish.unit == "patients" else len(annotated[patient]) for patient in free}
    drawn: list[str] = []
    left, missing = list(free), number
    while fitting := [patient for patient in left if size[patient] <= missing]:
        patient = _next(drawn, fitting, left, wish.strata, spare=part != "labelled")
        drawn.append(patient)
        left.remove(patient)
        missing -= size[patient]
    if missing:
        raise ConfigError(f"{part}: {number} {wish.unit} wanted, only {number - missing} with labels are left")
    return drawn


def _deal(free: Sequence[str], folds: int, strata: Strata | None) -> list[list[str]]:
    """Deal patients out in turn, so that the sizes of folds differ by at most one."""
    hands: list[list[str]] = [[] for _ in range(folds)]
    left = list(free)
    for n in range(len(free)):
        hand = hands[n % folds]
        hand.append(_next(hand, left, left, strata, spare=False))
        left.remove(hand[-1])
    return hands


def _next(drawn: Sequence[str], fitting: Sequence[str], left: Sequence[str], strata: Strata | None, spare: bool) -> str:
    return fitting[0] if strata is None else strata.next_patient(drawn, fitting, left, spare=spare)
