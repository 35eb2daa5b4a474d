import json

import numpy as np
import pytest

from medssl.data.cases import DatasetConfig, SubjectRule, subjects_of
from medssl.data.layouts import declared_channels, declared_classes, read_cases, read_layout
from medssl.data.nifti import write_image
from medssl.errors import ConfigError, DataError


def make(root, *names):
    for name in names:
        write_image(root / name, np.zeros((5, 6, 7), np.uint8), np.eye(4))


def describe(root, **keys):
    (root / "dataset.json").write_text(json.dumps(keys))


def pairs(cases, root):
    return [
        (case.id, *(source and source.path.relative_to(root).as_posix() for source in (*case.images, case.label)))
        for case in cases
    ]


class TestFolders:
    def test_pair_by_name_up_to_the_suffix_and_the_rest_is_unlabelled(self, tmp_path):
        make(tmp_path, "images/b.v1.nii.gz", "images/a.nii", "labels/b.v1.nii", "images/._a.nii")
        assert pairs(read_cases(tmp_path), tmp_path) == [
            ("a", "images/a.nii", None),
            ("b.v1", "images/b.v1.nii.gz", "labels/b.v1.nii"),
        ]

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

    @pytest.mark.parametrize("entry", [{"label": "a.nii"}, {"image": ["a.nii", "b.nii"]}, 3, {"image": 3}])
    def test_an_entry_that_does_not_fit_is_shown(self, tmp_path, entry):
        make(tmp_path, "imagesTr/a.nii")
        describe(tmp_path, training=[{"image": "imagesTr/a.nii"}, entry])
        with pytest.raises(DataError, match=r"dataset\.json: entry 1"):
            read_cases(tmp_path)

    def test_without_a_list_files_pair_by_name_and_channel_numbers_go(self, tmp_path):
        make(tmp_path, "imagesTr/a_0000.nii", "imagesTr/b_0000.nii", "labelsTr/a.nii")
        describe(tmp_path, channel_names={"0": "MRI"}, labels={"background": 0, "organ": 1})
        assert pairs(read_cases(tmp_path), tmp_path) == [
            ("a", "imagesTr/a_0000.nii", "labelsTr/a.nii"),
            ("b", "imagesTr/b_0000.nii", None),
        ]

    def test_a_file_for_each_channel_is_refused(self, tmp_path):
        make(tmp_path, "imagesTr/a_0000.nii", "imagesTr/a_0001.nii")
        describe(tmp_path, channel_names={"0": "T1", "1": "T2"})
        with pytest.raises(DataError, match="4D"):
            read_cases(tmp_path)


class TestNoLayout:
    def test_the_message_says_what_was_looked_for_and_found(self, tmp_path):
        (tmp_path / "scans").mkdir()
        with pytest.raises(DataError, match=r"(?s)images/ .*imagesTr/.*found scans/"):
            read_cases(tmp_path)

    def test_a_folder_that_is_absent_or_a_file(self, tmp_path):
        with pytest.raises(DataError, match="no such folder"):
            read_cases(tmp_path / "absent")
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="not a folder"):
            read_cases(tmp_path / "file")


class TestDeclarations:
    @pytest.mark.parametrize(
        "labels",
        [
            {"0": "background", "1": "a", "2": "b"},
            {"b": 2, "background": 0, "a": 1},
            {"2": "b", "0": "background", "1": "a"},
        ],
    )
    def test_both_spellings_of_classes(self, tmp_path, labels):
        describe(tmp_path, labels=labels)
        assert declared_classes(tmp_path) == ("background", "a", "b")

    @pytest.mark.parametrize("key", ["modality", "channel_names"])
    def test_both_spellings_of_channels(self, tmp_path, key):
        describe(tmp_path, **{key: {"1": "T2", "0": "T1"}})
        assert declared_channels(tmp_path) == ("T1", "T2")

    def test_nothing_declared(self, tmp_path):
        assert declared_classes(tmp_path) is None
        describe(tmp_path, name="x")
        assert declared_classes(tmp_path) is None
        assert declared_channels(tmp_path) is None

    @pytest.mark.parametrize("labels", [{"0": "background", "2": "a"}, {"background": 0, "a": [1, 2]}, {"a": 1}, "a"])
    def test_values_with_gaps_or_regions_are_refused(self, tmp_path, labels):
        describe(tmp_path, labels=labels)
        with pytest.raises(DataError, match=r"dataset\.json: `labels`"):
            declared_classes(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[1]", ""])
    def test_a_broken_description_is_named(self, tmp_path, text):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset\.json"):
            declared_classes(tmp_path)


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

    def test_every_case_that_the_rule_misses_is_named(self, tmp_path):
        with pytest.raises(DataError, match="2 of 3 cases: b, c"):
            subjects_of(["p1", "b", "c"], SubjectRule(pattern=r"(p\d)"), tmp_path)

    @pytest.mark.parametrize(
        ("text", "error", "word"),
        [
            ("case,x\na,1\n", ConfigError, "no column 'subject'"),
            ("case,subject\na,1\na,2\n", DataError, "1 and to subject 2"),
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
