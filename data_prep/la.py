"""Left atrium in late gadolinium-enhanced MRI, the 2018 challenge: 100 scans for training, 54 for testing.

From: https://www.cardiacatlas.org/atriaseg2018-challenge (Xiong et al., Medical Image Analysis 67, 2021).
Licence: see the publisher's page; for research.
Configuration: configs/data/la.yaml, where the atrium may be 1 or 255. The ids are random, and no table says which scans
are of the same person, so each case is its own patient here. If you know better, correct the column `patient`.

Expected folder, one of:

    Training Set/<id>/lgemri.nrrd  laendo.nrrd   Testing Set/<id>/...       the challenge's own scans
    train.list  test.list  2018LA_Seg_Training Set/<id>/mri_norm2.h5         UA-MT's crops of them
    images/<id>.nii.gz  labels/<id>.nii.gz  splits/train.txt  test.txt      such crops as NIfTI
"""

from __future__ import annotations

from pathlib import Path

from command import run, with_parts

from medssl.data.cases import Case
from medssl.data.layouts import read_cases


def cases_of(source: Path) -> list[Case]:
    """Return every case, with its part if the source gives it."""
    return with_parts(read_cases(source), source / "splits")


if __name__ == "__main__":
    run(cases_of, __doc__)
