"""Hippocampus, Task04 of the Medical Segmentation Decathlon: crops from T1-weighted MRI, 1 mm, two classes.

From: http://medicaldecathlon.com (Antonelli et al., Nature Communications 13, 2022; Simpson et al., arXiv:1902.09063).
Licence: CC BY-SA 4.0, as stated by the challenge.
Configuration: configs/data/hippocampus.yaml.

Expected folder: the published one.

    dataset.json   imagesTr/hippocampus_001.nii.gz   labelsTr/hippocampus_001.nii.gz

The numbers 2k-1 and 2k are nearly always the two sides of one person. They get the same patient, so that no split
divides them. A `cases.csv` with the columns `case` and `inferred_subject` overrides this rule.
"""

from __future__ import annotations

import re
from pathlib import Path

from command import read_table, run, with_patients

from medssl.data.cases import Case
from medssl.data.layouts import read_cases


def cases_of(source: Path) -> list[Case]:
    """Return every case with its person, from the table or by the rule."""
    cases = read_cases(source, layout="msd")
    table = read_table(source / "cases.csv", "case", "inferred_subject")
    return with_patients(cases, {case.id: person(case.id) for case in cases} | table)


def person(id: str) -> str:
    """Return `person_002` for hippocampus_003 and hippocampus_004."""
    number = re.search(r"(\d+)$", id)
    return f"person_{(int(number[1]) + 1) // 2:03}" if number else id


if __name__ == "__main__":
    run(cases_of, __doc__)
