"""Pancreas-CT of the National Institutes of Health: abdominal CT with contrast, one class, one scan per person.

From: https://www.cancerimagingarchive.net/collection/pancreas-ct (Roth et al., MICCAI 2015).
Licence: CC BY 3.0, as stated by the archive. The labels are a separate download.
Configuration: configs/data/pancreas_ct.yaml.

Expected folder: the scans as DICOM, or as NIfTI converted from it, and the labels beside them:

    <any folders>/PANCREAS_0001/<study>/<series>/*.dcm       or <any folders>/PANCREAS_0001.nii.gz
    <any folder>/label0001.nii.gz

If arrays are paired by index, the labels are upside down and need a flip along y. medssl uses the headers and flips
nothing. Still, look at the labels on the images before training: if a converter dropped the orientation, only the
anatomy shows it.
"""

from __future__ import annotations

import re
from pathlib import Path

from command import run

from medssl.data.cases import Case
from medssl.data.io import is_volume
from medssl.data.layouts.base import case
from medssl.data.layouts.dicom import series_folders
from medssl.errors import DataError

SCAN = re.compile(r"PANCREAS_(\d{4})", re.IGNORECASE)
LABEL = re.compile(r"label(\d{4})\.nii(\.gz)?", re.IGNORECASE)


def cases_of(source: Path) -> list[Case]:
    """Return every scan by its number, with the label of the same number."""
    files = sorted(path for path in source.rglob("*") if is_volume(path))
    labels = {match[1]: path for path in files if (match := LABEL.fullmatch(path.name))}
    scans: dict[str, Path] = {}
    for path in [*series_folders(source), *(path for path in files if path not in labels.values())]:
        for number in SCAN.findall(str(path.relative_to(source)))[-1:]:
            other = scans.setdefault(number, path)
            if other != path:
                raise DataError(f"{path}: scan {number} is also in {other}; keep one of them")
    if missing := sorted(labels.keys() - scans):
        raise DataError(f"{source}: no scan for the labels {', '.join(missing)}; is PANCREAS_{missing[0]} downloaded?")
    return [case(f"pancreas_{number}", [path], labels.get(number)) for number, path in sorted(scans.items())]


if __name__ == "__main__":
    run(cases_of, __doc__)
