import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from rich.console import Console
from typer.testing import CliRunner

from medssl.cli import app
from medssl.config import dump
from medssl.data.cases import IGNORED, PATIENT_FIRST, DatasetConfig, SubjectRule, namesakes, subjects_of
from medssl.data.check import check
from medssl.data.io import read_image, write_image
from medssl.data.layouts import LAYOUTS, declared, find_reader, read_cases, read_layout
from medssl.data.layouts.base import Declared
from medssl.data.layouts.datalist import write_datalist
from medssl.data.prepared import read_prepared
from medssl.data.volume import Source
from medssl.errors import ConfigError, DataError


def make(root, *names):
    for name in names:
        write_image(root / name, np.zeros((5, 6, 7), np.uint8), np.eye(4))


def make_nrrd(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((7, 6, 5), np.uint8)), str(root / name))


def describe(root, **keys):
    (root / "dataset.json").write_text(json.dumps(keys))


def pairs(cases, root):
    """Id, images and label of each case, as they lie below a folder."""
    return [
        (case.id, *(source and str(source).removeprefix(f"{root}/") for source in (*case.images, case.label)))
        for case in cases
    ]


def make_series(folder, uid="1.2.3", slices=3, patient=""):
    """A DICOM series of a few slices."""
    folder.mkdir(parents=True)
    for number in range(slices):
        image = sitk.GetImageFromArray(np.full((1, 6, 5), number, np.int16))
        image.SetOrigin((0, 0, float(number)))
        tags = {"0020|000e": uid, "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0032": f"0\\0\\{number}", "0028|0030": "1\\1",
                "0010|0020": patient}  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{uid}_{number}.dcm"))
        writer.Execute(image)


def make_h5(root, *names, label=True):
    h5py = pytest.importorskip("h5py")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(root / name, "w") as file:
            file["image"] = np.zeros((5, 6, 7), np.float32)
            if label:
                file["label"] = np.zeros((5, 6, 7), np.uint8)


class TestFolders:
    def test_pair_by_name_up_to_the_suffix_and_the_rest_is_unlabelled(self, tmp_path):
        make(tmp_path, "images/b.v1.nii.gz", "images/a.nii", "labels/b.v1.nii", "images/._a.nii")
        assert pairs(read_cases(tmp_path), tmp_path) == [
            ("a", "images/a.nii", None),
            ("b.v1", "images/b.v1.nii.gz", "labels/b.v1.nii"),
        ]

    def test_names_of_folders_count_in_capitals_too(self, tmp_path):
        make(tmp_path, "Images/a.nii", "LABELS/a.nii")
        layout = read_layout(tmp_path)
        assert (layout.name, pairs(layout.cases, tmp_path)) == ("folders", [("a", "Images/a.nii", "LABELS/a.nii")])

    @pytest.mark.parametrize(
        ("images", "labels"), [("MRI", "masks"), ("ct", "manual_GT"), ("images", "Masks"), ("images", "Ground Truth")]
    )
    def test_labels_in_a_folder_of_another_name_are_not_passed_over(self, tmp_path, images, labels):
        make(tmp_path, f"{images}/a.nii", f"{images}/b.nii", f"{labels}/a.nii")
        with pytest.raises(DataError, match=rf"{labels}: looks like the labels of {images}/(.|\n)*datalist"):
            check(tmp_path, workers=0)

    def test_folders_of_patients_may_hold_files_of_equal_names(self, tmp_path):
        make(tmp_path, "p1/t1.nii", "p1/seg.nii", "p2/t1.nii", "p2/seg.nii", "p3_mask/t1.nii", "p3_mask/t2.nii")
        assert len(read_cases(tmp_path)) == 4

    def test_labels_are_optional(self, tmp_path):
        make(tmp_path, "images/a.nii")
        assert [case.label for case in read_cases(tmp_path)] == [None]

    def test_a_label_without_an_image_is_kept_apart(self, tmp_path):
        make(tmp_path, "images/a.nii", "labels/a.nii", "labels/b.nii")
        layout = read_layout(tmp_path)
        assert [case.id for case in layout.cases] == ["a"]
        assert layout.labels_without_image == (tmp_path / "labels/b.nii",)

    @pytest.mark.parametrize("twice", ["images/a.nii.gz", "labels/a.nii.gz"])
    def test_an_id_with_two_files_is_two_cases(self, tmp_path, twice):
        make(tmp_path, "images/a.nii", "labels/a.nii", twice)
        cases = read_cases(tmp_path)
        assert [case.id for case in cases] == ["a", "a"]
        assert len({(case.images, case.label) for case in cases}) == 2

    def test_what_is_no_volume_is_listed(self, tmp_path):
        make(tmp_path, "images/a.nii")
        for name in ("series", "b.img", "c.zraw", ".hidden"):
            (tmp_path / "images" / name).mkdir()
        assert [path.name for path in read_layout(tmp_path).others] == ["b.img", "series"]


def make_brats(root, *patients, modalities=("t1c", "t1n", "t2f"), label="seg", nested=""):
    for patient in patients:
        make(root, *(f"{nested}{patient}/{patient}-{word}.nii" for word in (*modalities, *([label] if label else []))))


