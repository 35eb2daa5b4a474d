import csv
import io
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from medssl.config import bundled
from medssl.data.cases import Case, DatasetConfig
from medssl.data.check import check, check_cases
from medssl.data.findings import Finding, require_usable
from medssl.data.io import read_label, write_image
from medssl.data.recipe import Intensity, Recipe
from medssl.data.volume import Source
from medssl.errors import DataError
from medssl.plan import plan
from medssl.prepare import prepare

SHAPE = (5, 6, 7)
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
DATASET = DatasetConfig(name="made", classes=("background", "wall", "cavity"))


def image_array(name="case"):
    return np.random.default_rng(list(name.encode())).integers(0, 500, SHAPE).astype(np.float32)


def label_array():
    label = np.zeros(SHAPE, np.int16)
    label[1:4, 1:4, 1:4] = 1
    label[2, 2, 2] = 2
    return label


class Pair:
    """One case on disk, sound until a test spoils it."""

    def __init__(self, root, name="case"):
        self.files = root / "images" / f"{name}.nii.gz", root / "labels" / f"{name}.nii.gz"
        self.case = Case(name, "one patient", (Source(self.files[0]),), Source(self.files[1]))
        self.image(image_array(name))
        self.label(label_array())

    def image(self, array, affine=AFFINE):
        write_image(self.files[0], array, affine)
        return self

    def label(self, array, affine=AFFINE):
        write_image(self.files[1], array, affine)
        return self

    def findings(self, dataset=DATASET):
        return list(check_cases([self.case], dataset).findings)

    def finding(self, dataset=DATASET):
        (found,) = [finding for finding in self.findings(dataset) if finding.case is not None]
        return found


@pytest.fixture
def pair(tmp_path):
    return Pair(tmp_path)


def expect(finding, severity, code, *words):
    assert (finding.severity, finding.code) == (severity, code)
    for word in words:
        assert word in finding.found
    assert finding.fix


def test_a_sound_case_has_no_finding(pair):
    assert pair.findings() == []


