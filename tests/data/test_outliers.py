"""What is odd about cases beside each other: each oddity is put into a sound dataset, where nothing else is found."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medssl.data.cases import Case, DatasetConfig
from medssl.data.check import check, check_cases
from medssl.data.io import read_image, read_label, write_image
from medssl.data.volume import Source

DATASET = DatasetConfig(name="made", classes=("background", "left", "right"))
AFFINE = np.diag([0.8, 0.9, 1.5, 1.0])
SHAPE = (13, 11, 7)


class Made:
    """Scans that differ as scans do: noise, a little in size and position, one class on each side."""

    def __init__(self, root: Path, count: int):
        self.root, self.rng = root, np.random.default_rng(7)
        self.cases = [self.add(f"case{number:02d}") for number in range(count)]

    def add(self, id, *, shape=SHAPE, affine=AFFINE, grey=1.0, offset=0.0, labelled=True, mirrored=False, part=None):
        shape = tuple(n + int(self.rng.integers(0, 2)) for n in shape)
        label = np.zeros(shape, np.uint8)
        at = 3 + int(self.rng.integers(0, 2))
        label[1:at, 2:5, 2:4] = 1
        label[-at - 1 : -1, 4:8, 2:5] = 2
        label[self.rng.random(shape) < 0.2] = 0  # so that no two are alike
        if mirrored:
            label = label[::-1]
        image = 100 * ndimage.gaussian_filter(self.rng.normal(size=shape), 1) + 100 + 40 * (label > 0)
        files = self.root / "images" / f"{id}.nii.gz", self.root / "labels" / f"{id}.nii.gz"
        write_image(files[0], (image * grey + offset).astype(np.float32), affine)
        if labelled:
            write_image(files[1], label, affine)
        return Case(id, id, (Source(files[0]),), Source(files[1]) if labelled else None, part)

    def found(self, *more, dataset=DATASET):
        report = check_cases([*self.cases, *more], dataset, workers=0)
        assert report.errors == ()
        return [(finding.case, finding.code) for finding in report.findings]

    def told(self, *more):
        (finding,) = check_cases([*self.cases, *more], DATASET, workers=0).findings
        assert finding.severity == "warning"
        assert finding.fix
        return finding.found


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path, 12)


def test_a_sound_dataset_has_no_finding(made):
    assert made.found() == []


class TestTheSameTwice:
    def test_an_image_under_two_names_whatever_the_format(self, made):
        first = made.cases[3]
        copy = made.root / "again.nrrd"
        write_itk(copy, read_image(first.images[0]))
        assert made.found(Case("again", "again", (Source(copy),), None)) == [("again", "same_image")]
        found = made.told(Case("again", "again", (Source(copy),), None))
        assert "case03, which has a label" in found

    def test_it_says_whether_the_labels_agree(self, made):
        first, other = made.cases[3], made.cases[4]
        twin = replace(first, id="twin", subject="twin")
        assert "case03, with the same label" in made.told(twin)
        moved = made.root / "moved.nii.gz"
        label = read_label(first.label)
        write_image(moved, np.roll(label.array, 1, 1).astype(np.uint8), label.affine)
        assert "with another label" in made.told(replace(twin, label=Source(moved)))
        assert other.id not in made.told(twin)

    def test_one_voxel_is_enough_to_differ(self, made):
        image = read_image(made.cases[3].images[0])
        image.array[5, 5, 5] += 1
        path = made.root / "other.nii.gz"
        write_image(path, image.array, image.affine)
        assert made.found(Case("other", "other", (Source(path),), None)) == []

    def test_a_label_of_another_patient_but_not_of_the_same_one(self, tmp_path):
        made = Made(tmp_path, 0)
        cases = [made.add(f"case{number}") for number in range(3)]
        image = read_image(cases[0].images[0])
        path = tmp_path / "T2.nii.gz"
        write_image(path, image.array[::-1] + 3, image.affine)
        stranger = Case("T2", "T2", (Source(path),), cases[0].label)
        made.cases = cases
        assert made.found(stranger) == [("T2", "same_label")]
        assert made.found(replace(stranger, subject="case0")) == []

    def test_constant_images_and_empty_labels_are_no_twins(self, made):
        more = []
        for id in ("a", "b"):
            files = made.root / f"{id}.nii.gz", made.root / f"{id}_label.nii.gz"
            write_image(files[0], np.ones(SHAPE, np.float32), AFFINE)
            write_image(files[1], np.zeros(SHAPE, np.uint8), AFFINE)
            more.append(Case(id, id, (Source(files[0]),), Source(files[1])))
        codes = {code for _, code in made.found(*more)}
        assert codes == {"constant", "empty_label"}


class TestPatients:
    @pytest.mark.parametrize(
        ("parts", "is_found"),
        [
            (("train", "test"), True),
            (("labelled", "val"), True),
            (("labelled", "unlabelled"), False),
            (("test", "test"), False),
            (("train", None), False),
        ],
    )
    def test_one_patient_on_two_sides_of_a_declared_split(self, made, parts, is_found):
        scans = [replace(made.add(f"p_{part}_{i}"), subject="p", part=part) for i, part in enumerate(parts)]
        assert [code for _, code in made.found(*scans)] == ["divided_patient"] * is_found
        if is_found:
            told = made.told(*scans)
            assert "patient p" in told
            assert all(scan.id in told for scan in scans)

    @pytest.mark.parametrize("subject", ["p1", None])
    def test_names_that_say_what_nobody_told(self, made, subject):
        ids = [f"case{number:02d}_b" for number in range(2)]
        scans = [replace(made.add(id), subject=subject or id) for id in ids]
        assert [code for _, code in made.found(*scans)] == ["patients_by_name"] * (subject is None)
        if subject is None:
            assert "case00 and case00_b look like scans of one patient" in made.told(*scans)


class TestSizesAndGreyLevels:
    def test_a_spacing_that_no_other_has(self, made):
        odd = made.add("odd", affine=np.diag([0.8, 0.9, 6.0, 1.0]))
        assert made.found(odd) == [("odd", "spacing_outlier")]
        told = made.told(odd)
        assert "most others have 1.5 mm head-foot" in told
        assert "left-right" not in told

    def test_axes_are_those_of_the_world(self, made):
        case = made.cases[0]
        image, turned = (
            read_image(case.images[0]),
            np.array([[0, 0, 0.8, 0], [0.9, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]]),
        )
        path = made.root / "turned.nii.gz"
        write_image(path, image.array.transpose(1, 2, 0) + 5, turned)
        assert made.found(Case("turned", "turned", (Source(path),), None)) == []

    def test_two_protocols_are_no_outliers(self, made):
        other = [made.add(f"thick{i}", affine=np.diag([0.8, 0.9, 6.0, 1.0])) for i in range(3)]
        assert [code for _, code in made.found(*other)] == []

    def test_a_shape_that_no_other_has(self, made):
        assert made.found(made.add("odd", shape=(40, 11, 7))) == [("odd", "shape_outlier")]

    def test_grey_levels_of_another_range(self, made):
        assert made.found(made.add("odd", grey=100)) == [("odd", "intensity_outlier")]
        assert made.found(made.add("near", grey=2)) == []

    def test_ct_without_its_offset(self, tmp_path):
        made = Made(tmp_path, 0)
        made.cases = [made.add(f"ct{i}", grey=10, offset=-1900) for i in range(9)]
        assert made.found() == []
        told = made.told(made.add("unsigned", grey=10, offset=0))
        assert "Hounsfield" in told

    def test_few_cases_are_not_compared(self, tmp_path):
        made = Made(tmp_path, 4)
        assert made.found(made.add("odd", shape=(60, 11, 7), grey=100)) == []

    def test_bare_arrays(self, tmp_path, made):
        bare = made.add("bare", affine=np.eye(4))
        assert ("bare", "bare_affine") in made.found(bare)
        all_bare = Made(tmp_path / "bare", 0)
        all_bare.cases = [all_bare.add(f"case{i}", affine=np.eye(4)) for i in range(3)]
        assert all_bare.found() == [(None, "bare_affine")]

    def test_a_millimetre_grid_with_a_place_in_the_world_is_not_bare(self, tmp_path):
        made = Made(tmp_path, 0)
        placed = np.eye(4)
        placed[:3, 3] = 1
        made.cases = [made.add(f"case{i}", affine=np.eye(4) if i < 2 else placed) for i in range(9)]
        assert made.found() == []


class TestLabels:
    def test_a_class_that_one_label_lacks(self, made):
        case = made.cases[2]
        label = read_label(case.label)
        write_image(case.label.path, (label.array == 1).astype(np.uint8), label.affine)
        assert made.found() == [("case02", "class_missing")]
        assert "class 2 (right), which 11 of 12 labels hold" in made.told()

    def test_a_label_of_some_classes_among_few_is_told_once(self, tmp_path):
        """As of teeth on one side alone, where four labels have all."""
        made, jaws = Made(tmp_path, 4), DatasetConfig(name="jaws", classes=("background", *"abcdef"))

        def missing(most):
            for number, case in enumerate(made.cases):
                label = read_label(case.label)
                array = np.zeros_like(label.array)
                for value in range(1, 1 + most[number]):
                    array[value, 1 + value % 5, 1:3] = value
                write_image(case.label.path, array.astype(np.uint8), label.affine)
            report = check_cases(made.cases, jaws, workers=0)
            return [(f.case, f.found) for f in report.findings if f.code == "class_missing"]

        assert missing([6, 6, 6, 5]) == []
        assert missing([2, 6, 6, 4]) == []
        said = "holds 2 of 6 classes; it lacks class 3 (c), 4 (d), 5 (e), 6 (f), which at least 3 of 4 labels hold"
        assert missing([2, 6, 6, 6]) == [("case00", said)]

    def test_a_class_that_several_labels_lack_is_no_surprise(self, made):
        for case in made.cases[:3]:
            label = read_label(case.label)
            write_image(case.label.path, (label.array == 1).astype(np.uint8), label.affine)
        assert made.found() == []

    def test_a_mirrored_label(self, made):
        odd = made.add("odd", mirrored=True)
        assert made.found(odd) == [("odd", "flip_suspected")]

    def test_a_header_that_swaps_left_and_right(self, made):
        odd = made.add("odd", affine=np.diag([-0.8, 0.9, 1.5, 1.0]))
        assert made.found(odd) == [("odd", "flip_suspected")]

    def test_the_same_world_stored_the_other_way_round_is_no_flip(self, made):
        case = made.cases[0]
        image, label = read_image(case.images[0]), read_label(case.label)
        files = made.root / "lps.nii.gz", made.root / "lps_label.nii.gz"
        affine = np.diag([-0.8, 0.9, 1.5, 1.0])
        write_image(files[0], image.array[::-1] + 5, affine)
        write_image(files[1], np.roll(label.array, 1, 1)[::-1].astype(np.uint8), affine)
        assert made.found(Case("lps", "lps", (Source(files[0]),), Source(files[1]))) == []

    def test_a_set_of_both_sides_stays_silent(self, tmp_path):
        made = Made(tmp_path, 0)
        made.cases = [made.add(f"case{i:02d}", mirrored=i % 3 == 0) for i in range(15)]
        assert made.found() == []


class TestUnlabelledCases:
    def test_another_kind_of_scan_is_far_and_the_rest_is_near(self, made):
        near = [made.add(f"near{i}", labelled=False) for i in range(4)]
        noise = made.root / "noise.nii.gz"
        write_image(noise, made.rng.exponential(size=SHAPE).astype(np.float32) ** 4, AFFINE)
        report = check_cases([*made.cases, *near, Case("noise", "noise", (Source(noise),), None)], DATASET)
        assert ("noise", "far_from_labelled") in {(finding.case, finding.code) for finding in report.findings}
        assert report.distances[0].case == "noise"
        assert {distance.case for distance in report.distances} == {"noise", *(case.id for case in near)}
        assert all(distance.score < 2 for distance in report.distances[1:])
        assert not {case.id for case in near} & {finding.case for finding in report.findings}

    def test_distances_are_numbers_where_all_labelled_cases_are_alike(self, tmp_path):
        made = Made(tmp_path, 1)
        near, far = (made.add(name, labelled=False) for name in ("near", "far"))
        image, label = read_image(made.cases[0].files[0]), read_label(made.cases[0].files[1])
        write_image(near.images[0].path, image.array, image.affine)
        write_image(far.images[0].path, image.array, image.affine @ np.diag([3.0, 3, 3, 1]))
        for number in range(6):
            write_image(tmp_path / "images" / f"copy{number}.nii.gz", image.array, image.affine)
            write_image(tmp_path / "labels" / f"copy{number}.nii.gz", label.array.astype(np.uint8), image.affine)
        report = check(tmp_path, DATASET, workers=0)
        json.dumps(report.to_json(), allow_nan=False)
        assert [distance.case for distance in report.distances] == ["far", "near"]
        assert report.distances[0].score > 10
        assert report.distances[1].score == 0

    def test_nothing_is_computed_from_few_labelled_cases_and_that_is_said(self, tmp_path):
        made = Made(tmp_path, 4)
        made.add("unlabelled", labelled=False)
        report = check(tmp_path, DATASET, workers=0)
        assert report.distances == ()
        assert any("too few labelled cases" in line for line in report._summary_lines())


def test_a_label_without_an_image_is_told_to_be_of_another_family(made):
    odd = made.add("odd", shape=(90, 80, 7))
    odd.images[0].path.unlink()
    label = read_label(odd.label)
    write_image(odd.label.path, (label.array == 1).astype(np.uint8), label.affine)
    report = check(made.root, DATASET, workers=0)
    found = {finding.code: finding for finding in report.findings if finding.case == "odd"}
    assert found.keys() == {"no_image", "shape_outlier"}
    assert "lacks class 2" in found["shape_outlier"].found


def write_itk(path, image):
    import SimpleITK as sitk

    volume = sitk.GetImageFromArray(np.ascontiguousarray(image.array.T))
    volume.SetSpacing(image.spacing)
    volume.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(volume, str(path))