class TestModalities:
    @pytest.mark.parametrize("nested", ["", "HGG/"])
    @pytest.mark.parametrize("label", ["seg", ""])
    def test_files_of_a_folder_are_the_channels_of_its_case(self, tmp_path, nested, label):
        make_brats(tmp_path, "G-1-000", "G-2-000", label=label, nested=nested)
        layout = read_layout(tmp_path)
        assert layout.name == "modalities"
        assert pairs(layout.cases, tmp_path) == [
            (id, *(f"{nested}{id}/{id}-{word}.nii" for word in ("t1c", "t1n", "t2f")),
             f"{nested}{id}/{id}-seg.nii" if label else None)
            for id in ("G-1-000", "G-2-000")
        ]  # fmt: skip
        assert declared(tmp_path).channels == ("t1c", "t1n", "t2f")

    def test_names_without_the_folder_and_in_capitals(self, tmp_path):
        make(tmp_path, "p1/FLAIR.nii", "p1/T1.nii.gz", "p1/Label.nii", "P2/p2_flair.nii", "P2/p2_T1.nii")
        assert pairs(read_cases(tmp_path), tmp_path) == [
            ("P2", "P2/p2_flair.nii", "P2/p2_T1.nii", None),
            ("p1", "p1/FLAIR.nii", "p1/T1.nii.gz", "p1/Label.nii"),
        ]

    def test_a_case_without_a_modality_is_an_error_and_a_modality_of_few_is_not_read(self, tmp_path):
        make_brats(tmp_path, "a", "b", "c")
        make(tmp_path, "b/b-swi.nii", "b/brain_mask.nii")
        report = check(tmp_path, workers=0)
        assert len(report.cases) == 3
        unread = sorted(one.file.name for one in report.findings if one.code == "not_read")
        assert unread == ["b-swi.nii", "brain_mask.nii"]
        (tmp_path / "a" / "a-t1n.nii").unlink()
        with pytest.raises(DataError, match=r"each case needs one file .*\n  \S+a: no file of t1n\n"):
            read_layout(tmp_path)

    def test_a_label_of_something_else_is_not_passed_over_where_there_is_no_other(self, tmp_path):
        make_brats(tmp_path, "a", "b", label="tumour_seg")
        layout = read_layout(tmp_path)
        assert [case.label for case in layout.cases] == [None, None]
        assert [path.name for path in layout.labels_without_image] == ["a-tumour_seg.nii", "b-tumour_seg.nii"]

    @pytest.mark.parametrize("twice", ["a/t1c.nii", "a/A-T1C.nii.gz"])
    def test_two_files_of_one_modality_are_an_error(self, tmp_path, twice):
        make_brats(tmp_path, "a", "b")
        make(tmp_path, twice)
        with pytest.raises(DataError, match=r"and .* are both of t1c\n"):
            read_layout(tmp_path)

    @pytest.mark.parametrize(
        "files",
        [
            ["p1/a.nii", "p1/a_seg.nii", "p1/b.nii", "p1/b_seg.nii", "p2/a.nii", "p2/a_seg.nii", "p2/b.nii"],
            ["p1/scan.nii", "p1/label.nii", "p2/scan.nii", "p2/label.nii"],
            ["p1/visit1.nii", "p1/visit2.nii", "p2/visit1.nii", "p2/visit2.nii"],
            ["p1/t1.nii", "p2/t2.nii", "p3/flair.nii"],
            ["p1/t1.nii", "p1/t1_seg.nii", "p1/t2.nii", "p1/t2_seg.nii", "p2/t1.nii", "p2/t2.nii"],
            ["p1/p1_ct.nii", "p1/p1_ct_seg.nii", "p1/p1_pet.nii", "p2/p2_ct.nii", "p2/p2_pet.nii"],
            ["a.nii", "a_label.nii", "old/ct.nii", "old/pet.nii"],
            ["one/scan.nii", "one/scan_label.nii", "one/scan_1.nii", "one/scan_1_label.nii"],
            ["p1/image.nii", "p1/image_label.nii", "p1/mask.nii", "p2/image.nii", "p2/image_label.nii"],
            ["train/01.nii", "train/02.nii", "test/01.nii", "test/02.nii", "test/label.nii"],
        ],
    )
    def test_scans_of_one_patient_labels_and_numbers_are_no_modalities(self, tmp_path, files):
        make(tmp_path, *files)
        layout = read_layout(tmp_path)
        assert layout.name == "pairs"
        assert all(len(case.images) == 1 for case in layout.cases)

    def test_a_folders_name_is_left_out_as_a_word_alone(self, tmp_path):
        make_brats(tmp_path, "T1", "F", modalities=("t1", "t1ce", "flair"))
        assert declared(tmp_path).channels == ("flair", "t1", "t1ce")
        for path in tmp_path.rglob("*.nii"):
            path.rename(path.with_name(path.name.removeprefix(f"{path.parent.name}-")))
        assert declared(tmp_path).channels == ("flair", "t1", "t1ce")
        assert [case.label is None for case in read_cases(tmp_path)] == [False, False]

    def test_a_configuration_takes_modalities_by_name(self, tmp_path):
        make_brats(tmp_path, "a", "b", "c")
        (tmp_path / "b" / "b-t2f.nii").unlink()  # not wanted
        dataset = DatasetConfig(name="made", classes=("background", "tumour"), channels=("T1n", "t1c"))
        layout = read_layout(tmp_path, dataset, "modalities")
        assert [Path(str(image)).name for image in layout.cases[0].images] == ["a-t1n.nii", "a-t1c.nii"]
        assert (layout.contradictions, layout.others) == ((), ())
        describe(tmp_path, labels={"background": 0, "tumour": 2, "oedema": 1})
        assert [odd.code for odd in read_layout(tmp_path, dataset, "modalities").contradictions] == ["class_order"]
        other = dataset.model_copy(update={"channels": ("t1", "t2")})
        with pytest.raises(ConfigError, match=r"names t1, t2, but the files of cases are named t1c, t1n, t2f;"):
            read_layout(tmp_path, other, "modalities")

    def test_asked_for_where_there_are_none_it_finds_none(self, tmp_path):
        make(tmp_path, "p1/a.nii", "p2/b.nii", "p3/c.nii")
        assert LAYOUTS["modalities"].read(tmp_path).cases == ()
        with pytest.raises(DataError, match="no volume found"):
            check(tmp_path, layout="modalities", workers=0)


class TestUnread:
    @pytest.mark.parametrize(
        ("layout", "read", "unread"),
        [
            ("folders", ["images/a.nii", "labels/a.nii"], ["loose.nii", "old/deep/b.nii"]),
            ("dicom", ["labels/p1.nii"], ["loose.nii", "nifti/b.nii", "p1/c.nii"]),
            ("pairs", ["a.nii", "p1/b.nii", "p1/b_gt.nii"], ["p1/deep/c.nii", "x/y/z/d.nii"]),
        ],
    )
    def test_volumes_where_a_layout_does_not_look_are_said(self, tmp_path, layout, read, unread):
        if layout == "dicom":
            make_series(tmp_path / "p1")
        make(tmp_path, *read, *unread, ".cache/x.nii")
        report = check(tmp_path, workers=0)
        assert report.layout == layout
        assert [f.file for f in report.findings if f.code == "not_read"] == [tmp_path / name for name in unread]


