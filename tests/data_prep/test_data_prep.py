"""The scripts of `data_prep/` on tiny folders of the shape that each expects: names are all that they look at."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from medssl.data.check import check
from medssl.data.io import read_image, write_image
from medssl.data.layouts import read_cases
from medssl.errors import DataError

FOLDER = Path(__file__).parents[2] / "data_prep"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "command")

INFO = "ED: 1\nES: 2\nNbFrame: 3\n"
ACDC = "database/training/patient001"
TEST = "database/testing/patient101"

SHAPES = {
    "acdc": (
        [f"{ACDC}/patient001_{end}.nii.gz" for end in ("4d", "frame01", "frame01_gt", "frame02", "frame02_gt")]
        + [f"{TEST}/patient101_{end}.nii.gz" for end in ("frame01", "frame01_gt")],
        [
            ("patient001_frame01", "patient001", "frame01.nii.gz", "frame01_gt.nii.gz", None),
            ("patient001_frame02", "patient001", "frame02.nii.gz", "frame02_gt.nii.gz", None),
            ("patient001_frame03", "patient001", "4d.nii.gz#2", None, None),
            ("patient101_frame01", "patient101", "frame01.nii.gz", "frame01_gt.nii.gz", "test"),
        ],
    ),
    "la": (
        ["Training Set/A/lgemri.nrrd", "Training Set/A/laendo.nrrd", "Testing Set/B/lgemri.nrrd"],
        [("A", "A", "lgemri.nrrd", "laendo.nrrd", None), ("B", "B", "lgemri.nrrd", None, "test")],
    ),
    "hippocampus": (
        [f"{folder}/hippocampus_{n:03}.nii.gz" for n in (1, 3, 4) for folder in ("imagesTr", "labelsTr")],
        [
            (f"hippocampus_{n:03}", f"person_{k:03}", f"hippocampus_{n:03}.nii.gz", f"hippocampus_{n:03}.nii.gz", None)
            for n, k in ((1, 1), (3, 2), (4, 2))
        ],
    ),
    "pancreas_ct": (
        ["Pancreas-CT/PANCREAS_0001/1.2/1.3/1-001.dcm", "nii/PANCREAS_0002.nii.gz", "labels/label0001.nii.gz"],
        [
            ("pancreas_0001", "pancreas_0001", "1.3", "label0001.nii.gz", None),
            ("pancreas_0002", "pancreas_0002", "PANCREAS_0002.nii.gz", None, None),
        ],
    ),
    "toothfairy": (
        ["imagesTr/ToothFairy2F_001_0000.mha", "labelsTr/ToothFairy2F_001.mha", "imagesUn/own_0000.mha"],
        [
            ("ToothFairy2F_001", "ToothFairy2F_001", "ToothFairy2F_001_0000.mha", "ToothFairy2F_001.mha", None),
            ("own", "own", "own_0000.mha", None, None),
        ],
    ),
    "ctooth": (
        ["images/a.nii.gz", "labels/a.nii.gz", "unlabelled/b.nii.gz"],
        [("a", "a", "a.nii.gz", "a.nii.gz", None), ("b", "b", "b.nii.gz", None, "unlabelled")],
    ),
    "fmrc": (
        ["images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz"],
        [("a", "anna", "a.nii.gz", "a.nii.gz", None), ("b", "b", "b.nii.gz", None, None)],
    ),
}


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def run(monkeypatch, name, *words):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def rows(cases):
    """Id, patient, image, label and part of each case; of files the name, of a frame of ACDC its end."""

    def short(source):
        return (
            None
            if source is None
            else str(source).rpartition("/")[2].removeprefix("patient001_").removeprefix("patient101_")
        )

    return sorted((c.id, c.subject, short(c.images[0]), short(c.label), c.part) for c in cases)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    for folder in (ACDC, TEST):
        make(root / "acdc", f"{folder}/Info.cfg")
        (root / "acdc" / folder / "Info.cfg").write_text(INFO)
    for name in ("hippocampus", "toothfairy"):
        make(root / name, "dataset.json")
    pairs = [{"image": f"imagesTr/hippocampus_{n:03}.nii.gz", "label": f"labelsTr/hippocampus_{n:03}.nii.gz"}
             for n in (1, 3, 4)]  # fmt: skip
    (root / "hippocampus/dataset.json").write_text(str({"training": pairs}).replace("'", '"'))
    (root / "toothfairy/dataset.json").write_text('{"channel_names": {"0": "CBCT"}}')
    make(root / "fmrc", "patients.csv")
    (root / "fmrc/patients.csv").write_text("case,patient\na,anna\n")
    return root


@pytest.mark.parametrize("name", SHAPES)
def test_a_script_lists_its_dataset_and_leaves_it_alone(name, source, tmp_path, monkeypatch, capsys):
    files, expected = SHAPES[name]
    make(source / name, *files)
    before = sorted(path.relative_to(source) for path in source.rglob("*"))
    run(monkeypatch, name, source / name, "-o", tmp_path / "list.csv")
    assert rows(read_cases(tmp_path / "list.csv")) == sorted(expected)
    assert f"{len(expected)} cases" in capsys.readouterr().out
    assert sorted(path.relative_to(source) for path in source.rglob("*")) == before


def test_every_script_is_tested_and_says_what_it_expects():
    assert set(SHAPES) | {"series"} == set(SCRIPTS)
    for name in SHAPES:
        text = (FOLDER / f"{name}.py").read_text()
        assert len(text.splitlines()) <= 70
        for word in ("\nFrom: ", "\nLicence: ", "\nConfiguration: ", "\nExpected "):
            assert word in text, f"{name}: {word}"


def test_parts_come_from_lists_beside_the_volumes(tmp_path, monkeypatch):
    make(tmp_path, *(f"{folder}/patient00{n}_frame01.nii.gz" for n in (1, 2) for folder in ("images", "labels")))
    make(tmp_path, "splits/val.txt")
    (tmp_path / "splits/val.txt").write_text("patient002_frame01\n")
    for name in ("acdc", "la"):
        run(monkeypatch, name, tmp_path, "-o", tmp_path / f"{name}.csv")
        assert [case.part for case in read_cases(tmp_path / f"{name}.csv")] == [None, "val"]


def test_a_table_of_persons_wins_over_the_rule(source, tmp_path, monkeypatch):
    make(source / "hippocampus", *SHAPES["hippocampus"][0])
    (source / "hippocampus/cases.csv").write_text("case,inferred_subject\nhippocampus_004,sub-9\n")
    run(monkeypatch, "hippocampus", source / "hippocampus", "-o", tmp_path / "list.csv")
    assert [case.subject for case in read_cases(tmp_path / "list.csv")] == ["person_001", "person_002", "sub-9"]


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("pancreas_ct", ["PANCREAS_0001.nii.gz", "x/PANCREAS_0001/1.nii"], "scan 0001 is also in"),
        ("pancreas_ct", ["label0003.nii.gz"], "no scan for the labels 0003"),
        ("toothfairy", ["Dataset/P1/data.npy"], "ToothFairy 1"),
        ("ctooth", ["labels/a.nii"], "not written, because no case was found"),
        ("la", ["x.txt"], "no dataset found"),
    ],
)
def test_what_cannot_be_sorted_is_one_message_and_nothing_written(tmp_path, monkeypatch, capsys, name, files, words):
    make(tmp_path / "source", *files)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, name, tmp_path / "source", "-o", tmp_path / "list.csv")
    assert caught.value.code == DataError.exit_code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "list.csv").exists()


def test_a_datalist_is_replaced_when_asked_only(tmp_path, monkeypatch, capsys):
    make(tmp_path, "images/a.nii", "list.csv")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "ctooth", tmp_path, "-o", tmp_path / "list.csv")
    assert caught.value.code == 2
    assert (tmp_path / "list.csv").read_text() == ""
    run(monkeypatch, "ctooth", tmp_path, "-o", tmp_path / "list.csv", "--overwrite")
    assert [case.id for case in read_cases(tmp_path / "list.csv")] == ["a"]


def test_check_takes_what_a_script_wrote(tmp_path, monkeypatch):
    image = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    for name in ("images/a.nii", "unlabelled/b.nii"):
        write_image(tmp_path / name, image, np.eye(4))
    write_image(tmp_path / "labels/a.nii", (image > 0).astype(np.uint8), np.eye(4))
    run(monkeypatch, "ctooth", tmp_path, "-o", tmp_path / "list.csv")
    report = check(tmp_path / "list.csv", workers=0)
    assert report.errors == ()
    assert report.layout == "datalist"


def test_series_lists_each_of_a_folder_with_several(real_data, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "series", real_data / "odd" / "dicom", "-o", tmp_path / "list.csv")
    assert "truncated_file/015.dcm" in capsys.readouterr().err
    assert "hippocampus crop" in (tmp_path / "list.csv").read_text()
    cases = [case for case in read_cases(tmp_path / "list.csv") if case.subject == "two_series"]
    assert len({(case.id, case.images) for case in cases}) == len(cases) == 2
    assert [read_image(*case.images).shape[2] for case in cases] == [8, 8]
