"""The job behind `medssl report`: run folders in, a folder out that opens from disk.

`report.html` holds everything it shows and needs no network. Beside it lie `tables.md` and `tables.tex` with the same
numbers, and `viewer/` where NiiVue was found. What is said is decided in this package, how it looks in
medssl/templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medssl.comparison import BASELINE, load_runs, make_rows
from medssl.errors import ConfigError
from medssl.files import refuse_existing
from medssl.published import published_rows
from medssl.report.gallery import WORST, draw_gallery
from medssl.report.page import render, write_pages
from medssl.report.papers import as_latex, as_markdown
from medssl.report.tables import result_tables
from medssl.report.viewer import OURS, fetch_niivue, find_niivue, write_viewer


def write_report(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    title: str = "Comparison of runs",
    references: Sequence[str] = (BASELINE,),
    worst: int = WORST,
    viewer: bool = False,
    niivue: Path | None = None,
    workers: int = 2,
    overwrite: bool = False,
) -> Path:
    """Write `out`/report.html, which compares run folders, with its tables and viewer, and return its path.

    A run takes part with its scores when its folder holds a `scores.csv`, and with its curves in any case.

    Args:
        references: methods that the others are compared with.
        worst: how many of each row's worst cases are drawn, besides the best and the median.
        viewer: fetch NiiVue once, through npm, where no copy is found. Nothing else ever uses a network.
        niivue: the file `niivue.umd.js` of a NiiVue package; without it the usual places are searched.
        workers: processes that read volumes and draw.

    Raises:
        ConfigError: no run, the same run twice, runs of different datasets, scores by different rules, a reference
            without a run, a report is there already, or NiiVue is not where it was said to be.
        DataError: a path is no run folder, all such paths listed, or one of its files cannot be read.
    """
    out = Path(out)
    page = out / "report.html"
    refuse_existing(page, overwrite)
    tables_md, tables_tex = out / "tables.md", out / "tables.tex"
    viewer_of_others = [path for name in OURS for path in (out / "viewer").glob(name)]
    for path in () if page.exists() else (tables_md, tables_tex, *viewer_of_others):
        refuse_existing(path, overwrite)
    rows = make_rows(load_runs([Path(path) for path in runs]))
    methods = dict.fromkeys(row.key.method for row in rows)
    unknown = [name for name in references if name not in methods and name != BASELINE]
    if unknown:
        raise ConfigError(f"reference {unknown[0]}: no run is of this method; there are {', '.join(methods)}")
    library = find_niivue(niivue) or (fetch_niivue() if viewer else None)
    gallery = draw_gallery(rows, worst=worst, workers=workers)
    out.mkdir(parents=True, exist_ok=True)
    scenes = write_viewer(out / "viewer", library, gallery)
    published = published_rows(str(rows[0].runs[0].settings["data.name"]))
    tables = result_tables(rows, published, references)
    shown = render(rows, title, references=references, tables=tables, gallery=gallery, scenes=scenes, workers=workers)
    write_pages({page: shown, tables_md: as_markdown(title, tables), tables_tex: as_latex(title, tables)})
    return page
