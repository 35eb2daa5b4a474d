"""Reports that compare runs, as `medssl report` writes them: a folder whose page opens from disk.

`report.html` contains everything that it shows, except the viewer, and needs no network. Beside it are `tables.md` and
`tables.tex` with the same numbers and, where NiiVue was found, `viewer/`. This package decides what a page says;
medssl/templates decides how it looks.
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
    """Write a report that compares run folders, and return the path of its page, `out`/report.html.

    The curves of every run are shown. The scores of a run are shown if its folder contains a `scores.csv`.

    Args:
        references: methods that the other methods are compared with.
        worst: number of worst cases to draw for each row, besides the best and the median.
        viewer: if no copy of NiiVue is found, fetch it once with npm. Nothing else uses a network.
        niivue: the file `niivue.umd.js` of a NiiVue package; None: search the usual places.
        workers: number of processes that read volumes and draw.

    Raises:
        ConfigError: no run is given, or the same run twice; the runs have different datasets or scoring conventions; a
            reference has no run; `out` already contains a report; or NiiVue is not found or cannot be fetched.
        DataError: a path is not a run folder (all such paths are listed), or one of its files cannot be read.
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
        raise ConfigError(f"reference {unknown[0]}: no run uses this method; choose one of {', '.join(methods)}")
    library = find_niivue(niivue) or (fetch_niivue() if viewer else None)
    gallery = draw_gallery(rows, worst=worst, workers=workers)
    out.mkdir(parents=True, exist_ok=True)
    scenes = write_viewer(out / "viewer", library, gallery)
    published = published_rows(str(rows[0].runs[0].settings["data.name"]))
    tables = result_tables(rows, published, references)
    shown = render(rows, title, references=references, tables=tables, gallery=gallery, scenes=scenes, workers=workers)
    write_pages({page: shown, tables_md: as_markdown(title, tables), tables_tex: as_latex(title, tables)})
    return page
