"""What stands beside a report's page: tables for papers, sums over voxels, the viewer's files."""

import base64
import gzip
import json
import re

import nibabel as nib
import numpy as np
import pytest
from test_report import AFFINE, Factory, Page, one_page

from medssl.errors import ConfigError
from medssl.report import write_report
from medssl.report.gallery import ranked
from medssl.report.viewer import find_niivue
from medssl.report.voxels import BINS, agreement


@pytest.fixture
def factory(tmp_path):
    return Factory(tmp_path)


@pytest.fixture
def niivue(tmp_path):
    """Stands for the library where only its place matters; tests/test_browser.py runs the real one."""
    path = tmp_path / "niivue.umd.js"
    path.write_text("var niivue = {};")
    return path


# ---- tables for papers


@pytest.fixture
def written(factory):
    runs = [
        factory.score(factory.run(f"{method}-{seed}", method, seed), {"a": {"liver": shift}, "b_1": {"liver": 2}},
                      classes=["background", "liver & co_1", "stone"])
        for method, shift in (("supervised", 2), ("bcp", 1)) for seed in (1, 2)
    ]  # fmt: skip
    return write_report(runs, factory.root / "report", title="50 % of $x_1$").parent


def test_markdown_and_latex_hold_the_numbers_of_the_page(written):
    page, markdown, latex = (
        (written / name).read_text(encoding="utf-8") for name in ("report.html", "tables.md", "tables.tex")
    )
    cells = [row[2] for row in Page(written / "report.html").tables["methods"][1:]]
    assert len(cells) == 2
    for cell in cells:
        text, note = cell.split("|")
        assert text in page
        assert f"| {text} ({note}) |" in markdown
        assert f"& {text.replace('±', '$' + chr(92) + 'pm$')} ({note}) &" in latex


def test_every_line_of_a_markdown_table_has_as_many_cells_as_its_head(written):
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", (written / "tables.md").read_text(), flags=re.MULTILINE)
    assert len(blocks) == 5
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_latex_escapes_what_it_would_take_for_commands(written):
    latex = (written / "tables.tex").read_text()
    assert r"liver \& co\_1" in latex
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
    plain = body.replace("$\\pm$", "").replace("$-$", "")
    assert not re.search(r"(?<!\\)[$#%_^~]", re.sub(r"\\(label|begin|end|cmidrule)\{[^}]*\}", "", plain))
    for table in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", body, flags=re.DOTALL):
        columns = len(re.findall(r"p\{4cm\}|[lr]", table[0]))
        lines = [line for line in table[1].splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {columns}


def test_what_others_published_stands_in_a_table_of_its_own_and_says_so(factory):
    runs = [factory.score(factory.run(method, method, 1, settings={"data.name": "la"}), {"a": {"liver": 1}})
            for method in ("supervised", "bcp")]  # fmt: skip
    found = one_page(factory, runs)
    assert "PUBLISHED ELSEWHERE: quoted as printed; none of it was measured here." in found.words
    rows = found.tables["published"]
    assert ["BCP|arXiv 2305.00673", "89.62"] in [row[:2] for row in rows]
    assert not {row[0] for row in rows} & {row[0] for row in found.tables["methods"][1:]}
    assert "89.62" not in " ".join(
        cell for name in ("methods", "metrics") for row in found.tables[name] for cell in row
    )
    assert "PUBLISHED ELSEWHERE" in (factory.root / "report" / "tables.tex").read_text()


def test_a_dataset_that_nobody_published_on_has_no_such_table(factory):
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 1}})
    assert "published" not in one_page(factory, [run]).tables


# ---- label counts, gauges


def test_dice_is_drawn_against_labels_once_there_are_two_counts(factory):
    runs = [factory.score(factory.run(f"{n}", "bcp", 1, splits={"labelled": list("xwq")[:n]}), {"a": {"liver": n}})
            for n in (1, 2)]  # fmt: skip
    words = "Dice against the labelled count."
    assert words not in one_page(factory, runs[:1], overwrite=True).words
    assert words in one_page(factory, runs, overwrite=True).words