class TestMsd:
    def test_listed_pairs_come_in_their_order_and_unlisted_images_are_unlabelled(self, tmp_path):
        make(tmp_path, "imagesTr/a.nii", "imagesTr/b.nii", "imagesTr/c.nii", "labelsTr/a.nii", "imagesTs/d.nii")
        describe(
            tmp_path,
            training=[{"image": "./imagesTr/b.nii"}, {"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}],
            test=["./imagesTs/d.nii"],
        )
        assert pairs(read_cases(tmp_path), tmp_path) == [
            ("b", "imagesTr/b.nii", None),
            ("a", "imagesTr/a.nii", "labelsTr/a.nii"),
            ("c", "imagesTr/c.nii", None),
        ]

    def test_a_listed_label_that_is_absent_leaves_its_case_unlabelled_but_not_unsaid(self, tmp_path):
        make(tmp_path, "imagesTr/a.nii")
        describe(tmp_path, training=[{"image": "imagesTr/a.nii", "label": "labelsTr/a.nii"}])
        layout = read_layout(tmp_path)
        assert pairs(layout.cases, tmp_path) == [("a", "imagesTr/a.nii", None)]
        assert layout.absent_labels == (("a", tmp_path / "labelsTr/a.nii"),)

    def test_labels_that_are_not_listed_or_lack_an_image(self, tmp_path):
        make(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii", "labelsTr/b.nii")
        describe(tmp_path, training=[])
        layout = read_layout(tmp_path)
        assert pairs(layout.cases, tmp_path) == [("a", "imagesTr/a.nii", None)]
        assert layout.unlisted_labels == (tmp_path / "labelsTr/a.nii",)
        assert layout.labels_without_image == (tmp_path / "labelsTr/b.nii",)

    def test_listed_twice_is_two_cases_and_listed_but_absent_is_one(self, tmp_path):
        make(tmp_path, "imagesTr/a.nii")
        describe(tmp_path, training=[{"image": f"imagesTr/{name}.nii"} for name in "aab"])
        assert [case.id for case in read_cases(tmp_path)] == ["a", "a", "b"]

    @pytest.mark.parametrize("entry", [{"label": "a.nii"}, {"image": ["a.nii", 3]}, 3, {"image": 3}])
    def test_an_entry_that_does_not_fit_is_shown(self, tmp_path, entry):
        make(tmp_path, "imagesTr/a.nii")
        describe(tmp_path, training=[{"image": "imagesTr/a.nii"}, entry])
        with pytest.raises(DataError, match=r"dataset\.json: entry 1"):
            read_cases(tmp_path)

    def test_an_entry_may_list_a_file_for_each_modality(self, tmp_path):
        make(tmp_path, "imagesTr/a_t1.nii", "imagesTr/a_t2.nii", "labelsTr/a.nii")
        images = ["imagesTr/a_t1.nii", "imagesTr/a_t2.nii"]
        describe(tmp_path, training=[{"image": images, "label": "labelsTr/a.nii"}])
        assert pairs(read_cases(tmp_path), tmp_path) == [("a_t1", *images, "labelsTr/a.nii")]


class TestChannels:
    """Files of one channel each, in the folders of two layouts."""

    @pytest.fixture(params=[("folders", "images", "labels"), ("nnunet", "imagesTr", "labelsTr")], ids=lambda p: p[0])
    def layout(self, request, tmp_path):
        name, images, labels = request.param

        def build(*names):
            make(tmp_path, *(name.replace("images", images).replace("labels", labels) for name in names))
            return [(id, *(Path(f).name for f in files if f)) for id, *files in pairs(read_cases(tmp_path), tmp_path)]

        yield build
        if (tmp_path / images).is_dir():
            assert find_reader(tmp_path).name == name

    def test_are_one_case_in_the_order_of_their_numbers(self, layout):
        found = layout(
            "images/a_0001.nii", "images/a_0000.nii", "images/b_0000.nii", "images/b_0001.nii", "labels/a.nii"
        )
        assert found == [("a", "a_0000.nii", "a_0001.nii", "a.nii"), ("b", "b_0000.nii", "b_0001.nii")]

    def test_one_channel_loses_its_number(self, layout):
        assert layout("images/a_0000.nii", "images/b_0000.nii", "labels/a.nii") == [
            ("a", "a_0000.nii", "a.nii"),
            ("b", "b_0000.nii"),
        ]

    def test_every_case_that_lacks_one_is_named(self, layout):
        with pytest.raises(DataError, match=r"(?s)numbered _0000.*  b  b_0001.nii.*  c  c_0000.nii, c_0002.nii"):
            layout(*(f"images/{n}.nii" for n in ("a_0000", "a_0001", "b_0001", "c_0000", "c_0002")), "labels/a.nii")

    def test_numbers_of_cases_are_no_channels(self, tmp_path):
        make(tmp_path, *(f"{folder}/scan_{n:04}.nii" for n in range(3) for folder in ("images", "labels")))
        assert [case.id for case in read_cases(tmp_path)] == ["scan_0000", "scan_0001", "scan_0002"]

    def test_without_labels_a_single_row_of_numbers_counts_cases(self, tmp_path):
        make(tmp_path, *(f"images/scan_{n:04}.nii" for n in range(3)))
        assert len(read_cases(tmp_path)) == 3


class TestNnunet:
    def test_pairs_go_by_name_and_unlabelled_images_by_folder_or_by_a_missing_label(self, tmp_path):
        root = tmp_path / "Dataset001_X"
        names = ("imagesTr/a", "imagesTr/b", "imagesUn/c", "imagesTs/d")
        make(root, *(f"{name}_0000.nii" for name in names), "labelsTr/a.nii", "labelsTs/d.nii")
        describe(root, channel_names={"0": "CT"}, labels={"background": 0, "tooth": 1}, numTraining=2)
        assert read_layout(root).name == "nnunet"
        assert pairs(read_cases(root), root) == [
            ("a", "imagesTr/a_0000.nii", "labelsTr/a.nii"),
            ("b", "imagesTr/b_0000.nii", None),
            ("c", "imagesUn/c_0000.nii", None),
        ]

    def test_the_first_version_lists_names_without_channels(self, tmp_path):
        make(tmp_path, "imagesTr/a_0000.nii", "labelsTr/a.nii")
        describe(tmp_path, training=[{"image": "imagesTr/a.nii", "label": "labelsTr/a.nii"}])
        assert pairs(read_cases(tmp_path), tmp_path) == [("a", "imagesTr/a_0000.nii", "labelsTr/a.nii")]

    def test_a_dataset_that_lists_its_files_wins_over_the_folders(self, tmp_path):
        make(tmp_path, "imagesTr/no_0000.nii")
        describe(
            tmp_path, dataset={"a": {"images": ["x/1.nii", "x/2.nii"], "label": "y.nii"}, "b": {"images": ["z.nii"]}}
        )
        assert pairs(read_cases(tmp_path), tmp_path) == [("a", "x/1.nii", "x/2.nii", "y.nii"), ("b", "z.nii", None)]

    def test_listed_files_may_name_environment_variables_as_nnunet_has_them(self, tmp_path, monkeypatch):
        entry = {"images": ["${nnUNet_raw}/Dataset001/x.nii"], "label": "$nnUNet_raw/y.nii"}
        (tmp_path / "here").mkdir()
        describe(tmp_path / "here", dataset={"a": entry})
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
        (case,) = read_cases(tmp_path / "here")
        assert [source.path for source in case.sources] == [tmp_path / "raw/Dataset001/x.nii", tmp_path / "raw/y.nii"]
        monkeypatch.delenv("nnUNet_raw")
        with pytest.raises(DataError, match=r"dataset\.json: .*variable \$\{nnUNet_raw\} is not set"):
            read_cases(tmp_path / "here")

    @pytest.mark.parametrize(
        "entry", [{}, {"images": []}, {"images": "a"}, {"images": [3]}, {"images": ["a"], "label": 1}, 3]
    )
    def test_a_listed_case_that_does_not_fit_is_shown(self, tmp_path, entry):
        describe(tmp_path, dataset={"a": entry})
        with pytest.raises(DataError, match="case a of `dataset`"):
            read_cases(tmp_path)

    def test_a_label_without_image_and_a_stranger(self, tmp_path):
        make(tmp_path, "imagesTr/a_0000.nii", "labelsTr/b.nii")
        (tmp_path / "imagesTr" / "notes.txt").touch()
        layout = read_layout(tmp_path)
        assert [path.name for path in (*layout.labels_without_image, *layout.others)] == ["b.nii", "notes.txt"]


class TestAcdc:
    def patient(self, root, name, frames=4, annotated=(1, 3), cine=True, gt=True):
        stem = f"{name}/{Path(name).name}"
        make(root, *(f"{stem}_frame{n:02}.nii.gz" for n in annotated))
        make(root, *(f"{stem}_frame{n:02}_gt.nii.gz" for n in annotated if gt))
        make(root, *([f"{stem}_4d.nii.gz"] if cine else []))
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "Info.cfg").write_text(f"ED: 1\nES: 3\nGroup: DCM\nNbFrame: {frames}\n")

    def test_all_frames_are_cases_and_none_is_there_twice(self, tmp_path):
        self.patient(tmp_path, "patient001")
        stem = "patient001/patient001"
        assert pairs(read_cases(tmp_path), tmp_path) == [
            ("patient001_frame01", f"{stem}_frame01.nii.gz", f"{stem}_frame01_gt.nii.gz"),
            ("patient001_frame03", f"{stem}_frame03.nii.gz", f"{stem}_frame03_gt.nii.gz"),
            ("patient001_frame02", f"{stem}_4d.nii.gz#1", None),
            ("patient001_frame04", f"{stem}_4d.nii.gz#3", None),
        ]
        assert {case.subject for case in read_cases(tmp_path)} == {"patient001"}

    @pytest.mark.parametrize("parent", ["", "database/"])
    def test_the_published_halves_and_the_part_they_stand_for(self, tmp_path, parent):
        self.patient(tmp_path, f"{parent}training/patient001", cine=False)
        self.patient(tmp_path, f"{parent}testing/patient101", gt=False)
        cases = read_cases(tmp_path)
        assert {(case.subject, case.part) for case in cases} == {("patient001", None), ("patient101", "test")}
        assert {case.subject for case in cases if case.label} == {"patient001"}
        assert len(cases) == 2 + 4

    def test_a_frame_of_the_cine_is_the_one_of_that_number(self, tmp_path):
        self.patient(tmp_path, "patient001", cine=False, annotated=())
        voxels = np.arange(5 * 6 * 7 * 4, dtype=np.int16).reshape(5, 6, 7, 4)
        write_image(tmp_path / "patient001/patient001_4d.nii.gz", voxels, np.eye(4))
        case = next(case for case in read_cases(tmp_path) if case.id == "patient001_frame03")
        first = read_image(*case.images)
        np.testing.assert_array_equal(first.array, voxels[..., 2])
        first.array[...] = -1  # a reader's array is its own, though the file stays in memory for the next frame
        np.testing.assert_array_equal(read_image(*case.images).array, voxels[..., 2])
        write_image(tmp_path / "patient001/patient001_4d.nii.gz", voxels[..., ::-1] + 7, np.eye(4))
        np.testing.assert_array_equal(read_image(*case.images).array, voxels[..., 1] + 7)

    def test_a_rule_for_patients_is_not_needed(self, tmp_path):
        self.patient(tmp_path, "patient001", cine=False)
        config = DatasetConfig(name="x", classes=("a", "b"), subject=SubjectRule(pattern="(nobody)"))
        assert {case.subject for case in read_cases(tmp_path, config)} == {"patient001"}

    def test_information_without_frames_is_refused(self, tmp_path):
        self.patient(tmp_path, "patient001")
        (tmp_path / "patient001/Info.cfg").write_text("ED: 1\n")
        with pytest.raises(DataError, match=r"Info\.cfg.*NbFrame"):
            read_cases(tmp_path)

    def test_its_classes_are_known(self, tmp_path):
        self.patient(tmp_path, "patient001", annotated=(1,))
        assert declared(tmp_path).classes == ("background", "right ventricle", "myocardium", "left ventricle")


class TestLa:
    def test_a_case_is_named_by_its_folder(self, tmp_path):
        make_nrrd(tmp_path, "Training Set/A/lgemri.nrrd", "Training Set/A/laendo.nrrd", "Testing Set/B/lgemri.nrrd")
        (tmp_path / "Training Set/A/desktop.ini").touch()
        assert pairs(read_cases(tmp_path), tmp_path) == [
            ("B", "Testing Set/B/lgemri.nrrd", None),
            ("A", "Training Set/A/lgemri.nrrd", "Training Set/A/laendo.nrrd"),
        ]
        assert [case.part for case in read_cases(tmp_path)] == ["test", None]

    def test_the_atrium_is_255(self, tmp_path):
        make_nrrd(tmp_path, "A/lgemri.nrrd", "B/laendo.nrrd")
        assert declared(tmp_path).config("la").places == {0: 0, 255: 1}
        assert read_layout(tmp_path).labels_without_image == (tmp_path / "B/laendo.nrrd",)


class TestSsl4mis:
    def test_uamt_names_cases_by_folder_and_the_lists_say_the_part(self, tmp_path):
        make_h5(tmp_path, *(f"2018LA/{name}/mri_norm2.h5" for name in "ABC"))
        (tmp_path / "train.list").write_text("B\nA\n")
        (tmp_path / "test.list").write_text("C\n")
        assert pairs(read_cases(tmp_path), tmp_path) == [
            (id, *(f"2018LA/{id}/mri_norm2.h5#{part}@xyz@0.625" for part in ("image", "label"))) for id in "BAC"
        ]
        assert {case.id: case.part for case in read_cases(tmp_path)} == {"A": "train", "B": "train", "C": "test"}
        assert read_image(*read_cases(tmp_path)[0].images).spacing == (0.625, 0.625, 0.625)

    def test_two_files_of_one_name_are_found(self, tmp_path):
        make_h5(tmp_path, "one/a.h5", "two/a.h5", "two/b.h5")
        assert [case.id for case in read_cases(tmp_path)] == ["a", "a", "b"]
        assert ("a", "duplicate") in {(finding.case, finding.code) for finding in check(tmp_path, workers=0).errors}

    def test_ssl4mis_volumes_have_other_axes_patients_and_no_slices(self, tmp_path):
        make_h5(tmp_path, "data/patient001_frame01.h5", "data/slices/patient001_frame01_slice_1.h5")
        make_h5(tmp_path, "data/patient001_frame02.h5", label=False)
        (tmp_path / "train_slices.list").write_text("patient001_frame01_slice_1\n")
        assert pairs(read_cases(tmp_path), tmp_path) == [
            ("patient001_frame01", *(f"data/patient001_frame01.h5#{part}@zyx" for part in ("image", "label"))),
            ("patient001_frame02", "data/patient001_frame02.h5#image@zyx", None),
        ]
        assert {case.subject for case in read_cases(tmp_path)} == {"patient001"}
        assert read_image(*read_cases(tmp_path)[0].images).shape == (7, 6, 5)

    def test_a_datalist_says_what_a_file_does_not(self, tmp_path):
        make_h5(tmp_path, "a.h5")
        (tmp_path / "x.csv").write_text("image\na.h5#image@zyx@1.5x1.25x10\n")
        image = read_image(*read_cases(tmp_path / "x.csv")[0].images)
        assert (image.shape, image.spacing) == ((7, 6, 5), (1.5, 1.25, 10.0))
        for part in ("image@yxz", "image@xyz@", "image@xyz@1x2", "image@xyz@0", "image@1.2.3"):
            with pytest.raises((DataError, ConfigError), match=r"image@zyx|spacing"):
                read_image(Source(tmp_path / "a.h5", part))

    def test_labelled_and_unlabelled_lists_refine_that_of_training(self, tmp_path):
        make_h5(tmp_path, "a.h5", "b.h5", "c.h5")
        for name, ids in {"train": "a b c", "train_lab": "a", "train_unlab": "b.h5 c"}.items():
            (tmp_path / f"{name}.txt").write_text("\n".join(ids.split()))
        parts = {case.id: case.part for case in read_cases(tmp_path)}
        assert parts == {"a": "labelled", "b": "unlabelled", "c": "unlabelled"}

    def test_a_case_in_two_parts_is_refused(self, tmp_path):
        make_h5(tmp_path, "a.h5")
        for name in ("train", "test"):
            (tmp_path / f"{name}.list").write_text("a\n")
        with pytest.raises(DataError, match=r"test\.list: lists a for test, and .*train\.list lists it for train"):
            read_cases(tmp_path)

    def test_a_listed_case_without_a_file_is_left_for_check_to_name(self, tmp_path):
        make_h5(tmp_path, "a.h5")
        (tmp_path / "train.list").write_text("a\nb\n")
        (fault,) = check(tmp_path, workers=0).errors
        assert (fault.case, fault.code) == ("b", "unreadable")


class TestDicom:
    def test_a_case_is_named_by_its_patient_and_by_the_way_to_it_where_there_are_several(self, tmp_path):
        for folder in ("anna/study/one", "bert/pre", "bert/post"):
            make_series(tmp_path / folder)
        make(tmp_path, "labels/anna.nii.gz", "labels/bert_pre.nii.gz", "labels/carl.nii.gz")
        layout = read_layout(tmp_path)
        assert layout.name == "dicom"
        assert pairs(layout.cases, tmp_path) == [
            ("anna", "anna/study/one", "labels/anna.nii.gz"),
            ("bert_post", "bert/post", None),
            ("bert_pre", "bert/pre", "labels/bert_pre.nii.gz"),
        ]
        assert [case.subject for case in layout.cases] == ["anna", "bert", "bert"]
        assert [path.name for path in layout.labels_without_image] == ["carl.nii.gz"]
        assert read_image(*layout.cases[0].images).shape == (5, 6, 3)

    @pytest.mark.parametrize(
        ("numbers", "patients", "ids"),
        [
            (("17", "18", "18"), ["p1", "p2", "p2"], ["p1", "p2_post", "p2_pre"]),
            (("17", "17", "17"), ["DICOM"] * 3, ["DICOM_p1", "DICOM_p2_post", "DICOM_p2_pre"]),  # or all called alike
            (("", "", "17"), ["DICOM"] * 3, ["DICOM_p1", "DICOM_p2_post", "DICOM_p2_pre"]),
        ],
    )
    def test_patients_inside_a_single_folder_are_told_by_their_headers(self, tmp_path, numbers, patients, ids):
        for folder, number in zip(("p1", "p2/post", "p2/pre"), numbers, strict=True):
            make_series(tmp_path / "DICOM" / folder, patient=number)
        layout = read_layout(tmp_path)
        assert [case.subject for case in layout.cases] == patients
        assert [case.id for case in layout.cases] == ids
        assert read_image(*layout.cases[0].images).shape == (5, 6, 3)

    @pytest.mark.parametrize("top", ["DICOM", ""])
    def test_studies_belong_to_the_patient_of_their_headers(self, tmp_path, top):
        for folder, number in zip(("st1", "st2", "st3"), ("17", "18", "17"), strict=True):
            make_series(tmp_path / top / folder, patient=number)
        assert [(case.id, case.subject) for case in read_layout(tmp_path).cases] == [
            ("st1", "st1"), ("st2", "st2"), ("st3", "st1")
        ]  # fmt: skip

    def test_slices_in_the_source_itself_are_a_case(self, tmp_path):
        source = tmp_path / "scan"
        make_series(source, patient="17")
        assert [case.id for case in read_layout(source, layout="dicom").cases] == ["scan"]
        make_series(source / "st2", patient="18")
        assert {case.id for case in read_layout(source, layout="dicom").cases} == {"scan", "st2"}

    def test_folders_are_listed_once(self, tmp_path, monkeypatch):
        for number in ("1", "2", "3"):
            make_series(tmp_path / "DICOM" / number, patient=number)
        listed = []

        def counted(function):
            return lambda folder: listed.append(Path(folder)) or function(folder)

        monkeypatch.setattr(os, "scandir", counted(os.scandir))
        monkeypatch.setattr(os, "listdir", counted(os.listdir))
        layout = read_layout(tmp_path, layout="dicom")
        assert [case.subject for case in layout.cases] == ["1", "2", "3"]
        inside = [folder for folder in listed if folder != tmp_path]  # where labels/ is looked for
        assert sorted(inside) == sorted(tmp_path / "DICOM" / number for number in ("", "1", "2", "3"))

    def test_slices_beside_folders_of_slices_are_the_same_patients(self, tmp_path):
        for folder in ("DICOM", "DICOM/S2", "DICOM/S3"):
            make_series(tmp_path / folder)
        cases = read_layout(tmp_path).cases
        assert {case.id: case.subject for case in cases} == dict.fromkeys(("DICOM", "DICOM_S2", "DICOM_S3"), "DICOM")

    def test_a_series_in_several_folders_is_told_of_once_and_copies_are_copies(self, tmp_path):
        for folder, uid, slices in (("p1", "1.2.3", 3), ("p2", "1.2.3", 4), ("p3", "1.2.3", 5), ("p4", "1.2.4", 3)):
            make_series(tmp_path / folder, uid=uid, slices=slices)
        shutil.copytree(tmp_path / "p4", tmp_path / "p5")
        found = {
            (f.case, f.code): f
            for f in check(tmp_path, workers=0).findings
            if f.code in ("divided_series", "same_image")
        }
        assert set(found) == {("p1", "divided_series"), ("p4", "same_image"), ("p5", "same_image")}
        assert "p2, p3" in found["p1", "divided_series"].found

    def test_the_source_may_be_the_series(self, tmp_path):
        make_series(tmp_path / "scan")
        assert pairs(read_cases(tmp_path / "scan"), tmp_path) == [("scan", "scan", None)]

    def test_series_among_the_images_of_folders(self, tmp_path):
        make_series(tmp_path / "images" / "a")
        make(tmp_path, "images/b.nii", "labels/a.nii")
        layout = read_layout(tmp_path)
        assert pairs(layout.cases, tmp_path) == [("b", "images/b.nii", None), ("a", "images/a", "labels/a.nii")]
        assert layout.others == ()

    def test_of_several_series_in_a_folder_a_datalist_picks_one(self, tmp_path):
        make_series(tmp_path / "more", uid="1.2.3")
        make_series(tmp_path / "scan", uid="1.2.4", slices=4)
        for path in (tmp_path / "more").iterdir():
            path.rename(tmp_path / "scan" / path.name)
        (fault,) = check(tmp_path, layout="dicom", workers=0).errors
        assert "1.2.3" in fault.found
        assert "1.2.4" in fault.found
        (tmp_path / "list.csv").write_text("id,image\na,scan#1.2.4\n")
        assert read_image(*read_cases(tmp_path / "list.csv")[0].images).shape == (5, 6, 4)


class TestPairs:
    def test_in_one_folder_by_the_last_word_of_the_name(self, tmp_path):
        make(tmp_path, "a.nii", "a_label.nii.gz", "b-x.nii", "b-x.seg.nii", "c.nii", "d_gt.nii", "glabel.nii")
        layout = read_layout(tmp_path)
        assert layout.name == "pairs"
        assert pairs(layout.cases, tmp_path) == [
            ("a", "a.nii", "a_label.nii.gz"),
            ("b-x", "b-x.nii", "b-x.seg.nii"),
            ("c", "c.nii", None),
            ("glabel", "glabel.nii", None),
        ]
        assert [path.name for path in layout.labels_without_image] == ["d_gt.nii"]

    def test_in_a_folder_for_each_case(self, tmp_path):
        make(tmp_path, "p1/image.nii", "p1/label.nii", "p2/ct.nii", "p3/x.nii", "p3/y.nii", "p3/y_mask.nii")
        cases = read_cases(tmp_path)
        assert pairs(cases, tmp_path) == [
            ("p1", "p1/image.nii", "p1/label.nii"),
            ("p2", "p2/ct.nii", None),
            ("p3_x", "p3/x.nii", None),
            ("p3_y", "p3/y.nii", "p3/y_mask.nii"),
        ]
        assert [case.subject for case in cases] == ["p1", "p2", "p3", "p3"]

    def test_one_folder_of_all_images_is_no_patient(self, tmp_path):
        make(tmp_path, "scans/x.nii", "scans/y.nii", "scans/y_gt.nii", "scans/z.nii")
        assert [(case.id, case.subject) for case in read_cases(tmp_path)] == [(f"scans_{n}",) * 2 for n in "xyz"]

    @pytest.mark.parametrize("image", ["T1.nii", "p1/T1.nii", "p1/ct.nii"])
    def test_two_labels_of_one_image_are_an_error_that_names_both(self, tmp_path, image):
        first, second = ("gt.nii", "mask.nii") if "ct" in image else ("T1_gt.nii", "T1_mask.nii")
        folder = (tmp_path / image).parent
        make(tmp_path, image, str(folder / first), str(folder / second))
        (finding,) = [finding for finding in check(tmp_path, workers=0).errors if finding.code == "duplicate"]
        assert finding.found == f"2 cases have this id: {Path(image).name}, {first}, {second}"


class TestDatalist:
    def read(self, path, text, **options):
        path.write_text(text, **options)
        return read_cases(path)

    def test_csv_names_everything(self, tmp_path):
        cases = self.read(
            tmp_path / "x.csv",
            "id,image,label,patient,split,age\na,s/1.nii,s/1_gt.nii,anna,train,7\n\nb,/abs/2.nii,,anna,Test,8\n",
            encoding="utf-8-sig",
        )
        assert pairs(cases, tmp_path) == [("a", "s/1.nii", "s/1_gt.nii"), ("b", "/abs/2.nii", None)]
        assert [(case.subject, case.part) for case in cases] == [("anna", "train"), ("anna", "test")]

    @pytest.mark.parametrize(
        "text",
        ["image_0,image_1\na_0000.nii,b.nii\n", "images\na_0000.nii; b.nii\n", "image_1;image_0\nb.nii;a_0000.nii\n"],
    )
    def test_csv_names_several_images(self, tmp_path, text):
        assert pairs(self.read(tmp_path / "x.csv", text), tmp_path) == [("a", "a_0000.nii", "b.nii", None)]

    def test_csv_of_a_spreadsheet_may_have_empty_and_foreign_columns_and_short_rows(self, tmp_path):
        text = "id,image,note,note,,\na,a.nii,x,y,,\nb,b.nii\n"
        assert pairs(self.read(tmp_path / "x.csv", text), tmp_path) == [("a", "a.nii", None), ("b", "b.nii", None)]

    def test_json_of_monai(self, tmp_path):
        lists = {
            "name": "x",
            "numTraining": 1,
            "training": [{"image": ["a.nii", "b.nii"], "label": "l.nii", "fold": 0}],
            "validation": [{"image": "c.nii", "label": "m.nii"}],
            "test": ["d.nii"],
        }
        cases = self.read(tmp_path / "x.json", json.dumps(lists))
        assert pairs(cases, tmp_path) == [
            ("a", "a.nii", "b.nii", "l.nii"),
            ("c", "c.nii", "m.nii"),
            ("d", "d.nii", None),
        ]
        assert [case.part for case in cases] == ["train", "val", "test"]

    def test_json_as_a_list(self, tmp_path):
        entries = [{"id": 7, "image": "cine.nii.gz#3", "patient": "p", "split": "unlabeled"}]
        (case,) = self.read(tmp_path / "x.json", json.dumps(entries))
        assert (case.id, case.images[0].part, case.subject, case.part) == ("7", "3", "p", "unlabelled")

    def test_numbers_of_channels_may_have_leading_zeros(self, tmp_path):
        for header in ("image_0,image_01", "image_01,image_00"):
            (case,) = self.read(tmp_path / "x.csv", f"{header}\n{header}\n")
            assert [source.path.name for source in case.images] == sorted(header.split(","))

    def test_patients_are_named_for_all_or_for_none(self, tmp_path):
        path = tmp_path / "list.csv"
        path.write_text("image,patient\np1_x.nii,anna\np1_y.nii,\np2_x.nii,bert\n")
        said = r"list\.csv: no `patient` for 1 of 3 cases: p1_y; name the patient of all cases, or of none"
        with pytest.raises(DataError, match=said):
            read_cases(path)

    def test_its_patients_win_over_a_rule_which_is_asked_without_them(self, tmp_path):
        config = DatasetConfig(name="x", classes=("a", "b"), subject=SubjectRule(pattern=r"(p\d)"))
        for header, subject in (("image,patient\np1_x.nii,anna\n", "anna"), ("image\np1_x.nii\n", "p1")):
            (tmp_path / "x.csv").write_text(header)
            assert [case.subject for case in read_cases(tmp_path / "x.csv", config)] == [subject]

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("x.csv", "id,lable,image\n", "'lable'; did you mean 'label'"),
            ("x.csv", "id,file\n", "no column `image`.*found id, file"),
            ("x.csv", "", "found none"),
            ("x.csv", "image,split\na.nii,maybe\n", "line 2: split must be one of train.*, got 'maybe'"),
            ("x.csv", "image,split\na.nii,train,x\n", "line 2 has more cells than the 2 columns"),
            ("x.csv", "image,split\n\na.nii,maybe\n", "line 3: split must be .*, got 'maybe'"),
            ("x.csv", "image,label,image\na.nii,,b.nii\n", "two columns are called 'image'"),
            ("x.csv", "id,image\na,\n", "line 2 must name an image"),
            ("x.csv", "image_0,image_1\n,b.nii\n", "line 2 must name an image"),
            ("x.json", "{", "cannot be read as JSON"),
            ("x.json", "3", "expected a list"),
            ("x.json", '{"training": [3]}', "entry 0 of `training`"),
            ("x.json", '{"training": "a.nii"}', "expected a list of cases under 'training', found a.nii"),
            ("x.json", '{"trainings": [{"image": "a"}]}', "a list of cases under 'trainings'"),
            ("x.json", '[{"image": ["a", 3.5]}]', "entry 0 must name an image"),
        ],
    )
    def test_what_does_not_fit_is_said(self, tmp_path, name, text, words):
        with pytest.raises(DataError, match=rf"{re.escape(name)}.*{words}"):
            self.read(tmp_path / name, text)

    def test_what_is_written_reads_the_same(self, tmp_path):
        make(tmp_path / "data", "images/a_0000.nii", "images/a_0001.nii", "images/b_0000.nii", "images/b_0001.nii")
        make(tmp_path / "data", "labels/a.nii")
        cases = read_cases(tmp_path / "data")
        cases[0] = replace(cases[0], part="val", subject="é")
        for path in (tmp_path / "list.csv", tmp_path / "far" / "off" / "list.csv"):
            write_datalist(path, cases)
            assert read_cases(path) == cases

    def test_of_nothing_nothing_is_written(self, tmp_path):
        with pytest.raises(DataError, match="no case"):
            write_datalist(tmp_path / "x.csv", [])
        assert list(tmp_path.iterdir()) == []


