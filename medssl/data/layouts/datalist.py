"""A CSV or JSON file that names the files of each case, its patient and its part; the source is that file itself.

CSV has a row for each case and the columns `image` (or `image_0`, `image_1` and so on, or `images` with `;` between
them), and where known `id`, `label`, `patient` and `split`; other columns are ignored. JSON has the same as a list
of entries, or as MONAI's lists `training`, `validation` and `test`. Paths start at the file's folder. A part of a file
follows a `#`: a frame of a 4D volume, a series of a DICOM folder, a data set of HDF5.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from medssl.data.cases import Case
from medssl.data.io import case_id
from medssl.data.layouts.base import Declared, Layout, Reader, case
from medssl.data.layouts.description import declared_in
from medssl.data.volume import Source
from medssl.errors import DataError
from medssl.files import read_json, separator, whole_file
from medssl.words import some

SUFFIXES = (".csv", ".tsv", ".json")
COLUMNS = ("id", "image", "images", "label", "patient", "split")
PARTS = {
    name: part
    for part, names in {
        "train": ("train", "training"),
        "labelled": ("labelled", "labeled"),
        "unlabelled": ("unlabelled", "unlabeled"),
        "val": ("val", "valid", "validation"),
        "test": ("test", "testing"),
    }.items()
    for name in names
}
"""What may stand in the column `split`, or name a list in JSON."""

_NUMBERED = re.compile(r"image_(\d+)")

Row = dict[str, Any]


def fits(source: Path) -> bool:
    return source.is_file() and source.suffix.lower() in SUFFIXES


def read(source: Path) -> Layout:
    if not fits(source):
        return Layout(())
    rows = _json_rows(source) if source.suffix.lower() == ".json" else _csv_rows(source)
    found = list(rows)
    cases = [_case(source, where, row) for where, row in found]
    nobody = [case.id for case, (_, row) in zip(cases, found, strict=True) if not row.get("patient")]
    if 0 < len(nobody) < len(cases):
        raise DataError(
            f"{source}: no `patient` for {len(nobody)} of {len(cases)} cases: {some(nobody)}; name the patient "
            "of all cases, or of none. With none, data.subject applies, or else each case is its own patient"
        )
    return Layout(tuple(cases), names_patients=not nobody)


def declared(source: Path) -> Declared:
    has_keys = source.suffix.lower() == ".json" and isinstance(read_json(source), dict)
    return declared_in(source) if has_keys else Declared()


def write_datalist(path: Path, cases: Sequence[Case], notes: Mapping[Case, str] | None = None) -> None:
    """Write cases as a CSV that this layout reads; paths of files below its folder are relative, others absolute.

    Args:
        notes: remarks on cases for human readers, written to a last column that is not read back.

    Raises:
        DataError: there is no case.
    """
    if not cases:
        raise DataError(f"{path}: not written, because no case was found")
    channels = max(len(case.images) for case in cases)
    images = ["image"] if channels == 1 else [f"image_{number}" for number in range(channels)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", *images, "label", "patient", "split", *["note"] * bool(notes)])
        for case in cases:
            files = [_written(source, path) for source in case.images]
            label = _written(case.label, path) if case.label else ""
            files += [""] * (channels - len(files))
            note = [notes[case]] if notes else []
            table.writerow([case.id, *files, label, case.subject, case.part or "", *note])


def _written(source: Source, path: Path) -> str:
    whole, base = source.absolute(), path.resolve().parent
    inside = whole.path.is_relative_to(base)
    return str(Source(whole.path.relative_to(base), whole.part) if inside else whole)


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file, delimiter=separator(file), skipinitialspace=True)
            columns = [name.strip() for name in next(table, [])]
            rows = [(table.line_num, [cell.strip() for cell in row]) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: the datalist cannot be read: {error}") from None
    if not {"image", "images"} & set(columns) and not any(map(_NUMBERED.fullmatch, columns)):
        raise DataError(f"{path}: no column `image`, `images` or `image_0`; found {', '.join(columns) or 'none'}")
    _check_names(str(path), columns)
    if twice := [name for name in columns if _is_known(name) and columns.count(name) > 1]:
        raise DataError(f"{path}: two columns are called {twice[0]!r}; rename or remove one")
    for number, cells in rows:
        if len(cells) > len(columns):
            raise DataError(f"{path}: line {number} has more cells than the {len(columns)} columns of the first line")
        if any(cells):
            yield f"line {number}", dict(zip(columns, cells, strict=False))


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    content = read_json(path)
    lists = {"": content} if isinstance(content, list) else content
    if not isinstance(lists, dict):
        raise DataError(f"{path}: expected a list of cases, or lists under `training`, `validation` and `test`")
    for name, entries in lists.items():
        if not isinstance(entries, list) or (name and name not in PARTS):
            if isinstance(entries, list) and any(isinstance(entry, dict) and "image" in entry for entry in entries):
                raise DataError(f"{path}: a list of cases under {name!r}; its name must be one of {', '.join(PARTS)}")
            if name in PARTS:
                raise DataError(f"{path}: expected a list of cases under {name!r}, found {str(entries)[:80]}")
            continue
        for number, entry in enumerate(entries):
            row = {"image": entry} if isinstance(entry, str) else entry
            where = f"entry {number}" + f" of `{name}`" * bool(name)
            if not isinstance(row, dict):
                raise DataError(f"{path}: {where} must name an `image`, found {entry!r}")
            _check_names(f"{path}: {where}", row)
            yield where, {"split": name, **row}


def _check_names(where: str, names: Iterable[str]) -> None:
    """Refuse names that are nearly a known one: with a column `lable`, every case would be unlabelled."""
    for name in names:
        close = get_close_matches(name.lower(), COLUMNS, 1, 0.8)
        if close and not _is_known(name):
            raise DataError(f"{where}: unknown column {name!r}; did you mean {close[0]!r}?")


def _is_known(name: str) -> bool:
    return name in COLUMNS or _NUMBERED.fullmatch(name) is not None


def _case(path: Path, where: str, row: Row) -> Case:
    images = _images(row)
    names = [*images, *(row.get(key) or "" for key in ("id", "label", "patient", "split"))]
    if not images or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{path}: {where} must name an image, and all other values must be text, found {row}")
    split = str(row.get("split") or "").lower()
    if split and split not in PARTS:
        raise DataError(f"{path}: {where}: split must be one of {', '.join(PARTS)}, got {split!r}")
    sources = [Source.parse(str(image), path.parent) for image in images]
    label = Source.parse(str(row["label"]), path.parent) if row.get("label") else None
    id = str(row.get("id") or "") or _id(sources)
    return case(id, sources, label, str(row.get("patient") or ""), PARTS.get(split))


def _images(row: Row) -> list[Any]:
    """The images of a row: from `image`, `images`, or `image_0`, `image_1` and so on."""
    found = row.get("image") or row.get("images")
    if isinstance(found, list):
        return found
    if found:
        return [name.strip() for name in str(found).split(";")]
    numbered = {int(match[1]): row[key] for key in row if (match := _NUMBERED.fullmatch(key)) and row[key]}
    return [numbered[n] for n in range(len(numbered))] if numbered.keys() == set(range(len(numbered))) else []


def _id(sources: Sequence[Source]) -> str:
    path = sources[0].path
    name = path.name if path.is_dir() else case_id(path)
    return re.sub(r"_0000$", "", name) if len(sources) > 1 else name


READER = Reader("datalist", "a CSV or JSON file with a row for each case", fits, read, declared)