def test_labelled_patients_are_told_where_they_are_fewer_than_cases(factory):
    frames = {f"{patient}{frame}": patient for patient in "xyz" for frame in (1, 2)}
    draws = {"both": ["x1", "x2"], "apart": ["y1", "z1"]}
    splits = {name: {"labelled": cases, "unlabelled": [], "patients": frames} for name, cases in draws.items()}
    runs = [factory.run(name, "bcp", seed, splits=split) for seed, (name, split) in enumerate(splits.items())]
    runs.append(factory.run("one", "supervised", 1, splits={"labelled": ["x1"], "patients": frames}))
    found = one_page(factory, [factory.score(run, {"a": {"liver": 1}}) for run in runs])
    assert found.column("methods", "Labelled") == ["1", "2|1 to 2 patients"]
    assert sorted(found.column("runs", "Labelled")) == ["1", "2", "2|1 patient"]


def test_a_run_without_unlabelled_cases_is_a_line_right_across(factory):
    runs = [factory.score(factory.run(f"{n}", "bcp", 1, splits={"labelled": list("xwq")[:n]}), {"a": {"liver": n}})
            for n in (1, 2)]  # fmt: skip
    parts = {"labelled": ["x", "w", "y", "z"], "unlabelled": []}
    runs.append(factory.score(factory.run("all", "supervised", 1, splits=parts), {"a": {"liver": 0}}))
    assert "A horizontal line marks a row with a label for every training case." in one_page(factory, runs).words


def test_three_rows_of_one_labelled_count_are_ranked(factory):
    shifts = {"supervised": 2, "mean_teacher": 1, "bcp": 0}
    runs = [factory.score(factory.run(method, method, 1), {case: {"liver": shift} for case in "abc"})
            for method, shift in shifts.items()]  # fmt: skip
    assert "ranks" not in one_page(factory, runs[:2], overwrite=True).tables
    found = one_page(factory, runs, overwrite=True)
    rows = [row for row in found.tables["ranks"] if len(row) == 3][1:]
    assert [(row[0].split("|")[0], row[1]) for row in rows] == [
        ("bcp", "1.00"), ("mean_teacher", "2.00"), ("supervised", "3.00"),
    ]  # fmt: skip
    assert "Mean ranks at labelled count 1." in found.words


def test_gauges_are_drawn_by_name(factory):
    run = factory.run("run", "bcp", 1)
    names = ("mask_share", "pseudo/0", "pseudo/1", "lag/0", "lag/1")
    head = ",".join(f"stat/{name}" for name in names)
    (run / "metrics.csv").write_text(f"step,{head},loss/a\n10{',0.5' * 5},1\n20{',0.25' * 5},1\n")
    words = one_page(factory, [run]).words
    assert "Gauge “mask share”: a number that methods log about themselves." in words
    assert "Gauge “pseudo, liver”: share of the pseudo-labelled voxels in this class" in words
    assert ["pseudo, background" in words, "lag, teacher 2" in words, "lag, liver" in words] == [True, True, False]


# ---- voxels


def test_confusion_counts_every_voxel_that_is_foreground_in_either():
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 3, (2, 5, 6, 7))
    found = agreement(ours, theirs, None, 3).confusion
    for reference in range(3):
        for predicted in range(3):
            both = ((theirs == reference) & (ours == predicted)).sum() if reference or predicted else 0
            assert found[reference, predicted] == both
    assert agreement(ours, theirs, None, 3).calibration_error is None


def test_a_perfect_prediction_confuses_nothing():
    labels = np.random.default_rng(1).integers(0, 3, (5, 6, 7))
    shares = agreement(labels, labels, None, 3).shares
    np.testing.assert_array_equal(shares, np.diag([0, 1, 1]))