class TestDetection:
    def test_the_message_says_what_was_looked_for_and_found(self, tmp_path):
        (tmp_path / "scans").mkdir()
        with pytest.raises(DataError, match=r"(?s)in this order.*imagesTr/.*images/ .*found scans/") as caught:
            read_cases(tmp_path)
        for name in LAYOUTS:
            assert re.search(rf"^    {name} ", str(caught.value), re.MULTILINE)

    def test_a_source_that_is_absent_or_a_file(self, tmp_path):
        with pytest.raises(DataError, match="no such file or folder"):
            read_cases(tmp_path / "absent")
        (tmp_path / "file.txt").touch()
        for name, content in (("a.nii.gz", b""), ("IM1", bytes(128) + b"DICM")):
            (tmp_path / name).write_bytes(content)
            said = f"{name}: a single file of a dataset; give the folder that holds the dataset"
            with pytest.raises(DataError, match=said):
                read_cases(tmp_path / name)
        with pytest.raises(DataError, match=r"(?s)no dataset found.*a file named \*\.txt"):
            read_cases(tmp_path / "file.txt")

    def test_the_order_decides_where_several_fit_and_a_name_overrules_it(self, tmp_path):
        make(tmp_path, "images/a.nii", "imagesTr/b_0000.nii", "imagesTr/c.nii", "labelsTr/c.nii")
        describe(tmp_path, training=[{"image": "imagesTr/c.nii", "label": "labelsTr/c.nii"}])
        fitting = [name for name, reader in LAYOUTS.items() if name != "datalist" and reader.fits(tmp_path)]
        assert fitting == ["nnunet", "msd", "folders", "pairs"]
        assert read_layout(tmp_path).name == "nnunet"
        assert [case.id for case in read_cases(tmp_path, layout="folders")] == ["a"]
        config = DatasetConfig(name="x", classes=("a", "b"), layout="msd")
        assert read_layout(tmp_path, config).name == "msd"
        assert read_layout(tmp_path, config, "folders").name == "folders"

    def test_an_unknown_name_and_one_that_cannot_be(self, tmp_path):
        with pytest.raises(ConfigError, match=r"layout 'nonsense' is unknown; choose one of datalist, nnunet"):
            read_cases(tmp_path, layout="nonsense")
        with pytest.raises(DataError, match="no dataset found"):
            read_cases(tmp_path, layout="datalist")
        with pytest.raises(DataError, match="layout la: no volume found"):
            check(tmp_path, layout="la")

    def test_check_names_the_layout(self, tmp_path):
        make(tmp_path, "images/a.nii")
        report = check(tmp_path, workers=0)
        assert report.to_json()["layout"] == "folders"
        console = Console(file=io.StringIO())
        report.print(console)
        assert "layout folders" in console.file.getvalue()

    def test_docs_show_every_layout_in_the_order_of_detection(self):
        page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
        names = re.findall(r"^\| `(\w+)` \|.*`medssl check .*` \|$", page, re.MULTILINE)
        assert names == list(LAYOUTS)


