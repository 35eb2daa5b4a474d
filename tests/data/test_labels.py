"""Label files to classes, and cases that lie in several files or in a part of one."""

import itertools
import json
import re

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

from medssl.config import parse
from medssl.data.cases import IGNORED, Case, DatasetConfig
from medssl.data.check import check_cases
from medssl.data.inspect import Expected
from medssl.data.io import read_image, read_volume, write_image
from medssl.data.labels import as_classes, read_prediction
from medssl.data.prepared import read_prepared, settings_digest, write_dataset
from medssl.data.recipe import Recipe
from medssl.data.volume import Source, Volume
from medssl.errors import DataError
from medssl.prepare import Task, prepare_case

SHAPE = (5, 6, 7)
TEETH = DatasetConfig(
    name="teeth",
    classes=("background", "tooth", "canal"),
    values={"tooth": (11, 12, -3), "canal": (5,)},
    ignore=(255, 99),
    regions={"all": ("tooth", "canal")},
    recipe=Recipe(crop=False),
)


def volume(array):
    return Volume(np.asarray(array, np.int32), np.eye(4))


def teeth_label():
    label = np.zeros(SHAPE, np.int16)
    label[1], label[2], label[3], label[4, 0], label[4, 1], label[4, 2] = 11, 12, 5, -3, 255, 99
    return label


class TestAsClasses:
    def test_several_values_become_one_class_and_unseen_ones_are_ignored(self):
        found = as_classes(volume(teeth_label()), TEETH).array
        assert found[:, 3, 3].tolist() == [0, 1, 1, 2, 0]
        assert found[4, :3, 0].tolist() == [1, IGNORED, IGNORED]

    def test_a_plain_dataset_changes_nothing(self):
        label = volume(np.arange(210).reshape(SHAPE) % 3)
        plain = DatasetConfig(name="x", classes=("a", "b", "c"))
        assert np.array_equal(as_classes(label, plain).array, label.array)

    def test_a_value_of_no_class_is_refused_by_name(self):
        for value in (7, -4, 256, 2**31 - 1, -(2**31)):
            with pytest.raises(DataError, match=f"holds {value}, which stands for no class"):
                as_classes(volume(np.full(SHAPE, value)), TEETH)


