"""ACDC, cine-MRI of the heart: 100 patients for training and 50 for testing, two annotated frames each.

From: https://www.creatis.insa-lyon.fr/Challenge/acdc (Bernard et al., IEEE TMI 37, 2018).
Licence: see the publisher's page; research, with the citation that it asks for.
Configuration: configs/data/acdc.yaml. Patient and frame are in every id, `patient001_frame01`.

Expected is the published folder, with all frames of the cine as unlabelled cases and `testing/` as the part test:

    database/training/patient001/  Info.cfg  patient001_4d.nii.gz  patient001_frame01.nii.gz  ..._frame01_gt.nii.gz
    database/testing/patient101/   ...

or the two frames alone, perhaps with lists of the parts. There frame01 and frame02 are end-diastole and end-systole in
the naming of SSL4MIS, whatever the number of the frame:

    images/patient001_frame01.nii.gz   labels/patient001_frame01.nii.gz   splits/train.txt  val.txt  test.txt
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from command import run, with_parts

from medssl.data.cases import Case
from medssl.data.layouts import read_cases


def cases_of(source: Path) -> list[Case]:
    """Every case with its patient, and its part where the source tells it."""
    cases = with_parts(read_cases(source), source / "splits")
    return [replace(case, subject=case.id.partition("_")[0]) for case in cases]


if __name__ == "__main__":
    run(cases_of, __doc__)