class TestCommands:
    """`medssl check` and `medssl prepare` take a datalist, and a layout by name."""

    @pytest.fixture
    def run(self, balls, tmp_path):
        config = {"data": {"name": "balls", "classes": ["background", "shell", "core"], "recipe": {"crop": False}}}
        dump(config, tmp_path / "balls.yaml")

        def run(command, *words):
            words = [command, *map(str, words), "--config", str(tmp_path / "balls.yaml"), "--workers", "0"]
            return CliRunner().invoke(app, words, catch_exceptions=False)

        return run

    def test_check_prints_the_layout(self, run, balls):
        assert "layout folders" in run("check", balls[0]).output
        assert json.loads(run("check", balls[0], "--layout", "folders", "--json").stdout)["layout"] == "folders"

    def test_a_name_that_does_not_fit_finds_nothing(self, run, balls):
        with pytest.raises(DataError, match="layout msd"):
            run("check", balls[0], "--layout", "msd")

    def test_a_datalist_gives_the_same_store_and_keeps_part_and_patient(self, run, balls, tmp_path):
        cases = read_cases(balls[0])
        write_datalist(tmp_path / "list.csv", [replace(case, part="test", subject="one") for case in cases])
        before = sorted((path, path.stat().st_mtime_ns) for path in balls[0].rglob("*"))
        assert run("prepare", tmp_path / "list.csv", tmp_path / "prepared").exit_code == 0
        assert sorted((path, path.stat().st_mtime_ns) for path in balls[0].rglob("*")) == before
        found = read_prepared(tmp_path / "prepared").cases
        assert {(case.subject, case.part) for case in found.values()} == {("one", "test")}
        for id, case in read_prepared(balls[1]).cases.items():
            np.testing.assert_array_equal(found[id].open_image()[...], case.open_image()[...])
            assert found[id].labelled == case.labelled

    def test_naming_the_layout_does_not_prepare_anew(self, run, balls, tmp_path):
        assert run("prepare", balls[0], tmp_path / "prepared").exit_code == 0
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("*.b2nd")}
        assert run("prepare", balls[0], tmp_path / "prepared", "--layout", "folders").exit_code == 0
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("*.b2nd")} == times


