"""Shared code of the scripts in this folder: `python data_prep/NAME.py SOURCE -o NAME.csv` writes a datalist.

The source is neither changed nor copied; `medssl check NAME.csv` and `medssl prepare NAME.csv ...` read the datalist.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from medssl.data.cases import Case
from medssl.data.layouts.datalist import write_datalist
from medssl.errors import ConfigError, DataError, InputError


def run(cases_of: Callable[[Path], Iterable[Case]], description: str | None) -> None:
    """Parse the arguments of a script, list the cases of its source, and write them, with notes if there are any."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the dataset's folder")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the datalist (.csv) to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the datalist that is there")
    arguments = parser.parse_args()
    try:
        if arguments.out.exists() and not arguments.overwrite:
            raise ConfigError(f"{arguments.out}: exists; choose another name, or replace it with --overwrite")
        found = cases_of(arguments.source)
        cases = list(found)
        write_datalist(arguments.out, cases, found if isinstance(found, Mapping) else None)
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    labelled = sum(case.label is not None for case in cases)
    patients = len({case.subject for case in cases})
    print(f"{arguments.out}: {len(cases)} cases of {patients} patients, {labelled} with labels")


def with_parts(cases: Iterable[Case], folder: Path) -> list[Case]:
    """Return the cases with the parts that `train.txt`, `val.txt` and `test.txt` list; others keep their part."""
    listed: dict[str, str] = {}
    for part in ("train", "val", "test"):
        path = folder / f"{part}.txt"
        if path.is_file():
            listed |= dict.fromkeys(path.read_text(encoding="utf-8").split(), part)
    return [replace(case, part=listed.get(case.id, case.part)) for case in cases]


def read_table(path: Path, case: str, patient: str) -> dict[str, str]:
    """Read the patient of each case from two columns of a CSV; empty if there is no such file.

    Raises:
        DataError: a column is missing.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if rows and not {case, patient} <= set(rows[0]):
        raise DataError(f"{path}: must have the columns {case!r} and {patient!r}, found {', '.join(rows[0])}")
    return {row[case]: row[patient] for row in rows}


def with_patients(cases: Iterable[Case], patients: Mapping[str, str]) -> list[Case]:
    """Return the cases with the patients of a table; others keep their patient."""
    return [replace(case, subject=patients.get(case.id, case.subject)) for case in cases]