def test_certainty_that_comes_true_as_often_as_it_says_has_no_calibration_error():
    rng = np.random.default_rng(2)
    sure = rng.choice([0.55, 0.75, 0.95], (40, 41, 42))
    theirs = np.ones(sure.shape, int)
    ours = np.where(rng.uniform(size=sure.shape) < sure, 1, 2)
    found = agreement(ours, theirs, sure, 3)
    assert found.calibration_error < 0.01
    np.testing.assert_allclose(found.curve[0], [0.55, 0.75, 0.95], atol=1e-9)
    np.testing.assert_allclose(found.curve[1], [0.55, 0.75, 0.95], atol=0.01)
    boast = agreement(ours, theirs, np.ones(sure.shape), 3)
    assert boast.calibration_error == pytest.approx(1 - (ours == 1).mean())


def test_background_that_nobody_doubts_does_not_hide_a_bad_calibration():
    ours, theirs = np.zeros((2, 30, 31, 32), int)
    ours[4:8, 4:8, 4:8] = theirs[6:10, 4:8, 4:8] = 1
    sure = np.ones(ours.shape)
    inside = np.s_[4:10, 4:8, 4:8]
    found = agreement(ours, theirs, sure, 2)
    assert found.certainty[:, 0].sum() == ours[inside].size
    assert found.calibration_error == pytest.approx((ours != theirs)[inside].mean())
    assert found.certainty.shape == (BINS, 3)


def test_sums_over_cases_add_up():
    rng = np.random.default_rng(3)
    cases = [(*rng.integers(0, 3, (2, 5, 6, 7)), rng.uniform(size=(5, 6, 7))) for _ in range(2)]
    first, second = (agreement(*case, 3) for case in cases)
    np.testing.assert_array_equal((first + second).confusion, first.confusion + second.confusion)
    assert (first + second).certainty[:, 0].sum() == 2 * 5 * 6 * 7
    assert (first + second).cases == 2


def test_the_page_shows_calibration_where_uncertainty_was_written_and_says_so_where_not(factory):
    run = factory.score(factory.run("sure", "bcp", 1), {"a": {"liver": 1}}, uncertainty=0.4)
    bare = factory.score(factory.run("bare", "supervised", 1), {"a": {"liver": 1}})
    assert "the predictions were written without their uncertainty" in one_page(factory, [bare], overwrite=True).words
    assert "The error (ECE) is the mean distance" in one_page(factory, [run, bare], overwrite=True).words


def test_files_that_are_gone_are_counted_on_the_page(factory):
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 1}, "b": {"liver": 0}})
    (factory.root / "references" / "run" / "a.nii.gz").unlink()
    assert "left out because a file could not be read or did not match: 1." in one_page(factory, [run]).words


# ---- the gallery


def test_ranks_start_at_the_worst_and_name_no_case_twice():
    dice = {name: i / 10 for i, name in enumerate("abcdefg")}
    assert ranked(dice, 2) == [("worst", "a"), ("2nd worst", "b"), ("median", "d"), ("best", "g")]
    assert ranked(dice, 0) == [("median", "d"), ("best", "g")]
    for count in range(1, 8):
        for worst in range(9):
            found = ranked(dict(list(dice.items())[:count]), worst)
            assert len({case for _, case in found}) == len(found)
            assert found[-1][0] in ("best", "only")
            assert [case for rank, case in found if "worst" in rank] == sorted("abcdefg"[:count])[
                : min(worst, count - 1)
            ]


# ---- the viewer's files


def volumes_of(path):
    name, volumes = json.loads("[" + re.fullmatch(r"medsslVolumes\((.*)\);\n", path.read_text())[1] + "]")
    assert name == path.name
    return {key: nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text))) for key, text in volumes.items()}


