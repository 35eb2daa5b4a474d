"""Phantoms promise a task that can be learnt: every class, sound anatomy, true geometry, the same bits anywhere."""

import time
import zlib

import numpy as np
import pytest
from scipy import ndimage

from medssl.data.io import case_id, list_volumes, read_image, read_label
from medssl.data.phantoms import DEFAULT_SHAPES, KINDS, draw, write_dataset
from medssl.data.volume import spacing_of
from medssl.errors import ConfigError, DataError

SEEDS = range(20)
LACKED = {"canine"}
"""What a patient may lack."""


@pytest.fixture(scope="module")
def drawn():
    return {kind: [draw(kind, seed) for seed in SEEDS] for kind in KINDS}


def off_axis(affine):
    """Largest angle in degrees between a voxel axis and the nearest axis of the world."""
    cosines = np.abs(affine[:3, :3] / spacing_of(affine)).max(0)
    return np.degrees(np.arccos(cosines.clip(-1, 1))).max()


def in_patient_axes(phantom, array):
    """The array with x to the left, y to the back and z up, whatever the orientation it is stored in."""
    stored = np.sign(np.diag(phantom.affine)[:3])
    return np.flip(array, np.flatnonzero(stored != (-1, -1, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_phantom_holds_all_classes_in_the_promised_types(drawn, kind):
    for phantom in drawn[kind]:
        assert phantom.image.shape == phantom.label.shape == DEFAULT_SHAPES[kind]
        assert (phantom.image.dtype, phantom.label.dtype) == (np.int16, np.uint8)
        voxels = np.bincount(phantom.label.ravel())
        assert len(voxels) == len(KINDS[kind])
        assert voxels[[name not in LACKED for name in KINDS[kind]]].min() > 300


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(33, 27, 7), (17, 19, 5), (40, 48, 13)])
def test_odd_shapes_hold_all_classes_over_the_same_field_of_view(drawn, kind, shape):
    for seed in (0, 1, 2, 3):
        phantom, usual = draw(kind, seed, shape), drawn[kind][seed]
        assert phantom.image.shape == phantom.label.shape == shape
        classes = set(np.unique(phantom.label))
        assert {value for value, name in enumerate(KINDS[kind]) if name not in LACKED} <= classes
        assert classes <= set(range(len(KINDS[kind])))
        extents = [np.multiply(spacing_of(one.affine), one.label.shape) for one in (phantom, usual)]
        np.testing.assert_allclose(*extents)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_shows_the_same_anatomy_at_any_resolution(drawn, kind):
    x, y, z = DEFAULT_SHAPES[kind]
    fine = draw(kind, 4, (x * 3 // 2, y * 3 // 2, z)).label
    for value in range(1, len(KINDS[kind])):
        assert (fine == value).sum() / 2.25 == pytest.approx((drawn[kind][4].label == value).sum(), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_phantom_depends_on_its_arguments_alone(kind):
    first = draw(kind, 7, (21, 19, 6))
    np.random.default_rng(0).normal(size=5)
    draw(kind, 8, (21, 19, 6))
    second = draw(kind, 7, (21, 19, 6))
    for name in ("image", "label", "affine"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize(
    ("kind", "image", "label"), [("cardiac", 1032836959, 3250408371), ("cbct", 62645002, 470551914)]
)
def test_a_phantom_has_the_same_bits_on_every_machine(kind, image, label):
    """The sums change only with the drawing itself, and then so do all results on phantoms."""
    phantom = draw(kind, 3, (33, 27, 7))
    assert zlib.crc32(phantom.image.astype("<i2").tobytes()) == image
    assert zlib.crc32(phantom.label.tobytes()) == label


@pytest.mark.parametrize("kind", KINDS)
def test_anatomy_and_intensities_vary_by_seed(drawn, kind):
    for value in range(1, len(KINDS[kind])):
        sizes = [(phantom.label == value).sum() for phantom in drawn[kind]]
        levels = [np.median(phantom.image[phantom.label == value]) for phantom in drawn[kind]]
        assert max(sizes) > 1.3 * min(sizes)
        assert len(set(levels)) > 10
        assert max(levels) > 1.2 * min(levels)


def test_the_left_ventricle_is_closed_in_by_its_wall_in_every_slice(drawn):
    for phantom in drawn["cardiac"]:
        for label in np.moveaxis(phantom.label, 2, 0):
            cavity = label == 3
            rim = ndimage.binary_dilation(cavity) & ~cavity
            assert (label[rim] == 2).all()


def test_the_heart_narrows_from_base_to_apex(drawn):
    for phantom in drawn["cardiac"]:
        areas = (in_patient_axes(phantom, phantom.label) >= 2).sum((0, 1))
        areas = areas[areas > 0]
        assert len(areas) >= 6
        assert areas[0] < 0.6 * areas[len(areas) // 2] < 0.6 * areas[-2] * 1.2


def test_the_right_ventricle_lies_to_the_patients_right_and_touches_the_wall(drawn):
    for phantom in drawn["cardiac"]:
        label = in_patient_axes(phantom, phantom.label)
        right, wall = label == 1, label == 2
        assert np.argwhere(right)[:, 0].mean() < np.argwhere(wall)[:, 0].mean() - 4
        assert (ndimage.binary_dilation(right) & wall).sum() > 100


def test_blood_is_brighter_than_the_heart_muscle(drawn):
    for phantom in drawn["cardiac"]:
        right, muscle, left = (np.median(phantom.image[phantom.label == value]) for value in (1, 2, 3))
        assert min(right, left) > 1.2 * muscle


def test_the_pulp_never_reaches_the_surface_of_its_tooth(drawn):
    for phantom in drawn["cbct"]:
        tooth = phantom.label > 0
        inside = ndimage.binary_erosion(tooth, border_value=1)
        assert inside[phantom.label == 2].all()


def test_several_teeth_have_a_pulp_of_their_own(drawn):
    for phantom in drawn["cbct"]:
        parts, count = ndimage.label(phantom.label == 2, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        assert 4 <= (sizes > 20).sum() <= 13


def test_jaw_intensities_are_roughly_hounsfield_units(drawn):
    for phantom in drawn["cbct"]:
        tooth, pulp = (np.median(phantom.image[phantom.label == value]) for value in (1, 2))
        assert phantom.image.min() >= -1024
        assert 1100 < tooth < 2100
        assert -200 < pulp < 900
    metal = [phantom.image.max() > 3600 for phantom in drawn["cbct"]]
    assert 2 <= sum(metal) < len(metal)


@pytest.mark.parametrize("kind", KINDS)
def test_spacing_is_that_of_the_field(drawn, kind):
    low, high = ((2.0, 2.0, 8.0), (2.6, 2.6, 10.0)) if kind == "cardiac" else ((0.5,) * 3, (0.62,) * 3)
    spacings = np.array([spacing_of(phantom.affine) for phantom in drawn[kind]])
    assert (spacings >= low).all()
    assert (spacings <= high).all()
    assert len(np.unique(spacings[:, 0])) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_every_third_volume_is_oblique_and_orientations_differ(drawn, kind):
    angles = np.array([off_axis(phantom.affine) for phantom in drawn[kind]])
    oblique = np.arange(len(angles)) % 3 == 2
    assert (angles[oblique] > 5).all()
    assert (angles[oblique] < 40).all()
    np.testing.assert_allclose(angles[~oblique], 0, atol=1e-5)
    assert len({tuple(np.sign(np.diag(phantom.affine)[:3])) for phantom in drawn[kind]}) > 1
    assert all(phantom.affine[2, 2] > 0 for phantom in drawn[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_default_volume_is_drawn_quickly(kind):
    seconds = []
    for seed in range(2):
        start = time.process_time()
        draw(kind, seed)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_dataset_reads_back_as_it_was_drawn(tmp_path, kind):
    write_dataset(tmp_path / "made", kind, labelled=2, unlabelled=1, seed=5, shape=(21, 19, 6))
    images, labels = (list_volumes(tmp_path / "made" / name) for name in ("images", "labels"))
    assert [case_id(path) for path in images] == [f"{kind}_000", f"{kind}_001", f"{kind}_002"]
    assert [case_id(path) for path in labels] == [f"{kind}_000", f"{kind}_001"]
    assert sum(off_axis(read_image(path).affine) > 5 for path in images) == 1
    for image_path, label_path in zip(images[:2], labels, strict=True):
        image, label = read_image(image_path), read_label(label_path)
        assert label.header.get_data_dtype() == np.uint8
        assert set(np.unique(label.array)) == set(range(len(KINDS[kind])))
        np.testing.assert_array_equal(image.affine, label.affine)
    assert not np.array_equal(read_image(images[0]).array, read_image(images[1]).array)


def test_asking_for_more_cases_keeps_the_earlier_ones(tmp_path):
    write_dataset(tmp_path / "few", "cardiac", labelled=1, shape=(15, 13, 5))
    write_dataset(tmp_path / "many", "cardiac", labelled=2, unlabelled=1, shape=(15, 13, 5))
    few, many = (read_image(tmp_path / name / "images" / "cardiac_000.nii.gz") for name in ("few", "many"))
    np.testing.assert_array_equal(few.array, many.array)
    np.testing.assert_array_equal(few.affine, many.affine)


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="new or empty folder"):
        write_dataset(tmp_path, "cbct", labelled=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_kind_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="cardiac, cbct, teeth, found 'liver'"):
        write_dataset(tmp_path / "made", "liver", labelled=1)
    assert not (tmp_path / "made").exists()


def test_teeth_are_those_of_the_jaw_told_apart():
    jaw, teeth = draw("cbct", 3), draw("teeth", 3)
    assert np.array_equal(jaw.image, teeth.image)
    assert np.array_equal(jaw.label == 2, teeth.label == KINDS["teeth"].index("pulp canal"))
    assert np.array_equal(jaw.label == 1, np.isin(teeth.label, [1, 2, 3]))