class TestDeclarations:
    @pytest.fixture
    def said(self, tmp_path):
        make(tmp_path, "images/a.nii")

        def say(**keys):
            describe(tmp_path, **keys)
            return declared(tmp_path)

        return say

    @pytest.mark.parametrize(
        "labels",
        [
            {"0": "background", "1": "a", "2": "b"},
            {"b": 2, "background": 0, "a": 1},
            {"2": "b", "0": "background", "1": "a"},
            ["background", "a", "b"],
        ],
    )
    def test_both_spellings_of_classes(self, said, labels):
        assert said(labels=labels) == Declared(classes=("background", "a", "b"))

    @pytest.mark.parametrize("key", ["modality", "channel_names"])
    def test_both_spellings_of_channels(self, said, key):
        assert said(**{key: {"1": "T2", "0": "T1"}}).channels == ("T1", "T2")

    def test_channels_have_no_gaps(self, said):
        with pytest.raises(DataError, match="numbered 0, 1"):
            said(modality={"0": "T1", "2": "T2"})

    def test_nothing_declared(self, tmp_path, said):
        assert declared(tmp_path) == said(name="x") == Declared()

    @pytest.mark.parametrize("labels", [{"0": "background", "3": "a", "9": "b"}, {"background": 0, "a": 3, "b": 9}])
    def test_gaps_between_values(self, said, labels):
        found = said(labels=labels)
        assert found.classes == ("background", "a", "b")
        assert found.config("x").places == {0: 0, 3: 1, 9: 2}

    @pytest.mark.parametrize(
        "labels", [{"background": 0, "a": 1, "ignore": 2}, {"0": "background", "1": "a", "2": "ignore"}]
    )
    def test_both_spellings_of_ignore(self, said, labels):
        found = said(labels=labels)
        assert (found.classes, found.ignore) == (("background", "a"), (2,))

    def test_overlapping_lists_are_regions_over_what_they_tell_apart(self, said):
        labels = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
        found = said(labels=labels)
        assert found.classes == ("background", "rest of whole tumour", "rest of core", "enhancing")
        assert found.regions == {
            "whole tumour": ("rest of whole tumour", "rest of core", "enhancing"),
            "core": ("rest of core", "enhancing"),
            "enhancing": ("enhancing",),
        }
        assert list(found.config("x").region_places.items()) == [("whole tumour", (1, 2, 3)), ("core", (2, 3))]
        assert found.config("x").places == {0: 0, 1: 1, 2: 2, 3: 3, 4: IGNORED}

    @pytest.mark.parametrize(
        "labels",
        [
            {"background": 0, "tooth": [11, 12], "jaw": [1]},
            {"0": "background", "11": "tooth", "12": "tooth", "1": "jaw"},
        ],
    )
    def test_a_list_that_overlaps_no_other_is_a_class(self, said, labels):
        found = said(labels=labels)
        assert found.classes == ("background", "jaw", "tooth")
        assert found.values == {"tooth": (11, 12)}
        assert found.regions == {}

    def test_crossing_regions_get_names_that_differ(self, said):
        found = said(labels={"background": 0, "a": [1, 2, 4], "b": [2, 3, 4]})
        assert len(set(found.classes)) == 4
        assert found.config("x").places == {0: 0, 1: 1, 2: 2, 4: 2, 3: 3}
        assert {name: len(classes) for name, classes in found.regions.items()} == {"a": 2, "b": 2}

    @pytest.mark.parametrize(
        "labels", [{"a": 1}, "a", {"background": 0}, {"0": "background", "a": "x"}, {"background": 0, "a": -1}]
    )
    def test_labels_that_do_not_fit(self, said, labels):
        with pytest.raises(DataError, match=r"dataset\.json: `labels`"):
            said(labels=labels)

    @pytest.mark.parametrize("text", ["{", "[1]", ""])
    def test_a_broken_description_is_named(self, tmp_path, text):
        (tmp_path / "images").mkdir()
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset\.json"):
            declared(tmp_path)

    def test_check_without_a_configuration_knows_them(self, tmp_path):
        make(tmp_path, "imagesTr/a_0000.nii")
        write_image(tmp_path / "labelsTr/a.nii", np.arange(210).reshape(5, 6, 7).astype(np.uint8) % 5, np.eye(4))
        labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}
        describe(tmp_path, channel_names={"0": "CT"}, labels=labels)
        report = check(tmp_path, workers=0)
        assert report.errors == ()
        assert report.classes == ("background", "rest of whole", "core")


