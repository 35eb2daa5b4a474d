"""CTooth and CTooth+: CBCT with teeth as one class; 22 annotated scans, and 146 without labels in CTooth+.

From: https://github.com/liangjiubujiu/CTooth, on request (Cui et al., ICIRA 2022 and MICCAI-DALI 2022).
Licence: the repository states CC BY 4.0; see what comes with the data.
Configuration: configs/data/ctooth.yaml.

Expected folder (no public description of the published one was found):

    images/<id>.nii.gz   labels/<id>.nii.gz   unlabelled/<id>.nii.gz

in any format that medssl reads. Each scan counts as one patient.
"""

from __future__ import annotations

from pathlib import Path

from command import run

from medssl.data.cases import Case
from medssl.data.io import case_id
from medssl.data.layouts import read_cases
from medssl.data.layouts.base import case, volumes


def cases_of(source: Path) -> list[Case]:
    """Return the annotated scans, then the scans without labels."""
    without = [case(case_id(path), [path], None, part="unlabelled") for path in volumes(source / "unlabelled")]
    return read_cases(source, layout="folders") + without


if __name__ == "__main__":
    run(cases_of, __doc__)
