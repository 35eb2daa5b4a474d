"""What is found in images and labels, from made datasets whose numbers are known."""

import json

import numpy as np
import pytest

from medssl.data.cases import Case, DatasetConfig
from medssl.data.fingerprint import MOST_CASES, evenly, image_facts, take_fingerprint
from medssl.data.io import write_image
from medssl.data.phantoms import write_dataset
from medssl.data.volume import Source
from medssl.errors import DataError

CLASSES = DatasetConfig(name="made", classes=("background", "one", "two"))
SHAPE = (5, 6, 7)


def write_case(folder, name, image, label=None, spacing=(1.0, 2.0, 3.0)):
    write_image(folder / "images" / f"{name}.nii.gz", image, np.diag([*spacing, 1]))
    if label is not None:
        write_image(folder / "labels" / f"{name}.nii.gz", label.astype(np.uint8), np.diag([*spacing, 1]))


def bright(shape=SHAPE):
    return np.random.default_rng(0).uniform(50, 100, shape).astype(np.float32)


def test_shares_and_pieces_of_classes_are_those_of_the_labels(tmp_path):
    first, second = np.zeros(SHAPE), np.zeros(SHAPE)
    first[0, 0, :3] = 1  # three voxels together, one apart
    first[4, 5, 6] = 1
    second[:2, :2, :2] = 2
    write_case(tmp_path, "a", bright(), first)
    write_case(tmp_path, "b", bright(), second)
    write_case(tmp_path, "c", bright())
    found = take_fingerprint(tmp_path, CLASSES, workers=0)
    assert (found.cases, found.labelled, found.labels, len(found.images)) == (3, 2, 2, 3)
    background, one, two = found.classes
    assert (one.name, one.cases, one.share, one.largest) == ("one", 1, 4 / (2 * 210), 0.75)
    assert (two.name, two.cases, two.share, two.largest) == ("two", 1, 8 / (2 * 210), 1.0)
    assert background.share == pytest.approx(1 - 12 / 420)


def test_a_label_of_four_axes_is_no_label_map(tmp_path):
    write_case(tmp_path, "a", bright(), np.zeros((*SHAPE, 3)))
    with pytest.raises(DataError, match=r"labels/a\.nii\.gz: a label map must have 3 axes, got 4"):
        take_fingerprint(tmp_path, CLASSES, workers=0)


def test_what_nobody_annotated_is_no_share_of_anything(tmp_path):
    label = np.zeros(SHAPE)
    label[0], label[1:3] = 1, 255
    write_case(tmp_path, "a", bright(), label)
    ignoring = CLASSES.model_copy(update={"ignore": (255,)})
    _, one, two = take_fingerprint(tmp_path, ignoring, workers=0).classes
    assert (one.share, two.cases) == (1 / 3, 0)


@pytest.mark.parametrize("flip", [1, -1])
def test_sizes_are_those_of_the_foreground_on_ras_axes(tmp_path, flip):
    image = np.zeros((30, 24, 20), np.float32)
    image[10:16, 8:15, 5:13] = bright((6, 7, 8))
    affine = np.zeros((4, 4))  # stored axes: up, right or left, front
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 3, 1 * flip, 2, 1
    write_image(tmp_path / "a.nii.gz", image, affine)
    facts = image_facts(Case("a", "a", (Source(tmp_path / "a.nii.gz"),), None))
    assert facts.spacing == (1, 2, 3)
    assert facts.shape == (7 + 4, 8 + 4, 6 + 4)  # a margin of two voxels


@pytest.mark.parametrize(("kind", "hounsfield"), [("cbct", True), ("cardiac", False)])
def test_grey_levels_tell_ct_from_mri(tmp_path, kind, hounsfield):
    write_dataset(tmp_path / "raw", kind, labelled=0, unlabelled=3)
    found = take_fingerprint(tmp_path / "raw", CLASSES, workers=0)
    assert found.hounsfield == (hounsfield,)
    assert found.classes == ()


def test_labels_are_not_opened_for_what_images_tell(tmp_path):
    write_dataset(tmp_path / "raw", "cardiac", labelled=1)
    label = next((tmp_path / "raw" / "labels").iterdir())
    label.write_bytes(b"no volume")
    case = Case("a", "a", (Source(tmp_path / "raw" / "images" / label.name),), Source(label))
    assert image_facts(case).shape[2] > 5


def test_the_same_files_give_the_same_numbers_in_any_number_of_processes(tmp_path):
    write_dataset(tmp_path / "raw", "cardiac", labelled=2, unlabelled=1)
    config = DatasetConfig(name="heart", classes=("background", "a", "b", "c"))
    one, other = (take_fingerprint(tmp_path / "raw", config, workers=workers) for workers in (0, 2))
    assert one == other
    assert json.loads(json.dumps(one.to_json()))["images"][2]["case"] == "cardiac_002"


def test_a_large_dataset_is_read_in_part_from_everywhere():
    assert evenly(range(7)) == [0, 1, 2, 3, 4, 5, 6]
    chosen = evenly(range(1003))
    assert len(chosen) == len(set(chosen)) == MOST_CASES
    assert max(np.diff([*chosen, 1003])) <= 6


def test_what_cannot_be_used_is_said_with_its_file(tmp_path):
    image = bright()
    image[0, 0, 0] = np.nan
    write_case(tmp_path / "nan", "a", image)
    with pytest.raises(DataError, match=r"a\.nii\.gz: holds NaN"):
        take_fingerprint(tmp_path / "nan", CLASSES, workers=0)
    write_case(tmp_path / "unlike", "a", bright())
    write_case(tmp_path / "unlike", "b", bright((*SHAPE, 2)))
    with pytest.raises(DataError, match=r"case a has 1 channel.* case b has 2"):
        take_fingerprint(tmp_path / "unlike", CLASSES, workers=0)
    write_case(tmp_path / "values", "a", bright(), np.full(SHAPE, 9))
    with pytest.raises(DataError, match="holds 9, which stands for no class"):
        take_fingerprint(tmp_path / "values", CLASSES, workers=0)
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="no volume found"):
        take_fingerprint(tmp_path / "empty", CLASSES, workers=0)