class TestSubjects:
    def test_without_a_rule_each_case_is_its_own(self, tmp_path):
        make(tmp_path, "images/a.nii", "images/b.nii")
        assert [case.subject for case in read_cases(tmp_path)] == ["a", "b"]

    def test_by_pattern_and_by_table(self, tmp_path):
        make(tmp_path, "images/p1_x.nii", "images/p1_y.nii", "images/p2_x.nii")
        (tmp_path / "t.csv").write_text("case,who\np1_x,anna\np2_x,bert\np1_y,anna\n", encoding="utf-8-sig")
        rules = [SubjectRule(pattern=r"(p\d)"), SubjectRule(table="t.csv", subject_column="who")]
        configs = [DatasetConfig(name="x", classes=("background", "a"), subject=rule) for rule in rules]
        found = [[case.subject for case in read_cases(tmp_path, config)] for config in configs]
        assert found == [["p1", "p1", "p2"], ["anna", "anna", "bert"]]

    @pytest.mark.parametrize("between", [";", "\t"])
    def test_a_table_may_be_one_that_a_spreadsheet_wrote(self, tmp_path, between):
        (tmp_path / "t.csv").write_text(
            "\n".join(map(between.join, [("case", "subject"), ("a", "Meier, A"), ("b", "B")]))
        )
        assert subjects_of(["a", "b"], SubjectRule(table="t.csv"), tmp_path) == {"a": "Meier, A", "b": "B"}

    def test_spaces_around_a_name_make_no_other_patient(self, tmp_path):
        (tmp_path / "t.csv").write_text("case,subject\na ,P1\nb,P1 \n c, P1\nd,P1\u00a0\n", encoding="utf-8")
        assert set(subjects_of(["a", "b", "c", "d"], SubjectRule(table="t.csv"), tmp_path).values()) == {"P1"}

    def test_cases_that_the_rule_misses_are_named_and_many_are_counted(self, tmp_path):
        with pytest.raises(DataError, match=r"2 of 3 cases: b, c$"):
            subjects_of(["p1", "b", "c"], SubjectRule(pattern=r"(p\d)"), tmp_path)
        with pytest.raises(DataError, match=r"200 of 200 cases: 0, 1, .* and [0-9]+ more$"):
            subjects_of([*map(str, range(200))], SubjectRule(pattern=r"(p\d)"), tmp_path)

    def test_a_table_that_is_not_there_is_named_with_the_folder_it_was_sought_in(self, tmp_path):
        said = rf"^{tmp_path}/t.csv: no such file, .*; is {tmp_path} the folder of the dataset"
        with pytest.raises(ConfigError, match=said):
            subjects_of(["a"], SubjectRule(table="t.csv"), tmp_path)

    @pytest.mark.parametrize(
        ("text", "error", "word"),
        [
            ("case,x\na,1\n", ConfigError, "no column 'subject'"),
            ("case,subject\na,1\na,2\n", DataError, "case a has two patients, 1 and 2"),
        ],
    )
    def test_a_table_that_cannot_answer(self, tmp_path, text, error, word):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(error, match=word):
            subjects_of(["a"], SubjectRule(table="t.csv"), tmp_path)

    @pytest.mark.parametrize("pattern", ["(", "p", "(a)(b)"])
    def test_a_pattern_needs_one_group(self, pattern):
        with pytest.raises(ValueError, match="pattern"):
            SubjectRule(pattern=pattern)


