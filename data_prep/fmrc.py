"""FMRC-2025, root canals of first molars in CBCT, the dataset of CFC-Net (Zhou et al., arXiv:2504.11856).

From: announced in that paper; no release was found when this was written, so that the form of its folders is a guess.
Licence: see the publisher's page.
Configuration: copy configs/data/ctooth.yaml, and name the classes there.

Expected is

    images/<id>.nii.gz   labels/<id>.nii.gz   patients.csv

with any of medssl's formats. The table has the columns `case` and `patient`: a person may have several first molars,
and two crops of one scan must not land on both sides of a split. Without the table each case is its own patient.
"""

from __future__ import annotations

from pathlib import Path

from command import read_table, run, with_patients

from medssl.data.cases import Case
from medssl.data.layouts import read_cases


def cases_of(source: Path) -> list[Case]:
    """Every crop with its patient, as far as the table tells."""
    return with_patients(read_cases(source, layout="folders"), read_table(source / "patients.csv", "case", "patient"))


if __name__ == "__main__":
    run(cases_of, __doc__)
