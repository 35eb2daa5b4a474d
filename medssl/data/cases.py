"""Cases, settings and patients of a dataset, before any volume is read."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from medssl.config import Settings
from medssl.data.recipe import Recipe
from medssl.data.volume import Source
from medssl.errors import ConfigError, DataError
from medssl.files import separator
from medssl.words import some

IGNORED = 255
"""The class of a voxel that nobody annotated, in prepared labels; see `DatasetConfig.ignore`."""
LARGEST_VALUE = 65_535
"""Largest value of a class in label files."""
PATIENT_FIRST = r"^(\D*\d+)"
"""Beginning of ids that name a patient and then a scan, such as `patient001_frame12` and `sub-01_ses-2`."""
_LEFT = re.compile(r"left|(?<![a-z0-9])l(?![a-z0-9])")
"""Matches lower-case names of classes on the left side."""
_TOOTH = re.compile(r"[1-8][1-8]")
"""The FDI number of a tooth: quadrant and place."""
_ACROSS = dict(zip("12345678", "21436587", strict=True))
"""The mirror image of each quadrant."""
_LOPSIDED = re.compile(r"heart|cardi|coronar|atri|^(?!.*lateral).*ventric|liver|hepat|portal")
"""Matches parts of heart and liver, which are no mirror images; the lateral ventricles of the brain are."""
MOST_SCANS = 10
"""Most scans per patient on average; a number that more cases share is rather a year or a site."""


@dataclass(frozen=True)
class Case:
    """One scan on disk and, when it has been annotated, its label map."""

    id: str
    subject: str
    """The patient. Splits never divide a patient."""
    images: tuple[Source, ...]
    """The modalities in order, a file each, or one file with all of them along its fourth axis."""
    label: Source | None
    """None for an unlabelled case."""
    part: str | None = None
    """`labelled`, `unlabelled`, `train`, `val` or `test` if the dataset says so; `medssl split` may use it."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All volumes of the case, images first."""
        return self.images if self.label is None else (*self.images, self.label)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all volumes."""
        return tuple(source.path for source in self.sources)


def can_name_files(id: str) -> bool:
    """Whether an id can name files and folders: printable, without slashes and not hidden."""
    return id.isprintable() and not id.startswith(".") and not {"/", "\\"} & set(id)


class SubjectRule(Settings):
    """Where a case's patient is written: in its id, or in a table. Without a rule each case is its own."""

    pattern: str | None = None
    """Regular expression with one group that finds the patient in the case id, such as `(patient\\d+)`."""
    table: str | None = None
    """CSV file with the patient of each case; a path inside the source folder."""
    case_column: str = "case"
    """Column of the table with the case id."""
    subject_column: str = "subject"
    """Column of the table with the patient."""

    @model_validator(mode="after")
    def _one_way(self) -> SubjectRule:
        if (self.pattern is None) == (self.table is None):
            raise ValueError("give either `pattern` or `table`")
        if self.pattern is not None and _groups(self.pattern) != 1:
            raise ValueError("`pattern` needs exactly one group, such as (patient\\d+)")
        return self