@pytest.mark.parametrize(
    ("ids", "alike"),
    [
        (["patient001_frame01", "patient001_frame12", "patient002_frame01", "patient003_frame01"], (0, 1)),
        (["sub-01_ses-1", "sub-02_ses-1", "sub-03_ses-1", "sub-02_ses-2"], (1, 3)),
        (["BraTS-GLI-00000-000", "BraTS-GLI-00002-000", "BraTS-GLI-00002-001", "BraTS-GLI-00003-000"], (1, 2)),
        (["case1", "case2", "case3", "case3.b"], (2, 3)),
        (["hippocampus_001", "hippocampus_003", "hippocampus_004"], None),
        (["0RZDK210BSM", "0RZDK210ABC", "1D7CUD1955Y", "2XGY1PMQ4DW"], None),
        (["1a_x", "1b_x", "2_x", "3_x", "2_y"], None),  # not all of them begin like a patient
        ([f"scan{year}_{n:03}" for year in (2019, 2020, 2021) for n in range(30)], None),  # years, not patients
        (["a1_x", "a1_y", "a2_x", "a2_y"], None),  # too few to tell
    ],
)
def test_ids_that_look_like_several_scans_of_a_patient(ids, alike):
    assert namesakes({id: id for id in ids}) == (alike and tuple(ids[n] for n in alike))
    if alike:
        told = subjects_of(ids, SubjectRule(pattern=PATIENT_FIRST), Path())
        assert told[ids[alike[0]]] == told[ids[alike[1]]]
        assert len(set(told.values())) == 3
        assert namesakes(told) is None