@pytest.mark.parametrize("text", ["[0, 1]", "7", "null", "{"])
def test_a_record_of_another_kind_is_named(tmp_path, text):
    (tmp_path / "predictions.json").write_text(text)
    write_image(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    said = r"predictions\.json: .*; without it, the meaning of the values in .*a\.nii\.gz is unknown"
    with pytest.raises(DataError, match=said):
        read_prediction(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("own", [5, "abc", [0.0, 1.0], [[0], [1]], {"0": 1}, [0, True], [0, 10**11]])
def test_own_values_are_whole_numbers(tmp_path, own):
    (tmp_path / "predictions.json").write_text(json.dumps({"own_values": own}))
    write_image(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    with pytest.raises(DataError, match=r"predictions\.json: not as medssl writes it.*\n  own_values"):
        read_prediction(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": {"tooth": (1,), "canal": (1,)}}, "value 1 stands for more than one class"),
        ({"values": {"crown": (1,)}}, "names crown"),
        ({"values": {"tooth": (2**31 - 1,)}}, "2147483647 is out of range; values must be from -65535 to 65535"),
        ({"ignore": (1,)}, "value 1 stands for more than one"),
        ({"regions": {"tooth": ("canal",)}}, "share the name tooth"),
        ({"regions": {"all": ("crown",)}}, "names crown"),
        ({"regions": {"all": ("background", "tooth")}}, "not the background"),
        ({"regions": {"all": ()}}, "needs one class or more"),
        ({"sides": [["tooth", "nerve"]]}, "`sides` names nerve"),
        ({"sides": [["tooth", "background"]]}, "`sides` names background"),
        ({"sides": [["tooth", "tooth"]]}, "`sides` names tooth more than once"),
        ({"classes": tuple(map(str, range(256)))}, "at most 255"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(changed, message):
    with pytest.raises(ValidationError, match=message):
        DatasetConfig(**{"name": "x", "classes": ("background", "tooth", "canal"), **changed})


@pytest.mark.parametrize(
    ("names", "likely"),
    [
        (("left kidney", "Right Kidney", "liver"), [("left kidney", "Right Kidney")]),
        (("Hippocampus_R", "hippocampus_l", "L5", "R5"), [("hippocampus_l", "Hippocampus_R")]),  # L5 is a vertebra
        (("upper-left", "cleft", "upper-right"), [("upper-left", "upper-right")]),
        (("left", "middle"), []),
        (("right ventricle", "myocardium", "left ventricle", "atrium_left", "atrium_right"), []),
        (("left lobe of the liver", "right lobe of the liver"), []),
        (("lateral ventricle L", "lateral ventricle R"), [("lateral ventricle L", "lateral ventricle R")]),
    ],
)
def test_names_suggest_sides_and_exchange_none(names, likely):
    dataset = DatasetConfig(name="two", classes=("background", *names))
    assert dataset.likely_sides == tuple(likely)
    assert dataset.mirrored_places == {}


@pytest.mark.parametrize(
    ("names", "values", "pairs"),
    [
        (("t11", "t21", "t33", "t43", "t18"), (11, 21, 33, 43, 18), [("t11", "t21"), ("t33", "t43")]),
        (("jaw", "11", "21", "55", "65"), (1, 11, 21, 55, 65), [("11", "21"), ("55", "65")]),
        (("tooth 11", "tooth 21"), (1, 2), []),  # not by their values
        (("l 11", "r 11", "21"), (11, 5, 21), [("l 11", "r 11")]),  # each once
        (("class 11", "class 20", "class 21"), (11, 20, 21), []),  # 20 is no tooth
        (tuple(map(str, range(1, 49))), range(1, 49), []),
    ],
)
def test_teeth_by_fdi_number_are_likely_sides(names, values, pairs):
    values = {name: (value,) for name, value in zip(names, values, strict=True)}
    assert DatasetConfig(name="jaw", classes=("none", *names), values=values).likely_sides == tuple(pairs)


def test_classes_may_be_called_by_numbers():
    said = {"name": 5, "classes": ["background", 11, 21], "values": {11: [11], 21: [21]}, "sides": [[11, 21]]}
    jaw = parse(DatasetConfig, said)
    assert (jaw.name, jaw.classes, jaw.mirrored_places) == ("5", ("background", "11", "21"), {1: 2, 2: 1})


def test_sides_that_are_said_change_places():
    teeth = DatasetConfig(name="teeth", classes=("0", "11", "12", "21", "22"), sides=(("11", "21"), ("22", "12")))
    assert teeth.mirrored_places == {1: 3, 3: 1, 2: 4, 4: 2}


class TestSources:
    def test_a_frame_of_a_4d_file_is_read_alone(self, tmp_path):
        frames = np.random.default_rng(0).random((*SHAPE, 3)).astype(np.float32)
        write_image(tmp_path / "cine.nii.gz", frames, np.eye(4))
        assert np.array_equal(read_image(Source(tmp_path / "cine.nii.gz", "2")).array, frames[..., 2])
        with pytest.raises(DataError, match="no frame 3; the file has 3"):
            read_volume(Source(tmp_path / "cine.nii.gz", "3"))

    def test_text_goes_there_and_back(self, tmp_path):
        for source in (Source(tmp_path / "a.nii.gz"), Source(tmp_path / "a.nii.gz", "2")):
            assert Source.parse(str(source)) == source
        (tmp_path / "odd#1.nii").touch()
        assert Source.parse("odd#1.nii", tmp_path) == Source(tmp_path / "odd#1.nii")

    def test_modalities_in_files_of_their_own_are_stacked(self, tmp_path):
        arrays = np.random.default_rng(0).random((2, *SHAPE)).astype(np.float32)
        for number, array in enumerate(arrays):
            write_image(tmp_path / f"{number}.nii.gz", array, np.eye(4))
        image = read_image(tmp_path / "0.nii.gz", tmp_path / "1.nii.gz")
        assert np.array_equal(np.moveaxis(image.array, -1, 0), arrays)

    def test_modalities_stored_with_other_axes_are_turned_onto_the_first(self, tmp_path):
        arrays = np.random.default_rng(0).random((2, *SHAPE)).astype(np.float32)
        affine = np.array([[0, 2, 0, -3], [-0.5, 0, 0.1, 8], [0, 0, 4, 1.0], [0, 0, 0, 1]])
        first, second = (nib.Nifti1Image(array, affine) for array in arrays)
        nib.save(first, tmp_path / "0.nii.gz")
        orders = [np.array([*zip(order, signs, strict=True)]) for order in itertools.permutations(range(3))
                  for signs in itertools.product((1, -1), repeat=3)]  # fmt: skip
        for order in orders:
            nib.save(second.as_reoriented(order), tmp_path / "1.nii.gz")
            image = read_image(tmp_path / "0.nii.gz", tmp_path / "1.nii.gz")
            assert np.array_equal(np.moveaxis(image.array, -1, 0), arrays)
            np.testing.assert_allclose(image.affine, affine, atol=1e-6)

    @pytest.mark.parametrize(("moved", "is_refused"), [(0.3, False), (0.7, True), (-6.0, True)])
    def test_modalities_on_other_grids_are_no_channels(self, tmp_path, moved, is_refused):
        """By voxels along the last axis, of which each has 3 mm."""
        affine = np.diag([1.0, 2.0, 3.0, 1.0])
        array = np.random.default_rng(0).random(SHAPE).astype(np.float32)
        write_image(tmp_path / "0.nii.gz", array, affine)
        affine[2, 3] = 3 * moved
        write_image(tmp_path / "1.nii.gz", array, affine)
        if not is_refused:
            assert len(read_image(tmp_path / "0.nii.gz", tmp_path / "1.nii.gz").channels) == 2
            return
        words = f"1.nii.gz: image and other channel lie on different grids, up to {abs(moved):g} voxels apart"
        with pytest.raises(DataError, match=re.escape(words)):
            read_image(tmp_path / "0.nii.gz", tmp_path / "1.nii.gz")


class TestPreparing:
    def case(self, root, shapes=(SHAPE, SHAPE)):
        for number, shape in enumerate(shapes):
            write_image(root / f"{number}.nii.gz", np.random.default_rng(number).random(shape), np.eye(4))
        write_image(root / "label.nii.gz", teeth_label(), np.eye(4))
        images = tuple(Source(root / f"{number}.nii.gz") for number in range(len(shapes)))
        return Case("c", "p", images, Source(root / "label.nii.gz"))

    def test_the_store_holds_classes_and_centres_without_what_is_ignored(self, tmp_path):
        config = TEETH.model_copy(update={"channels": ("T1", "T2")})
        case = self.case(tmp_path)
        assert not check_cases([case], config).errors
        prepare_case(Task(case, tmp_path / "out", config, Expected.of(config)))
        write_dataset(tmp_path / "out", config, [case])
        stored = read_prepared(tmp_path / "out").cases["c"]
        assert stored.open_image().shape == (2, *SHAPE)
        assert set(np.unique(stored.open_label()[...])) == {0, 1, 2, IGNORED}
        assert len(stored.centres()) == 2
        assert stored.images == tuple(source.absolute() for source in case.images)

    def test_other_values_make_cases_anew(self):
        other = TEETH.model_copy(update={"ignore": (255, 99, 98)})
        assert settings_digest(TEETH) != settings_digest(other)

    def test_the_check_counts_files_against_channels_and_compares_their_grids(self, tmp_path):
        report = check_cases([self.case(tmp_path, (SHAPE, (5, 6, 8)))], TEETH)
        assert {finding.code for finding in report.errors} == {"channels", "grid"}

    def test_the_check_knows_values_and_counts_by_class(self, tmp_path):
        report = check_cases([self.case(tmp_path, (SHAPE,))], TEETH)
        assert not report.errors
        assert report.facts[0].voxels[1] == 2 * 42 + 7
        plain = DatasetConfig(name="x", classes=("background", "tooth", "canal"))
        assert {finding.code for finding in check_cases([self.case(tmp_path, (SHAPE,))], plain).errors} == {
            "unknown_value", "negative",
        }  # fmt: skip