class DatasetConfig(Settings):
    """The `data` section: the content of the dataset and how it is prepared."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a class may be called 11

    name: str
    """Name of the dataset in reports."""
    layout: str | None = None
    """Layout of the raw data: datalist, nnunet, msd, acdc, la, folders, ssl4mis, modalities, dicom or pairs. null: the
    first layout that fits."""
    channels: tuple[str, ...] = ("MRI",)
    """Modalities of a case, in the order of the image channels."""
    classes: tuple[str, ...] = Field(min_length=2, max_length=IGNORED)
    """Class names. The first is the background. A class's position in the list, from 0, is its value in the label files
    unless `data.values` gives another."""
    values: dict[str, tuple[int, ...]] = {}
    """Values of a class in the label files, where they are not its position in `classes`. A class may have several
    values: `{tooth: [11, 12, 13], canal: [3]}`."""
    ignore: tuple[int, ...] = ()
    """Values in the label files that mark voxels nobody annotated. Losses and scores leave these voxels out."""
    regions: dict[str, tuple[str, ...]] = {}
    """Unions of classes that are scored in addition to the classes, such as `{whole tumour: [oedema, core]}`. The
    nnU-Net convention averages over regions only; `{core: [core]}` includes a single class in that average."""
    sides: tuple[tuple[str, str], ...] | None = None
    """Pairs of classes that are mirror images of each other, such as `[[left kidney, right kidney]]`. When training
    mirrors a patch, the two classes are swapped. null: no pairs; training warns if class names look like such pairs.
    `[]`: no pairs, no warning."""
    subject: SubjectRule | None = None
    """How the patient of each case is found: by `pattern` or by `table`. null: each case is its own patient, unless the
    layout identifies patients."""
    recipe: Recipe = Recipe()
    root: Path | None = None
    """Prepared folder to train from."""
    splits: Path | None = None
    """The splits.json to train with. null: the one in the prepared folder."""

    @model_validator(mode="after")
    def _known_names(self) -> DatasetConfig:
        if twice := {name for name in self.classes if self.classes.count(name) > 1}:
            raise ValueError(f"`classes` names {', '.join(sorted(twice))} more than once")
        for section, names in (("values", self.values), *((f"regions.{r}", c) for r, c in self.regions.items())):
            unknown = [name for name in names if name not in self.classes]
            if unknown:
                raise ValueError(f"`{section}` names {', '.join(unknown)}, which `classes` does not list")
        paired = [name for pair in self.sides or () for name in pair]
        if unknown := [name for name in paired if name not in self.classes[1:]]:
            raise ValueError(f"`sides` names {', '.join(unknown)}; it may name only {', '.join(self.classes[1:])}")
        if twice := {name for name in paired if paired.count(name) > 1}:
            raise ValueError(f"`sides` names {', '.join(sorted(twice))} more than once")
        if twice := {name for name in self.classes if self.regions.get(name, (name,)) != (name,)}:
            raise ValueError(f"`regions` and `classes` share the name {', '.join(sorted(twice))}")
        for region, names in self.regions.items():
            if not names or self.classes[0] in names or len(set(names)) < len(names):
                raise ValueError(f"`regions.{region}` needs one class or more, each once, and not the background")
        for key in ("intensity", "threshold"):
            rules = getattr(self.recipe, key)
            if isinstance(rules, tuple) and len(rules) != len(self.channels):
                raise ValueError(f"`recipe.{key}` must have one entry per channel ({', '.join(self.channels)}), got "
                                 f"{len(rules)}")  # fmt: skip
        values = [value for found in self.class_values for value in found] + list(self.ignore)
        if far := sorted(value for value in values if abs(value) > LARGEST_VALUE):
            raise ValueError(
                f"the label value {far[0]} is out of range; values must be from -{LARGEST_VALUE} to {LARGEST_VALUE}"
            )
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"the label value {', '.join(map(str, repeated))} stands for more than one class")
        return self

    @property
    def class_values(self) -> tuple[tuple[int, ...], ...]:
        """The values of each class in the label files."""
        return tuple(self.values.get(name, (place,)) for place, name in enumerate(self.classes))

    def difference(self, other: DatasetConfig, *keys: str) -> tuple[str, Any, Any] | None:
        """Return the first of these settings that differs in `other`, with both values; None if all are equal."""
        values = ((key, getattr(self, key), getattr(other, key)) for key in keys)
        return next((each for each in values if each[1] != each[2]), None)

    @property
    def places(self) -> dict[int, int]:
        """The class that each value of a label file stands for, or IGNORED for voxels that nobody annotated."""
        found = {value: place for place, values in enumerate(self.class_values) for value in values}
        return found | dict.fromkeys(self.ignore, IGNORED)

    @property
    def mirrored_places(self) -> dict[int, int]:
        """Map each class of a pair in `sides` to the other one; other classes are absent."""
        places = [(self.classes.index(one), self.classes.index(other)) for one, other in self.sides or ()]
        return dict(places) | {other: one for one, other in places}

    @property
    def likely_sides(self) -> tuple[tuple[str, str], ...]:
        """Pairs of classes whose names differ only by left and right, or L and R; and mirrored teeth."""
        by_name = {name.lower(): name for name in self.classes if not _LOPSIDED.search(name.lower())}
        others = {name: _LEFT.sub(lambda left: "right" if left[0] == "left" else "r", name) for name in by_name}
        named = tuple((by_name[name], by_name[o]) for name, o in others.items() if o != name and o in by_name)
        teeth = {number: name for number, name in self.teeth.items() if not any(name in pair for pair in named)}
        across = {number: _ACROSS[number[0]] + number[1] for number in teeth if number[0] in "1357"}
        return named + tuple((teeth[number], teeth[o]) for number, o in across.items() if o in teeth)

    @property
    def teeth(self) -> dict[str, str]:
        """Classes by FDI number, if names contain their values and all such values above 9 are FDI numbers."""
        named = zip(self.classes[1:], self.class_values[1:], strict=True)
        numbered = {str(values[0]): name for name, values in named if re.findall(r"\d+", name) == [str(values[0])]}
        found = {number: name for number, name in numbered.items() if len(number) > 1}
        return found if all(_TOOTH.fullmatch(number) for number in found) else {}

    @property
    def region_places(self) -> dict[str, tuple[int, ...]]:
        """Positions of the classes in each region, except regions that are one class of the same name."""
        unions = {region: names for region, names in self.regions.items() if region not in self.classes}
        return {region: tuple(map(self.classes.index, names)) for region, names in unions.items()}

    @property
    def is_plain(self) -> bool:
        """Whether the values in label files are the positions of the classes, and none is ignored."""
        return not self.ignore and self.class_values == tuple((place,) for place in range(len(self.classes)))


def subjects_of(ids: Sequence[str], rule: SubjectRule | None, source: Path) -> dict[str, str]:
    """Return the patient of each case id by the rule; without a rule, each case is its own patient.

    Raises:
        DataError: the rule gives some cases no patient, or one case two patients.
        ConfigError: the table or a column of it is missing.
    """
    if rule is None:
        return {id: id for id in ids}
    if rule.pattern is not None:
        where = f"data.subject.pattern {rule.pattern}"
        found = {id: match.group(1) for id in ids if (match := re.search(rule.pattern, id))}
    else:
        where = str(source / str(rule.table))
        found = _read_table(source / str(rule.table), rule)
    missing = [id for id in ids if not found.get(id)]
    if missing:
        raise DataError(f"{where}: finds no patient for {len(missing)} of {len(ids)} cases: {some(missing)}")
    return {id: found[id] for id in ids}


def namesakes(subjects: Mapping[str, str]) -> tuple[str, str] | None:
    """Return two cases that look like scans of one patient, in a dataset where each case is its own patient.

    Args:
        subjects: the patient that each case id counts for.

    Returns:
        None if patients are known, or if not all ids look as PATIENT_FIRST says.
    """
    if len(set(subjects.values())) < len(subjects):
        return None
    scans: dict[str, list[str]] = {}
    for id in subjects:
        match = re.fullmatch(PATIENT_FIRST + r"([-_. ].*)?", id)
        if match is None:
            return None
        scans.setdefault(match[1], []).append(id)
    first, second = next((ids[:2] for ids in scans.values() if len(ids) > 1), ("", ""))
    return (first, second) if second and len(scans) >= max(3, len(subjects) / MOST_SCANS) else None


def _groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"`pattern` is not a regular expression: {error}") from None


def _read_table(path: Path, rule: SubjectRule) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, delimiter=separator(file))
            columns, rows = table.fieldnames or [], list(table)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file, but data.subject.table names it; is {path.parent} the folder of the dataset?"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: the table of patients cannot be read: {error}") from None
    for column in (rule.case_column, rule.subject_column):
        if column not in columns:
            raise ConfigError(f"{path}: no column {column!r}, as data.subject names it; found {', '.join(columns)}")
    subjects: dict[str, str] = {}
    for row in rows:
        id, subject = ((row[column] or "").strip() for column in (rule.case_column, rule.subject_column))
        if subjects.setdefault(id, subject) != subject:
            raise DataError(f"{path}: case {id} has two patients, {subjects[id]} and {subject}; keep one of them")
    return subjects
