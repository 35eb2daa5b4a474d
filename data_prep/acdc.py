"""ACDC, cine-MRI of the heart: 100 patients for training and 50 for testing, two annotated frames each.

From: https://www.creatis.insa-lyon.fr/Challenge/acdc (Bernard et al., IEEE TMI 37, 2018).
Licence: see the publisher's page; for research, with the citation that it asks for.
Configuration: configs/data/acdc.yaml. Every id names patient and frame, such as `patient001_frame01`.

Expected folder: the published one. All other frames of the cine become unlabelled cases, `testing/` the part test:

    database/training/patient001/  Info.cfg  patient001_4d.nii.gz  patient001_frame01.nii.gz  ..._frame01_gt.nii.gz
    database/testing/patient101/   ...

or only the two annotated frames, optionally with lists of the parts. In the naming of SSL4MIS, frame01 is end-diastole
and frame02 end-systole, whatever the number of the frame:

    images/patient001_frame01.nii.gz   labels/patient001_frame01.nii.gz   splits/train.txt  val.txt  test.txt
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from command import run, with_parts

from medssl.data.cases import Case
from medssl.data.layouts import read_cases


def cases_of(source: Path) -> list[Case]:
    """Return every case with its patient, and its part if the source gives it."""
    cases = with_parts(read_cases(source), source / "splits")
    return [replace(case, subject=case.id.partition("_")[0]) for case in cases]


if __name__ == "__main__":
    run(cases_of, __doc__)
