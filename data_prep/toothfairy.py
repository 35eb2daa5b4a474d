"""ToothFairy 2 and 3: CBCT of jaws and teeth with many classes (Bolelli et al., University of Modena).

From: https://ditto.ing.unimore.it/toothfairy2 and .../toothfairy3, after signing up.
Licence: see the publisher's page.
Configuration: configs/data/toothfairy.yaml, for jaws, teeth and canals. `medssl check SOURCE` without a configuration
lists all classes that the folder's dataset.json declares.

Expected folder: the published one, in the form of nnU-Net. Put your own unlabelled scans into `imagesUn/`.

    Dataset112_ToothFairy2/  dataset.json  imagesTr/ToothFairy2F_001_0000.mha  labelsTr/ToothFairy2F_001.mha

Each scan counts as one patient. ToothFairy 3 contains the scans of ToothFairy 2: use one of the two.
ToothFairy 1 cannot be read: its arrays (`Dataset/P1/data.npy`) hold neither spacing nor orientation.
"""

from __future__ import annotations

from pathlib import Path

from command import run

from medssl.data.cases import Case
from medssl.data.layouts import read_cases
from medssl.errors import DataError


def cases_of(source: Path) -> list[Case]:
    """Return every scan of the folder."""
    arrays = next(source.glob("**/data.npy"), None)
    if arrays is not None:
        raise DataError(
            f"{arrays}: an array of ToothFairy 1, without spacing and orientation; convert it to NIfTI first"
        )
    return read_cases(source, layout="nnunet")


if __name__ == "__main__":
    run(cases_of, __doc__)