def test_the_viewer_gets_the_very_voxels_on_their_place(factory, niivue):
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 1}, "b": {"liver": 0}}, uncertainty=0.2)
    page = Page(write_report([run], factory.root / "report", niivue=niivue))
    folder = factory.root / "report" / "viewer"
    assert (folder / "niivue.js").read_text() == niivue.read_text()
    scenes = json.loads(re.search(r'id="viewer-data">(.*?)</script>', page.source)[1])["scenes"]
    assert [scene["title"].split(",")[0] for scene in scenes] == ["worst: a", "best: b"]
    for scene, case in zip(scenes, "ab", strict=True):
        theirs, ours = volumes_of(folder / scene["case_script"]), volumes_of(folder / scene["prediction_script"])
        for kind, found in (("references", theirs["reference"]), ("predictions", ours["prediction"])):
            kept = nib.load(factory.root / kind / "run" / f"{case}.nii.gz")
            assert np.array_equal(np.asarray(found.dataobj), np.asarray(kept.dataobj))
            assert np.array_equal(found.affine, AFFINE)
        assert set(np.unique(np.asarray(ours["uncertainty"].dataobj))) == {51}
        image = np.asarray(theirs["image"].dataobj)
        assert (image.dtype, image.min(), image.max()) == (np.uint8, 0, 255)


def test_cases_that_rows_share_are_stored_once(factory, niivue):
    first = factory.score(factory.run("one", "bcp", 1), {"a": {"liver": 1}})
    second = factory.run("two", "supervised", 1)
    (second / "scores.csv").write_text((first / "scores.csv").read_text())
    write_report([first, second], factory.root / "report", niivue=niivue)
    names = sorted(path.name for path in (factory.root / "report" / "viewer").iterdir())
    assert names == ["case-0.js", "niivue.js", "prediction-0-0.js", "prediction-1-0.js"]


def test_a_large_volume_is_thinned_and_keeps_its_place(factory, niivue, monkeypatch):
    monkeypatch.setattr("medssl.report.viewer.MOST_VOXELS", 40)
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 1}})
    write_report([run], factory.root / "report", niivue=niivue)
    (found,) = (volumes_of(path)["reference"] for path in (factory.root / "report" / "viewer").glob("case*.js"))
    assert np.prod(found.shape) <= 40
    kept = nib.load(factory.root / "references" / "run" / "a.nii.gz")
    steps = np.rint(np.linalg.norm(found.affine[:3, :3], axis=0) / np.diag(AFFINE)[:3]).astype(int)
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(kept.dataobj)[:: steps[0], :: steps[1], :: steps[2]])


def test_without_niivue_the_page_says_how_to_get_it_and_an_old_viewer_goes(factory, niivue, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(factory.root / "nowhere"))
    monkeypatch.chdir(factory.root)
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 1}})
    write_report([run], factory.root / "report", niivue=niivue)
    if find_niivue() is not None:
        pytest.skip("NiiVue is installed for all of this machine")
    page = one_page(factory, [run], overwrite=True)
    assert "medssl report --viewer" in page.words
    assert "script-src 'sha256-" in page.source.replace("&#39;", "'")
    assert not list((factory.root / "report").glob("viewer/*"))


def test_niivue_is_found_where_npm_installed_it(tmp_path, monkeypatch, niivue):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nowhere"))
    place = tmp_path / "node_modules" / "@niivue" / "niivue" / "dist"
    place.mkdir(parents=True)
    niivue.rename(place / "niivue.umd.js")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert find_niivue() == place / "niivue.umd.js"


def test_a_file_that_is_not_niivue_is_refused(factory):
    run = factory.score(factory.run("run", "bcp", 1), {"a": {"liver": 1}})
    wrong = factory.root / "other.js"
    wrong.write_text("var other;")
    for path in (wrong, factory.root / "nowhere.js"):
        with pytest.raises(ConfigError, match=r"expected the file niivue\.umd\.js"):
            write_report([run], factory.root / "report", niivue=path)
    assert not (factory.root / "report").exists()
