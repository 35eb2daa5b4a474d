"""Any DICOM export: a row for each series below a folder, from which you keep the rows that are cases.

Expected folder: folders with slices directly inside; one folder may hold several series. The column `note` describes
each series. Delete the rows of scouts and reconstructions that you do not want, fill in `label` and `patient`, and give
the table to `medssl check`. A folder that cannot be read is named and left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from command import run

from medssl.data.cases import Case
from medssl.data.dicom import series_of
from medssl.data.layouts.base import case
from medssl.data.layouts.dicom import series_folders
from medssl.data.volume import Source
from medssl.errors import DataError


def cases_of(source: Path) -> dict[Case, str]:
    """Return every series and its description, named by its folders and, if one has several, the end of its uid."""
    cases = {}
    for folder in series_folders(source):
        names = folder.relative_to(source).parts or (source.name,)
        try:
            found = series_of(folder)
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        for uid, series in found.items():
            id = "_".join(names) + (f"_{uid.rpartition('.')[2]}" if len(found) > 1 else "")
            cases[case(id, [Source(folder, uid)], None, names[0])] = str(series)
    return cases


if __name__ == "__main__":
    run(cases_of, __doc__)
