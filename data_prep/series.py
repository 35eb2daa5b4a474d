"""Any export of DICOM: a row for each series below a folder, for you to keep the ones that are cases.

Expected are folders with slices directly inside, several series in one folder allowed. The columns after `split` say
what each series is: delete the rows of scouts and reconstructions that you do not want, fill in `label` and `patient`,
and give the table to `medssl check`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from command import run

from medssl.data.cases import Case
from medssl.data.dicom import series_of
from medssl.data.layouts.base import case
from medssl.data.layouts.dicom import series_folders
from medssl.data.volume import Source


def cases_of(source: Path) -> Iterator[Case]:
    """Every series, named by its folders and, where a folder has several, by the end of its uid."""
    for folder in series_folders(source):
        names = folder.relative_to(source).parts or (source.name,)
        found = series_of(folder)
        for uid in found:
            id = "_".join(names) + (f"_{uid.rpartition('.')[2]}" if len(found) > 1 else "")
            yield case(id, [Source(folder, uid)], None, names[0])


if __name__ == "__main__":
    run(cases_of, __doc__)
