"""3D Slicer's segmentations (.seg.nrrd): cut to their segments, named, in layers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medssl.data.cases import DatasetConfig
from medssl.data.check import check
from medssl.data.fix import apply_fixes
from medssl.data.io import read_label
from medssl.data.layouts import read_layout
from medssl.errors import DataError
from medssl.evaluate import evaluate_folders
from medssl.prepare import prepare

SHAPE = (9, 10, 11)
SPACING, ORIGIN = (0.5, 0.5, 2.0), (-3.0, 7.0, 20.0)
DIRECTION = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
TEETH = DatasetConfig(name="jaw", classes=("background", "molar", "canine"))


def placed(array, start=(0, 0, 0)):
    """An image of SimpleITK of `(X, Y, Z)`, or `(X, Y, Z, M)`, whose first voxel is `start` of the scan's grid."""
    image = sitk.GetImageFromArray(np.moveaxis(array, (0, 1, 2), (2, 1, 0)), isVector=array.ndim == 4)
    image.SetSpacing(SPACING)
    image.SetDirection(DIRECTION)
    image.SetOrigin(np.array(ORIGIN) + np.reshape(DIRECTION, (3, 3)) @ (np.array(SPACING) * start))
    return image


def write_segmentation(path, array, start=(0, 0, 0), names=(), shape=SHAPE, spacing=SPACING):
    image = placed(array, start)
    for number, (value, name) in enumerate(names):
        for key, said in (("Name", name), ("LabelValue", str(value)), ("Layer", "0")):
            image.SetMetaData(f"Segment{number}_{key}", said)
    image.SetMetaData("Segmentation_ReferenceImageExtentOffset", " ".join(map(str, start)))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(DIRECTION, (3, 3)) * spacing
    numbers = [*matrix.ravel(), *(end for side in shape for end in (0, side - 1))]
    geometry = "".join(f"{number:.10g};" for number in numbers)
    said = f"Collapse labelmaps|1|Merge.&Reference image geometry|{geometry}|The grid.&Smoothing factor|-0.5|Smooth.&"
    image.SetMetaData("Segmentation_ConversionParameters", said)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)


def drawn():
    label = np.zeros(SHAPE, np.uint8)
    label[2:5, 3:7, 4:9] = 1
    label[5, 6, 8] = 2
    return label


@pytest.fixture
def source(tmp_path):
    """A scan and its segmentation, cut to the segments."""
    root, label = tmp_path / "raw", drawn()
    (root / "images").mkdir(parents=True)
    image = (100 * label + np.random.default_rng(0).uniform(0, 9, SHAPE)).astype(np.float32)
    sitk.WriteImage(placed(image), str(root / "images" / "Ada.nrrd"))
    write_segmentation(root / "labels" / "Ada.seg.nrrd", label[2:6, 3:7, 4:9], (2, 3, 4), [(1, "Molar"), (2, "canine")])
    return root


def test_a_cut_segmentation_is_read_on_the_grid_that_it_was_cut_from(source):
    label = read_label(source / "labels" / "Ada.seg.nrrd")
    assert np.array_equal(label.array, drawn())
    sitk.WriteImage(placed(drawn()), str(source / "whole.nrrd"))
    np.testing.assert_allclose(label.affine, read_label(source / "whole.nrrd").affine, atol=1e-9)
    assert label.segments == ((1, "Molar"), (2, "canine"))


def test_it_belongs_to_the_image_of_its_name_and_prepares_and_scores(source, tmp_path):
    (case,) = read_layout(source, TEETH).cases
    assert (case.id, case.label.path.name) == ("Ada", "Ada.seg.nrrd")
    assert [finding.code for finding in check(source, TEETH, workers=0).findings if finding.severity == "error"] == []
    prepare(source, tmp_path / "prepared", TEETH, workers=0)
    sitk.WriteImage(placed(drawn()), str(tmp_path / "Ada.nii.gz"))
    shutil.rmtree(tmp_path / "p", ignore_errors=True)
    (tmp_path / "p").mkdir()
    shutil.move(tmp_path / "Ada.nii.gz", tmp_path / "p" / "Ada.nii.gz")
    scores = evaluate_folders(tmp_path / "p", source / "labels", tmp_path / "s.csv", classes=TEETH.classes, workers=0)
    assert [score.dice for score in scores] == [1, 1]