class TestImages:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_voxels_that_are_not_finite_are_counted_and_located(self, pair, value):
        array = image_array()
        array[3, 4, 5] = array[4, 0, 0] = value
        expect(pair.image(array).finding(), "error", "not_finite", "2 voxels", "(3, 4, 5)")

    def test_values_beyond_float32(self, pair):
        array = image_array().astype(np.float64)
        array[0, 1, 0] = 1e39
        expect(pair.image(array).finding(), "error", "not_finite", "1 voxel ", "(0, 1, 0)")

    def test_a_constant_image(self, pair):
        expect(pair.image(np.full(SHAPE, 7.0)).finding(), "warning", "constant", "7")

    @pytest.mark.parametrize("files", [1, 2])
    def test_a_background_of_0_in_normalised_scans_is_told_unless_the_recipe_knows(self, tmp_path, files):
        for case in ("a", "b"):
            image = np.zeros((9, 10, 11, 2), np.float32)
            image[2:-2, 2:-2, 2:-2] = np.random.default_rng(ord(case)).normal(size=(5, 6, 7, 2))
            for number in range(files):
                name = case if files == 1 else f"{case}_{number:04}"
                write_image(
                    tmp_path / "images" / f"{name}.nii.gz", image if files == 1 else image[..., number], np.eye(4)
                )
        dataset = DatasetConfig(name="made", classes=DATASET.classes, channels=("T1", "T2"))
        told = [one for one in check(tmp_path, dataset, workers=0).findings if one.code == "zero_background"]
        assert [(one.case, one.severity) for one in told] == [("a", "warning"), ("b", "warning")]
        assert "data.recipe.threshold=nonzero" in told[0].fix
        for recipe in (
            Recipe(threshold="nonzero"),
            Recipe(crop=False, intensity=Intensity(kind="clip", window=(0, 5))),
        ):
            knows = dataset.model_copy(update={"recipe": recipe})
            assert "zero_background" not in {one.code for one in check(tmp_path, knows, workers=0).findings}
        _, made = plan(
            tmp_path, tmp_path / "plan.yaml", dataset, vram=0, method=bundled("method/supervised.yaml"), workers=0
        )
        assert made.to_plain()["data"]["recipe"]["threshold"] == "nonzero"

    def test_label_among_the_images(self, pair):
        label = np.random.default_rng(0).choice([0, 1, 2, 5], SHAPE).astype(np.int16)
        expect(pair.image(label).finding(), "warning", "like_label", "0, 1, 2, 5", "label map")

    def test_several_volumes_where_one_is_declared(self, pair):
        array = np.stack([image_array()] * 2, -1)
        expect(pair.image(array).finding(), "error", "channels", "5 x 6 x 7 x 2", "2 volumes, but 1 channel declared")

    def test_channels_along_the_fourth_axis_are_right_when_declared(self, pair):
        two = DatasetConfig(name="made", classes=DATASET.classes, channels=("T1", "T2"))
        expect(pair.finding(two), "error", "channels", "1 volume, but 2 channels declared")
        array = np.stack([image_array(), np.ones(SHAPE)], -1)
        expect(pair.image(array).finding(two), "warning", "constant", "channel 1")

    def test_a_file_that_is_no_volume_says_what_it_is(self, pair):
        pair.files[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        finding = pair.finding()
        expect(finding, "error", "unreadable", "Git LFS")
        assert finding.file == pair.files[0]
        assert str(finding.file) not in finding.found

    def test_a_missing_image(self, pair):
        pair.files[0].unlink()
        expect(pair.finding(), "error", "unreadable", "no such file")


class TestGeometry:
    def test_one_slice(self, pair):
        pair.image(image_array()[..., :1]).label(label_array()[..., 2:3])
        assert {finding.code for finding in pair.findings()} == {"one_slice"}

    @pytest.mark.parametrize("size", [0.001, 50.0])
    def test_spacing_that_is_hardly_millimetres(self, pair, size):
        affine = np.diag([1, 1, size, 1])
        codes = [
            (f.severity, f.code) for f in pair.image(image_array(), affine).label(label_array(), affine).findings()
        ]
        assert codes == [("warning", "spacing")] * 2

    def test_far_origin_and_shear(self, pair):
        far, sheared = AFFINE.copy(), AFFINE.copy()
        far[0, 3] = 1e7
        sheared[0, 1] = 0.3
        for affine, code in ((far, "far_origin"), (sheared, "sheared")):
            found = pair.image(image_array(), affine).label(label_array(), affine).findings()
            assert (code, "warning") in {(finding.code, finding.severity) for finding in found}

    def test_what_the_header_hides_is_a_warning(self, pair):
        image = nib.load(pair.files[0])
        array, header = image.get_fdata(), image.header
        header["pixdim"][3] = 5
        nib.save(nib.Nifti1Image(array, None, header), pair.files[0])
        expect(pair.finding(), "warning", "spacing_disagrees", "1.5 x 1.5 x 3", "1.5 x 1.5 x 5")

    def test_other_shape_states_both_grids(self, pair):
        finding = pair.label(label_array()[:, :, 1:]).finding()
        expect(finding, "error", "grid", "image 5 x 6 x 7 at 1.5 x 1.5 x 3 mm, RAS", "label 5 x 6 x 6")

    def test_a_transposed_label_is_recognised(self, pair):
        expect(pair.label(label_array().T).finding(), "error", "grid", "transposed")

    @pytest.mark.parametrize(
        "change",
        [
            np.diag([2.0, 1, 1, 1]),  # spacing
            np.diag([-1.0, 1, 1, 1]),  # left and right, in place
            np.array([[0.96, -0.28, 0, 0], [0.28, 0.96, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),  # turned
        ],
    )
    def test_another_grid_of_the_same_shape(self, pair, change):
        expect(
            pair.label(label_array(), AFFINE @ change).finding(), "error", "grid", "image 5 x 6 x 7", "label 5 x 6 x 7"
        )

    @pytest.mark.parametrize(("voxels", "expected"), [(0.005, None), (0.3, "warning"), (0.7, "error")])
    def test_a_shifted_grid_is_judged_in_voxels(self, pair, voxels, expected):
        moved = AFFINE.copy()
        moved[2, 3] += 3 * voxels
        severities = [finding.severity for finding in pair.label(label_array(), moved).findings()]
        assert severities == ([] if expected is None else [expected])

    def test_the_same_grid_stored_in_another_order_is_fine(self, pair):
        affine = np.array([[0, 0, -1.5, 6.0], [1.5, 0, 0, 0], [0, -3.0, 0, 18.0], [0, 0, 0, 1]])
        stored = label_array().transpose(1, 2, 0)[:, ::-1, ::-1]  # (y, -z, -x)
        assert pair.label(stored, affine).findings() == []


class TestLabels:
    def test_values_outside_the_classes_are_counted(self, pair):
        label = label_array()
        label[0, 0, :2], label[0, 1, 0] = 7, 255
        expect(pair.label(label).finding(), "error", "unknown_value", "7 (2 voxels)", "255 (1 voxel)", "0 to 2")

    def test_negative_values(self, pair):
        label = label_array()
        label[0, 0, 0] = -1
        expect(pair.label(label).finding(), "error", "negative", "-1 (1 voxel)")

    def test_values_far_apart(self, pair):
        label = label_array().astype(np.int32)
        label[0, 0, 0] = 2_000_000
        expect(pair.label(label).finding(), "error", "unknown_value", "(1 voxel)")

    def test_interpolated_values(self, pair):
        expect(pair.label(label_array() * np.float32(0.5)).finding(), "error", "not_integer", "0.5")

    def test_one_hot_channels(self, pair):
        onehot = np.stack([label_array() == value for value in range(3)], -1).astype(np.uint8)
        expect(pair.label(onehot).finding(), "error", "label_axes", "5 x 6 x 7 x 3")

    def test_a_label_that_nobody_drew_is_told_from_one_of_background(self, pair):
        dataset = DATASET.model_copy(update={"ignore": (9,)})
        unseen = np.full(SHAPE, 9, np.uint8)
        words = ("every voxel is 9 (210 voxels)", "nobody annotated")
        expect(pair.label(unseen).finding(dataset), "warning", "empty_label", *words)
        unseen[0] = 0
        expect(
            pair.label(unseen).finding(dataset),
            "warning",
            "empty_label",
            "only background and voxels that nobody annotated",
        )

    def test_an_empty_label_and_one_without_background(self, pair):
        expect(pair.label(np.zeros(SHAPE, np.uint8)).finding(), "warning", "empty_label")
        expect(pair.label(np.ones(SHAPE, np.uint8)).finding(), "warning", "no_background")

    def test_scaling_that_turns_one_valid_label_into_another(self, pair):
        image = nib.Nifti1Image((label_array() > 0).astype(np.uint8), AFFINE)
        image.header.set_slope_inter(2, 0)
        nib.save(image, pair.files[1])
        expect(pair.finding(), "error", "scaled_label", "scl_slope 2", "0, 1", "0, 2")

    def test_a_class_that_no_label_holds_is_said_once(self, tmp_path):
        cases = [Pair(tmp_path, name).label(label_array() > 0).case for name in "ab"]
        (finding,) = check_cases(cases, DATASET).findings
        expect(finding, "warning", "class_absent", "class 2, cavity")
        assert finding.case is None


class TestDataset:
    def test_declared_classes_count_and_undeclared_ones_are_listed(self, tmp_path):
        Pair(tmp_path)
        (finding,) = check(tmp_path, workers=1).findings
        expect(finding, "warning", "no_classes", "0, 1, 2")
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "wall": 1}}))
        (finding,) = check(tmp_path, workers=1).findings
        expect(finding, "error", "unknown_value", "2 (1 voxel)")

    def test_255_is_a_value_like_others_where_no_classes_are_declared(self, tmp_path):
        Pair(tmp_path).label(np.uint8(label_array() > 0) * np.uint8(255))
        (finding,) = check(tmp_path, workers=1).findings
        expect(finding, "warning", "no_classes", "0, 255")

    @pytest.mark.parametrize("images", ["images", "imagesTr"])
    def test_a_folder_of_images_says_that_labels_lie_beside_it(self, tmp_path, images, monkeypatch):
        labels = tmp_path / images.replace("images", "labels")
        for name in "ab":
            Pair(tmp_path, name)
        if images == "imagesTr":  # of nnU-Net
            for kind in ("images", "labels"):
                (tmp_path / kind).rename(tmp_path / f"{kind}Tr")
            for name in "ab":
                (tmp_path / images / f"{name}.nii.gz").rename(tmp_path / images / f"{name}_0000.nii.gz")
            declared = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "wall": 1, "cavity": 2}}
            (tmp_path / "dataset.json").write_text(json.dumps(declared | {"file_ending": ".nii.gz", "numTraining": 2}))
        (labels / "b.nii.gz").unlink()
        monkeypatch.chdir(tmp_path)
        (finding,) = check(Path(images), DATASET, workers=1).findings
        expect(finding, "warning", "labels_beside", f"{labels} holds labels for 1 of these images")
        assert not any(finding.code == "labels_beside" for finding in check(tmp_path, DATASET, workers=1).findings)
        (labels / "a.nii.gz").unlink()
        assert not check(Path(images), DATASET, workers=1).findings

    def test_large_values_have_all_their_digits(self, tmp_path):
        label = label_array().astype(np.int32)
        label[label > 0] *= 1_000_000
        label[0, 0, 0] = 1_234_567
        Pair(tmp_path).label(label)
        (finding,) = check(tmp_path, workers=1).findings
        expect(finding, "warning", "no_classes", "0, 1000000, 1234567, 2000000")

    @pytest.mark.parametrize("id", ["a/b", "../escaped", ".hidden", "a\\b"])
    def test_an_id_that_cannot_name_files_is_refused(self, tmp_path, id):
        Pair(tmp_path / "raw")
        (tmp_path / "raw" / "list.csv").write_text(f"id,image\n{id},images/case.nii.gz\n")
        (finding,) = check(tmp_path / "raw" / "list.csv", DATASET, workers=1).errors
        expect(finding, "error", "bad_id")
        with pytest.raises(DataError, match=r"the id .* cannot be a file name"):
            prepare(tmp_path / "raw" / "list.csv", tmp_path / "out", DATASET, workers=0)
        assert [path.name for path in tmp_path.iterdir()] == ["raw"]

    @pytest.mark.parametrize("id", ["a:b", "con", "Nul.2", "COM1", "what?", "dot."])
    def test_an_id_that_windows_cannot_take_is_a_warning(self, tmp_path, id):
        Pair(tmp_path)
        (tmp_path / "list.csv").write_text(f"id,image\n{id},images/case.nii.gz\n")
        (finding,) = check(tmp_path / "list.csv", DATASET, workers=1).findings
        expect(finding, "warning", "odd_id", repr(id), "Windows")

    @pytest.mark.parametrize("id", ["=1+1", "@SUM(A1)", "-2+3"])
    def test_an_id_that_a_spreadsheet_would_work_out_is_a_warning(self, tmp_path, id):
        Pair(tmp_path)
        (tmp_path / "list.csv").write_text(f"id,image\n{id},images/case.nii.gz\n")
        (finding,) = check(tmp_path / "list.csv", DATASET, workers=1).findings
        expect(finding, "warning", "odd_id", repr(id), "formula")

    def test_names_steer_no_terminal(self, tmp_path):
        Pair(tmp_path)
        (tmp_path / "list.csv").write_text("id,image\na\x1b[2Jb,images/case.nii.gz\n")
        console = Console(file=io.StringIO(), force_terminal=True, width=200)
        check(tmp_path / "list.csv", DATASET, workers=1).print(console)
        assert "\\x1b[2Jb" in console.file.getvalue()
        assert "\x1b[2J" not in console.file.getvalue()

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="who is root may read all")
    def test_a_folder_that_may_not_be_read_is_no_empty_one(self, tmp_path):
        Pair(tmp_path)
        (tmp_path / "lost+found").mkdir(mode=0)
        assert len(check(tmp_path, DATASET, workers=1).cases) == 1
        (tmp_path / "images" / "more").mkdir(mode=0)
        with pytest.raises(DataError, match="more: cannot be searched"):
            check(tmp_path, DATASET, workers=1)

    @pytest.mark.parametrize("other", ["SCAN-\u00e91", "scan-e\u03011"])
    def test_ids_that_are_one_name_elsewhere_are_a_warning(self, tmp_path, other):
        Pair(tmp_path, "one")
        Pair(tmp_path, "two")
        text = f"id,image\nscan-\u00e91,images/one.nii.gz\nconsole,images/two.nii.gz\n{other},images/two.nii.gz\n"
        (tmp_path / "list.csv").write_text(text, encoding="utf-8")
        (finding,) = [f for f in check(tmp_path / "list.csv", DATASET, workers=1).findings if f.code == "odd_id"]
        expect(finding, "warning", "odd_id", repr(other), repr("scan-\u00e91"))
        assert finding.case == other

    def test_declared_channels_count(self, tmp_path):
        Pair(tmp_path).image(np.stack([image_array(), image_array()], -1))
        declared = {"labels": {"background": 0, "a": 1, "b": 2}, "channel_names": {"0": "T1", "1": "T2"}}
        (tmp_path / "dataset.json").write_text(json.dumps(declared))
        assert check(tmp_path, workers=1).findings == ()

    def test_undeclared_channels_are_as_many_as_most_cases_have_files(self, tmp_path):
        for name in ("a_0000", "a_0001", "b_0000", "b_0001", "c_0000"):
            Pair(tmp_path, name).files[1].unlink()
        for name in "abc":
            write_image(tmp_path / "labels" / f"{name}.nii.gz", label_array(), AFFINE)
        report = check(tmp_path, workers=1)
        (finding,) = [finding for finding in report.findings if finding.code == "channels"]
        assert report.unusable == ("c",)
        expect(finding, "error", "channels", "1 volume, but 2 channels declared")

    @pytest.mark.parametrize("copy", ["images/case.nii", "labels/case.nii"])
    def test_duplicated_ids(self, tmp_path, copy):
        Pair(tmp_path)
        write_image(tmp_path / copy, image_array() + 1 if "images" in copy else label_array(), AFFINE)
        report = check(tmp_path, DATASET, workers=1)
        (finding,) = report.findings
        expect(finding, "error", "duplicate", "case.nii.gz", "case.nii,")
        assert report.unusable == ("case",)

    def test_a_label_without_an_image_makes_its_id_unusable(self, tmp_path):
        Pair(tmp_path)
        Pair(tmp_path, "other").files[0].unlink()
        report = check(tmp_path, DATASET, workers=1)
        (finding,) = report.findings
        expect(finding, "error", "no_image")
        assert report.unusable == ("other",)

    def test_what_msd_lists_and_lacks(self, tmp_path):
        write_image(tmp_path / "imagesTr" / "a.nii", image_array(), AFFINE)
        write_image(tmp_path / "imagesTr" / "b.nii", image_array("b"), AFFINE)
        write_image(tmp_path / "labelsTr" / "b.nii", label_array(), AFFINE)
        (tmp_path / "imagesTr" / "scan.dcm").touch()
        entries = [{"image": f"imagesTr/{id}.nii", "label": f"labelsTr/{id}.nii"} for id in "ac"]
        (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
        report = check(tmp_path, DATASET, workers=1)
        found = {(f.case, f.severity, f.code) for f in report.findings}
        assert found == {
            ("a", "warning", "absent_label"),
            ("c", "warning", "absent_label"),
            ("c", "error", "unreadable"),
            ("b", "warning", "unlisted_label"),
            (None, "warning", "not_read"),
        }
        assert report.unusable == ("c",)

    def test_a_dataset_without_a_case_is_refused(self, tmp_path):
        (tmp_path / "images").mkdir()
        with pytest.raises(DataError, match="no volume found"):
            check(tmp_path, DATASET, workers=1)

    def test_one_broken_case_hides_no_other_and_workers_change_nothing(self, tmp_path):
        first, second, third = (Pair(tmp_path, name) for name in "abc")
        first.files[0].write_bytes(b"")
        second.label(label_array() * 9)
        third.files[1].unlink()
        alone, spread = (check(tmp_path, DATASET, workers=workers) for workers in (0, 2))
        assert alone.unusable == ("a", "b")
        assert alone == spread


class TestReport:
    def test_the_summary_counts_cases_and_voxels(self, tmp_path):
        Pair(tmp_path, "p1_a")
        Pair(tmp_path, "p1_b").label(label_array() > 0)
        Pair(tmp_path, "p2").image(np.ones((9, 6, 7)) + np.arange(7)).files[1].unlink()
        dataset = DatasetConfig.model_validate(DATASET.model_dump() | {"subject": {"pattern": r"(p\d)"}})
        summary = check(tmp_path, dataset, workers=1).to_json()["summary"]
        assert (summary["cases"], summary["labelled"], summary["unlabelled"], summary["subjects"]) == (3, 2, 1, 2)
        assert summary["shape"] == {"min": [5, 6, 7], "median": [5, 6, 7], "max": [9, 6, 7]}
        assert summary["spacing"]["max"] == [1.5, 1.5, 3]
        assert [known["cases"] for known in summary["classes"]] == [2, 2, 1]
        assert [known["share"] for known in summary["classes"]] == pytest.approx([366 / 420, 53 / 420, 1 / 420])

    def test_voxels_that_nobody_annotated_are_no_class(self, tmp_path):
        label = label_array()
        label[0] = 7
        Pair(tmp_path, "a").label(label)
        ignoring = DatasetConfig.model_validate(DATASET.model_dump() | {"ignore": [7]})
        report = check(tmp_path, ignoring, workers=1)
        last = report.summary["classes"][-1]
        assert (last["value"], last["name"], last["cases"]) == (None, "ignored", 1)
        assert last["share"] == pytest.approx(np.mean(label == 7))
        console = Console(file=io.StringIO(), width=200)
        report.print(console)
        assert any(line.startswith("ignored: 20.000% of voxels") for line in console.file.getvalue().splitlines())

    def test_json_is_plain(self, pair):
        report = check_cases([pair.label(label_array() * 9).case], DATASET)
        values = json.loads(json.dumps(report.to_json()))
        assert values["unusable"] == ["case"]
        assert values["findings"][0]["code"] == "unknown_value"
        assert values["findings"][0]["file"] == str(pair.files[1])

    def test_print_gives_each_finding_a_line_with_its_cure(self, tmp_path):
        Pair(tmp_path, "a[b]").label(label_array() * 9)
        Pair(tmp_path, "long name").label(label_array()[1:])
        report = check(tmp_path, DATASET, workers=1)
        console = Console(file=io.StringIO(), width=40)
        report.print(console)
        lines = console.file.getvalue().splitlines()
        for finding in report.errors:
            (line,) = [line for line in lines if line.startswith(f"  {finding.case}")]
            assert finding.found.split("\n")[0] in line
            assert any(finding.fix in title for title in lines)
        assert any(line.startswith("2 cases: 2 labelled, 0 unlabelled, 2 subjects; 2 unusable") for line in lines)

    def test_paths_are_told_from_the_source_on_whatever_it_is_called(self, tmp_path, monkeypatch):
        Pair(tmp_path / "s", "a").label(label_array() * 9)
        monkeypatch.chdir(tmp_path)
        report = check(Path("s"), DATASET, workers=1)
        assert [report.relative(str(finding.file)) for finding in report.errors] == ["labels/a.nii.gz"]
        assert report.relative("see s/labels/a.nii.gz, s/images") == "see labels/a.nii.gz, images"

    def test_a_terminal_shows_the_first_warnings_of_a_kind(self, tmp_path):
        for number in range(25):
            Pair(tmp_path, f"c{number:02}").label(0 * label_array())
        console = Console(file=io.StringIO(), width=200)
        report = check(tmp_path, DATASET, workers=1)
        report.print(console)
        lines = [line for line in console.file.getvalue().splitlines() if "only background" in line]
        assert sum(finding.code == "empty_label" for finding in report.findings) == 25
        assert len(lines) == 20
        assert "... and 5 more; --json and --html list them all" in console.file.getvalue()

    def test_require_usable_lists_every_error_and_lets_warnings_pass(self, tmp_path):
        sound, other, spoilt = (Pair(tmp_path, name) for name in ("sound", "other", "spoilt"))
        require_usable(check_cases([sound.image(np.ones(SHAPE)).case], DATASET))
        other.label(label_array()[1:])
        spoilt.image(image_array() * np.nan).label(label_array() * 9)
        report = check_cases([pair.case for pair in (sound, other, spoilt)], DATASET)
        with pytest.raises(DataError) as error:
            require_usable(report)
        text = str(error.value)
        assert text.startswith("2 of 3 cases cannot be used\n  other   image and label lie on different grids\n")
        for finding in report.errors:
            assert all(line in text for line in finding.found.split("\n"))
            assert finding.fix in text
        assert "sound" not in text.replace(str(tmp_path), "")


REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ODD = REAL / "odd"
real = pytest.mark.skipif(not ODD.is_dir(), reason=f"the real volumes are not at {REAL}")

STRICTER = {
    "image/bad_crc.nii.gz": "a checksum cannot tell which voxel is wrong, and bit_rot looks the same",
    "format/pair.img": "pairs of .hdr and .img are refused by name, as the table allows",
    "format/analyze.img": "not supported, as the table allows",
    "pair/origin_mismatch": "more than half a voxel apart, for which the table asks to reject",
}
"""Rows that are an error where the table would let them pass."""

TOLD = {
    "image/truncated.nii.gz": ("unreadable", "cut"),
    "image/truncated_at_header.nii.gz": ("unreadable", "header is incomplete", "200 bytes"),
    "image/short_voxels.nii.gz": ("unreadable", "142272 bytes", "122272 bytes"),
    "image/bad_crc.nii.gz": ("unreadable", "CRC"),
    "image/bit_rot.nii.gz": ("unreadable", "damaged"),
    "image/not_compressed.nii.gz": ("suffix", "plain NIfTI"),
    "image/compressed.nii": ("suffix", "gzip data"),
    "image/text_in_gzip.nii.gz": ("unreadable", "web page"),
    "image/lfs_pointer.nii.gz": ("unreadable", "Git LFS pointer"),
    "image/empty.nii.gz": ("unreadable", "empty"),
    "image/wrong_magic.nii.gz": ("unreadable", "no NIfTI magic"),
    "image/wrong_sizeof_hdr.nii.gz": ("header_size", "1234"),
    "image/zero_size.nii.gz": ("unreadable", "36 x 0 x 38"),
    "image/negative_dim.nii.gz": ("unreadable", "-36 x 52 x 38"),
    "image/huge_dims.nii.gz": ("unreadable", "32767 x 32767 x 32767"),
    "image/unknown_datatype.nii.gz": ("unreadable", "12345"),
    "image/nan.nii.gz": ("not_finite", "6 voxels", "(5, 10, 12)"),
    "image/inf.nii.gz": ("not_finite", "2 voxels", "(3, 4, 5)"),
    "image/all_nan.nii.gz": ("not_finite", "71136 voxels", "(0, 0, 0)"),
    "image/constant.nii.gz": ("constant", "7"),
    "image/all_zero.nii.gz": ("constant", "0"),
    "image/four_d.nii.gz": ("channels", "36 x 52 x 38 x 2", "2 volumes, but 1 channel"),
    "image/two_d.nii.gz": ("unreadable", "expected a 3D volume", "36 x 52"),
    "image/single_slice.nii.gz": ("one_slice", "36 x 52 x 1"),
    "image/one_voxel.nii.gz": ("one_slice", "1 x 1 x 1"),
    "image/rgb.nii.gz": ("unreadable", "colours"),
    "image/complex.nii.gz": ("unreadable", "complex"),
    "image/sheared_sform.nii.gz": ("sheared", "right angles"),
    "image/sform_unit_scale.nii.gz": ("unit_sform", "1 x 1 x 1", "1.5625 x 1.5625 x 10"),
    "image/sform_qform_shift.nii.gz": ("forms_disagree", "30 mm", "the sform is used"),
    "image/sform_qform_flip.nii.gz": ("forms_disagree", "RAS and LAS", "the sform is used"),
    "image/no_form_codes.nii.gz": ("no_orientation", "unknown"),
    "image/singular_affine.nii.gz": ("unreadable", "cannot be inverted"),
    "image/nan_affine.nii.gz": ("unreadable", "NaN"),
    "image/zero_pixdim.nii.gz": ("pixdim", "0 x 1 x 1"),
    "image/negative_pixdim.nii.gz": ("pixdim", "-1 x 1 x 1", "taken as 1 x 1 x 1"),
    "image/tiny_spacing.nii.gz": ("spacing", "0.001"),
    "image/huge_spacing.nii.gz": ("spacing", "50"),
    "image/microns.nii.gz": ("unit", "micrometres", "millimetres"),
    "image/metres.nii.gz": ("unit", "metres", "millimetres"),
    "image/far_origin.nii.gz": ("far_origin", "1e+07"),
    "image/scl_huge.nii.gz": ("not_finite", "5 voxels", "float32"),
    "format/absent_data.mhd": ("unreadable", "absent.zraw", "does not exist"),
    "format/pair.img": ("unreadable", "not a known format; expected one of"),
    "format/analyze.img": ("unreadable", "not a known format; expected one of"),
    "label/out_of_range.nii.gz": ("unknown_value", "7 (9 voxels)", "255 (1 voxel)"),
    "label/values_0_85_255.nii.gz": ("unknown_value", "85 (1832 voxels)", "255 (1866 voxels)"),
    "label/negative.nii.gz": ("unknown_value", "255 (1866 voxels)"),  # the file holds its -1 wrapped to 255
    "label/float32_interpolated.nii.gz": ("not_integer", "374", "0.5"),
    "label/bool_scaled.nii.gz": ("scaled_label", "0, 1", "0, 2"),
    "label/empty.nii.gz": ("empty_label", "background"),
    "label/one_class_absent.nii.gz": ("class_absent", "class 2, posterior"),
    "label/all_foreground.nii.gz": ("no_background", "1 (71136 voxels)"),
    "label/one_hot_4d.nii.gz": ("label_axes", "3 axes, got 4"),
    "label/probabilities.nii.gz": ("not_integer", "probability"),
    "pair/shape_mismatch": ("grid", "36 x 52 x 38", "34 x 47 x 40"),
    "pair/transposed": ("grid", "36 x 52 x 38", "38 x 52 x 36", "transposed"),
    "pair/spacing_mismatch": ("grid", "1 x 1 x 1 mm", "2 x 2 x 2 mm"),
    "pair/origin_mismatch": ("grid", "up to 7 voxels"),
    "pair/left_right_mismatch": ("grid", "RAS", "LAS"),
}
"""The code of each row that is not simply accepted, and what its finding has to say."""


def odd_files(expect):
    if not ODD.is_dir():
        return [pytest.param("none", marks=real)]
    with (ODD / "expected.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["expect"] == expect]
    tables = ("image", "label", "pair", "format")
    found = [row["path"] for row in rows if row["path"].split("/")[0] in tables]
    return [path for path in found if (expect != "accept") or path not in STRICTER]


def odd_findings(path) -> list[Finding]:
    dataset = DatasetConfig(name="odd", classes=("background", "anterior", "posterior"))
    file = ODD / path
    if file.is_dir():
        case = Case("odd", "odd", (Source(file / "image.nii.gz"),), Source(file / "label.nii.gz"))
    elif "label" in path:
        case = Case("odd", "odd", (Source(ODD / "image" / "reference.nii.gz"),), Source(file))
    else:
        case = Case("odd", "odd", (Source(file),), None)
    return list(check_cases([case], dataset).findings)


@real
class TestReal:
    def test_every_hippocampus_is_usable(self):
        report = check(REAL / "hippocampus", workers=2)
        assert len(report.cases) == 180
        assert report.findings == ()
        assert report.classes == ("background", "Anterior", "Posterior")
        assert report.summary["shape"]["median"] == [35, 50, 35]

    @pytest.mark.parametrize("path", odd_files("accept"))
    def test_odd_files_to_accept_have_no_finding(self, path):
        assert [finding for finding in odd_findings(path) if finding.case is not None] == []

    @pytest.mark.parametrize("path", [*odd_files("reject"), *odd_files("warn"), "format/pair.img"])
    def test_other_odd_files_have_the_finding_of_the_table(self, path):
        code, *words = TOLD[path]
        severity = "error" if path in (*odd_files("reject"), *STRICTER) else "warning"
        found = odd_findings(path)
        assert {finding.severity for finding in found if finding.case is not None} <= {severity}
        (told,) = [finding for finding in found if finding.code == code]
        expect(told, severity, code, *words)

    def test_an_image_without_a_label_in_the_source_is_unlabelled(self):
        assert odd_findings("real/hippocampus_118_image.nii.gz") == []

    def test_a_ct_and_a_model_output_of_it_lie_on_one_grid(self):
        image, label = (Source(ODD / "real" / f"ct_abdomen{end}.nii.gz") for end in ("", "_label"))
        report = check_cases([Case("ct", "ct", (image,), label)], DATASET)
        assert [finding for finding in report.findings if finding.case is not None] == []

    def test_a_float_label_is_read_as_the_integers_it_was(self):
        label = Source(ODD / "real" / "hippocampus_243_label_float32.nii.gz")
        source = REAL / "hippocampus" / "imagesTr" / "hippocampus_243.nii.gz"
        report = check_cases([Case("243", "243", (Source(source),), label)], DATASET)
        assert report.findings == ()
        assert np.array_equal(
            read_label(label).array, read_label(REAL / "hippocampus" / "labelsTr" / "hippocampus_243.nii.gz").array
        )

    @pytest.mark.parametrize("number", ["010", "281"])
    def test_a_label_without_its_image_is_refused_and_one_of_another_family_is_told(self, hippocampi, number):
        label = hippocampi / "labelsTr" / f"hippocampus_{number}.nii.gz"
        label.symlink_to(ODD / "real" / f"hippocampus_{number}_label.nii.gz")
        report = check(hippocampi, workers=0)
        assert report.unusable == (f"hippocampus_{number}",)
        codes = {finding.code: finding for finding in report.findings if finding.case in report.unusable}
        if number == "010":
            assert codes.keys() == {"no_image"}
            return
        assert codes.keys() == {"no_image", "spacing_outlier", "shape_outlier"}
        assert "0.734" in codes["spacing_outlier"].found
        assert "class 2" in codes["spacing_outlier"].found
        assert "512 x 512 x 94" in codes["shape_outlier"].found

    def test_a_ct_of_the_abdomen_is_far_from_the_labelled_hippocampi(self, hippocampi):
        (hippocampi / "imagesTr" / "ct.nii.gz").symlink_to(ODD / "real" / "ct_abdomen.nii.gz")
        (hippocampi / "labelsTr" / "hippocampus_004.nii.gz").unlink()
        report = check(hippocampi, workers=0)
        far = {finding.case for finding in report.findings if finding.code == "far_from_labelled"}
        assert far == {"ct"}
        first, second = report.distances
        assert (first.case, second.case) == ("ct", "hippocampus_004")
        assert first.score > 5 > second.score

    def test_what_is_found_in_real_datasets_is_so(self):
        report = check(REAL / "acdc", DatasetConfig(name="acdc", classes=("b", "rv", "myo", "lv")), workers=0)
        found = {(finding.code, finding.case[:10]) for finding in report.findings}
        assert found == {  # the images of patients 74 and 76 are one, and two scans are finer than all others
            ("patients_by_name", "patient001"),
            ("same_image", "patient076"),
            ("spacing_outlier", "patient038"),
            ("spacing_outlier", "patient057"),
        }


@pytest.fixture
def hippocampi(tmp_path):
    """Some real cases, as links."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        for file in sorted((REAL / "hippocampus" / folder).iterdir())[:12]:
            (tmp_path / folder / file.name).symlink_to(file)
    description = {"labels": {"0": "background", "1": "anterior", "2": "posterior"}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def test_a_configuration_that_contradicts_the_dataset_is_told(tmp_path):
    for channel in range(2):
        write_image(tmp_path / "imagesTr" / f"a_{channel:04}.nii.gz", image_array(), AFFINE)
    write_image(tmp_path / "labelsTr" / "a.nii.gz", label_array(), AFFINE)
    said = {"background": 0, "necrosis": 2, "edema": 1}
    description = {"channel_names": {"0": "FLAIR", "1": "T1"}, "labels": said, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))

    def told(channels, classes, **more):
        data = DatasetConfig(name="brain", channels=channels, classes=("background", *classes), **more)
        return {f.code: f.found for f in check(tmp_path, data, workers=1).findings if f.code.endswith("_order")}

    assert told(("flair", "t1"), ("edema", "necrosis")) == {}
    assert told(("T2", "T1"), ("edema", "tumour")) == {}
    assert told(("T1", "FLAIR"), ("edema", "necrosis")) == {
        "channel_order": "the channels are flair, t1 in the dataset, but t1, flair in the configuration"
    }
    assert told(("flair", "t1"), ("necrosis", "edema")) == {
        "class_order": "necrosis is 2 in the dataset, but 1 in the configuration; "
        "edema is 1 in the dataset, but 2 in the configuration"
    }
    assert told(("flair", "t1"), ("necrosis", "edema"), values={"necrosis": (2,), "edema": (1,)}) == {}
    assert told(("flair", "t1"), ("edema",), values={"edema": (1, 2)}) == {}
