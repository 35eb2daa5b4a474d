"""FMRC-2025, root canals of first molars in CBCT, the dataset of CFC-Net (Zhou et al., arXiv:2504.11856).

From: announced in that paper; no release was found when this was written, so the folder below is a guess.
Licence: see the publisher's page.
Configuration: copy configs/data/ctooth.yaml, and name the classes there.

Expected folder:

    images/<id>.nii.gz   labels/<id>.nii.gz   patients.csv

in any format that medssl reads. The table has the columns `case` and `patient`: a person may have several first molars,
and two crops of one scan must not land on different sides of a split. Without the table each case is its own patient.
"""

from __future__ import annotations

from pathlib import Path

from command import read_table, run, with_patients

from medssl.data.cases import Case
from medssl.data.layouts import read_cases


def cases_of(source: Path) -> list[Case]:
    """Return every crop, with its patient if the table gives it."""
    return with_patients(read_cases(source, layout="folders"), read_table(source / "patients.csv", "case", "patient"))


if __name__ == "__main__":
    run(cases_of, __doc__)