def test_values_that_another_file_has_for_other_segments_are_found(source):
    write_segmentation(source / "labels" / "Ada.seg.nrrd", drawn(), names=[(2, "molar"), (1, "Canine")])
    found = [finding for finding in check(source, TEETH, workers=0).findings if finding.code == "segment_names"]
    assert [finding.severity for finding in found] == ["error", "error"]
    assert found[0].found == "the file calls value 1 Canine, but by the settings it is molar"
    own = TEETH.model_copy(update={"values": {"canine": (1,), "molar": (2,)}})
    assert not [f for f in check(source, own, workers=0).findings if f.code == "segment_names"]


def test_a_reference_whose_segments_have_other_values_is_not_scored(source, tmp_path):
    (tmp_path / "p").mkdir()
    sitk.WriteImage(placed(drawn()), str(tmp_path / "p" / "Ada.nii.gz"))
    path, out = source / "labels" / "Ada.seg.nrrd", tmp_path / "s.csv"
    write_segmentation(path, drawn(), names=[(2, "molar"), (1, "canine"), (3, "Background")])
    with pytest.raises(DataError, match=r"the file calls value 1 canine, but by the settings it is molar; the file"):
        evaluate_folders(tmp_path / "p", source / "labels", out, classes=TEETH.classes, workers=0)
    write_segmentation(path, drawn(), names=[(1, "molar"), (2, "canine"), (3, "molar")])  # no voxel has the third
    assert evaluate_folders(tmp_path / "p", source / "labels", out, classes=TEETH.classes, workers=0)


@pytest.mark.parametrize("place", ["{}/t1.nrrd {}/t2.nrrd {}/Segmentation.seg.nrrd",
                                   "images/{}_0000.nrrd images/{}_0001.nrrd labels/{}.seg.nrrd"])  # fmt: skip
def test_it_is_the_label_of_several_channels(tmp_path, place):
    two = DatasetConfig(name="jaw", classes=TEETH.classes, channels=("t1", "t2"))
    for case in ("P1", "P2"):
        *images, label = (tmp_path / name for name in place.format(*3 * [case]).split())
        write_segmentation(label, drawn())
        for image in images:
            image.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(placed(drawn()), str(image))
    cases = read_layout(tmp_path, two).cases
    assert [(case.id, len(case.images), case.label is not None) for case in cases] == [("P1", 2, True), ("P2", 2, True)]


@pytest.mark.parametrize("change", [{"spacing": (0.25, 0.5, 2.0)}, {"shape": (5, 10, 11)}])
def test_what_does_not_fit_the_grid_that_it_names_stays_as_it_is(source, change):
    path = source / "labels" / "Ada.seg.nrrd"
    write_segmentation(path, drawn()[2:6, 3:7, 4:9], (2, 3, 4), **change)
    assert read_label(path).shape == (4, 4, 5)
    (finding,) = [finding for finding in check(source, TEETH, workers=0).findings if finding.code == "grid"]
    assert "copy the image's header" not in finding.fix


def test_layers_are_refused_with_what_to_do(source):
    write_segmentation(source / "labels" / "Ada.seg.nrrd", np.stack([drawn() == 1, drawn() == 2], -1).astype(np.uint8))
    with pytest.raises(DataError, match=r"Ada\.seg\.nrrd: 2 layers of overlapping segments.*export the segments"):
        read_label(source / "labels" / "Ada.seg.nrrd")


def test_a_fixed_copy_of_a_cut_one_is_whole_and_in_place(source, tmp_path):
    own = DatasetConfig(name="jaw", classes=("background", "tooth"), values={"tooth": (1, 2)})
    report = check(source, own, workers=0)
    apply_fixes(report, tmp_path / "copy", own, workers=0)
    copied = read_label(Path(tmp_path) / "copy" / "labels" / "Ada.seg.nrrd")
    before = read_label(source / "labels" / "Ada.seg.nrrd")
    assert np.array_equal(copied.array, drawn() > 0)
    np.testing.assert_allclose(copied.affine, before.affine, atol=1e-6)
