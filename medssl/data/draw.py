"""Who is drawn for which part of a split: by patient, as wished, what is given and what the dataset declares first."""

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

Amount = int | Fraction | Literal["all"]
"""A number, a share of those who train, or all that have a label."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a split shall be like."""

    labelled: Amount = 0
    """A share counts all who are neither in val nor in test, with labels or without."""
    val: int = 0
    test: int = 0
    seed: int = 0
    """Of the draw."""
    unit: Unit = "patients"
    """What the numbers count. With `cases`, a patient with more cases than are still wanted is passed over, so that the
    number is met without dividing anyone."""
    given: Mapping[Part, Sequence[str]] = field(default_factory=dict)
    """Case or patient ids for some parts, or slices of cases; a given list wins over its number."""
    renamed_frames: bool = False
    """In the given lists `P_frame02` is the second frame of patient P, whatever its number; the split says so."""
    val_is_test: bool = False
    """Validate on the test cases, as some published code does; the split says so."""
    strata: Strata | None = None
    """Take the next patient by what its label holds, see `Strata.next_patient`; the split says so."""


def make_split(dataset: PreparedDataset, wish: Wish, *, where: str = "the split") -> Split:
    """Divide a dataset by patient.

    Patients are shuffled once by the seed; test takes the first, then val, then labelled, and the rest
    is unlabelled. So val and test do not depend on the number of labelled ones and, when patients are
    counted, a larger labelled part contains the smaller one. Patients whom the dataset itself declares to validate or
    test are drawn for nothing else, and train only where a given list names them.

    Args:
        where: what an error calls the split.

    Raises:
        ConfigError: too few labelled patients, or an unknown or twice used id in a given list.
        DataError: the lists divide a patient.
    """
    if wish.val_is_test and (wish.val or "val" in wish.given):
        raise ConfigError(
            "the validation cases cannot be the test cases and others too; leave out --val and --val-list"
        )
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
    """Splits that share their test cases, and in which each other annotated patient validates once.

    Patients in given lists of labelled or unlabelled ones train in every fold. See `make_split`.

    Raises:
        ConfigError: fewer than two folds, a wish for validation cases, or more folds than patients.
    """
    if folds < 2:
        raise ConfigError(f"--folds {folds}: expected two or more")
    if wish.val or wish.val_is_test or "val" in wish.given:
        raise ConfigError("--folds: every patient validates once, so leave out --val, --val-list and --val-is-test")
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
    """Splits that share validation and test cases, with labelled ones drawn by the seed, the next and so on.

    They are those of `medssl bench` with these seeds as its `draws`. See `make_split`.

    Raises:
        ConfigError: no draw is wanted, or the labelled cases are given.
    """
    if draws < 1:
        raise ConfigError(f"--draws {draws}: expected one or more")
    if "labelled" in wish.given or wish.labelled == "all":
        raise ConfigError("--draws: the labelled cases are named already; give --labelled a number to draw")
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


def shuffled(patients: Collection[str], seed: int) -> list[str]:
    """Patients in the order of a draw."""
    names = sorted(patients)
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def _words(amount: Amount) -> str:
    return f"{float(amount * 100):g}%" if isinstance(amount, Fraction) else str(amount)


def _subjects(dataset: PreparedDataset, *parts: Collection[str]) -> set[str]:
    return {dataset.cases[id].subject for ids in parts for id in ids}


def _free(
    dataset: PreparedDataset, chosen: Mapping[Part, Sequence[str]], annotated: dict[str, list[str]], seed: int
) -> list[str]:
    """Patients with a label who are in no part yet, in the order of a draw."""
    taken = _subjects(dataset, *chosen.values())
    return [patient for patient in shuffled(annotated, seed) if patient not in taken and annotated[patient]]


def _as_drawn(split: Split, base: Split, seed: int) -> Split:
    """A split of a series, with the seed of its draw and the habits of the lists that the series began with."""
    more = [quirk for quirk in base.quirks if quirk == "renamed frames"]
    return split.model_copy(update={"seed": seed, "quirks": (*more, *split.quirks)})


def _draw(free: Sequence[str], annotated: dict[str, list[str]], number: int, part: Part, wish: Wish) -> list[str]:
    """The first patients of `free`, or those that the strata name, until `number` are drawn."""
    size = {patient: 1 if wish.unit == "patients" else len(annotated[patient]) for patient in free}
    drawn: list[str] = []
    left, missing = list(free), number
    while fitting := [patient for patient in left if size[patient] <= missing]:
        patient = _next(drawn, fitting, left, wish.strata, spare=part != "labelled")
        drawn.append(patient)
        left.remove(patient)
        missing -= size[patient]
    if missing:
        raise ConfigError(f"{part}: {number} {wish.unit} wanted, only {number - missing} labelled ones are left")
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
