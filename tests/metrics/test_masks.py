"""Masks drawn by hand, with distances that can be counted on fingers; and MONAI's numbers on random ones."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from monai import metrics

from medssl.data.volume import Volume
from medssl.metrics import asd, dice, hd95, iou, score_case, surface_distances

SHAPE = (5, 6, 7)
SPACING = (0.5, 2.0, 3.0)


def voxels(*places, shape=SHAPE):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def blob(seed, shape=(9, 11, 8)):
    """A random mask of some hundred voxels with holes, crumbs, and contact with the border."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.15
    x, y, z = rng.integers(0, 4, 3)
    mask[x : x + 5, y : y + 5, z : z + 5] = True
    mask[x + 2, y + 2, z + 1] = False
    return mask


def volume(array, spacing=SPACING):
    return Volume(np.asarray(array, np.int32), np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(("axis", "distance"), list(enumerate(SPACING)))
def test_a_voxel_moved_by_one_is_one_spacing_away(axis, distance):
    place = [2, 2, 2]
    moved = list(place)
    moved[axis] += 1
    one, other = voxels(tuple(place)), voxels(tuple(moved))
    assert hd95(one, other, SPACING) == distance
    assert asd(one, other, SPACING) == distance
    assert dice(one, other) == 0
    assert iou(one, other) == 0


def test_diagonal_distance_uses_every_spacing():
    assert hd95(voxels((0, 0, 0)), voxels((4, 2, 1)), SPACING) == pytest.approx((2**2 + 4**2 + 3**2) ** 0.5)


def test_overlap_of_a_drawn_pair():
    one, other = voxels(np.s_[1, 1, 0:4]), voxels(np.s_[1, 1, 2:5])
    assert dice(one, other) == pytest.approx(2 * 2 / (4 + 3))
    assert iou(one, other) == pytest.approx(2 / 5)


def test_asd_pools_both_directions_and_hd95_takes_the_larger():
    line, end = voxels(np.s_[0, 0, 0:5]), voxels((0, 0, 0))  # one direction 0 1 2 3 4, the other 0
    assert asd(line, end, (1, 1, 1)) == pytest.approx(10 / 6)
    assert hd95(line, end, (1, 1, 1)) == pytest.approx(3.8)
    assert hd95(end, line, (1, 1, 1)) == pytest.approx(3.8)


def test_hd95_is_the_larger_percentile_and_not_that_of_the_pool():
    # 20 voxels in place and two 10 mm off: pooled with 20 zeros more, the percentile would be 0.
    near = np.s_[0, 0, 0:20]
    one, other = voxels(near, (0, 10, 0), (0, 10, 1), shape=(1, 11, 20)), voxels(near, shape=(1, 11, 20))
    assert hd95(one, other, (1, 1, 1)) == pytest.approx(np.percentile([0] * 20 + [10, 10], 95))
    assert np.percentile([0] * 40 + [10, 10], 95) == 0


def test_inner_voxels_are_no_surface():
    cube, shell = voxels(np.s_[1:4, 1:4, 1:4]), voxels(np.s_[1:4, 1:4, 1:4])
    shell[2, 2, 2] = False
    to_shell, to_cube = surface_distances(cube, shell, (1, 1, 1))
    assert len(to_shell) == 26
    assert len(to_cube) == 26
    assert hd95(cube, shell, (1, 1, 1)) == 0


def test_the_border_of_the_volume_is_a_surface():
    full = np.ones((4, 5, 6), bool)
    to_itself, _ = surface_distances(full, full, (1, 1, 1))
    assert len(to_itself) == 4 * 5 * 6 - 2 * 3 * 4


@pytest.mark.parametrize("mask", [voxels((4, 5, 6)), voxels(np.s_[1:4, 2:, :3]), np.ones(SHAPE, bool)])
def test_a_mask_agrees_with_itself(mask):
    assert (dice(mask, mask), iou(mask, mask)) == (1, 1)
    assert (hd95(mask, mask, SPACING), asd(mask, mask, SPACING)) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_swapping_the_masks_changes_nothing(seed):
    one, other = blob(seed), blob(seed + 100)
    assert dice(one, other) == dice(other, one)
    assert iou(one, other) == iou(other, one)
    assert hd95(one, other, SPACING) == hd95(other, one, SPACING)
    assert asd(one, other, SPACING) == pytest.approx(asd(other, one, SPACING))


@pytest.mark.parametrize("place", [(0, 0, 0), (3, 1, 5), (7, 4, 2)])
def test_moving_both_masks_changes_nothing(place):
    def placed(mask):
        room = np.zeros((16, 15, 14), bool)
        room[tuple(slice(start, start + side) for start, side in zip(place, mask.shape, strict=True))] = mask
        return room

    one, other = blob(1), blob(2)
    assert hd95(placed(one), placed(other), SPACING) == hd95(one, other, SPACING)
    assert asd(placed(one), placed(other), SPACING) == asd(one, other, SPACING)
    assert dice(placed(one), placed(other)) == dice(one, other)


def test_distances_scale_with_the_spacing():
    one, other = blob(3), blob(4)
    twice = [2 * side for side in SPACING]
    assert hd95(one, other, twice) == pytest.approx(2 * hd95(one, other, SPACING))
    assert asd(one, other, twice) == pytest.approx(2 * asd(one, other, SPACING))


def test_turning_axes_with_their_spacing_changes_nothing():
    one, other, order = blob(5), blob(6), (2, 0, 1)
    turned = [SPACING[axis] for axis in order]
    assert hd95(one.transpose(order), other.transpose(order), turned) == pytest.approx(hd95(one, other, SPACING))


def test_empty_masks_have_no_distance_and_both_empty_no_overlap():
    empty, some = voxels(), voxels((1, 2, 3))
    assert dice(empty, empty) is None
    assert iou(empty, empty) is None
    for one, other in [(empty, some), (some, empty)]:
        assert (dice(one, other), iou(one, other)) == (0, 0)
    for one, other in [(empty, some), (some, empty), (empty, empty)]:
        assert surface_distances(one, other, SPACING) is None
        assert hd95(one, other, SPACING) is None
        assert asd(one, other, SPACING) is None


@pytest.mark.parametrize("seed", range(6))
def test_dice_and_hd95_are_those_of_monai(seed):
    one, other = blob(seed), blob(seed + 50)
    spacing = tuple(np.random.default_rng(seed).uniform(0.3, 4, 3))
    batch = [torch.from_numpy(mask)[None, None].float() for mask in (one, other)]
    theirs = metrics.compute_hausdorff_distance(*batch, include_background=True, percentile=95, spacing=spacing)
    assert hd95(one, other, spacing) == pytest.approx(theirs.item(), rel=1e-5)
    assert dice(one, other) == pytest.approx(metrics.compute_dice(*batch, include_background=True).item(), rel=1e-5)


def test_a_case_scores_each_foreground_class_by_itself():
    reference, prediction = np.zeros(SHAPE, int), np.zeros(SHAPE, int)
    reference[1, 1, 1:3], prediction[1, 1, 2:4] = 1, 1  # moved by 3 mm
    reference[3, 3, 3] = 2  # missed
    prediction[4, 5, 6] = 3  # invented
    classes = {1: "liver", 2: "spleen", 3: "stone", 4: "cyst"}
    liver, spleen, stone, cyst = score_case("a", volume(prediction), volume(reference), classes)["strict"]

    assert (liver.case, liver.class_name, liver.label, liver.status) == ("a", "liver", 1, "scored")
    assert (liver.dice, liver.iou) == (pytest.approx(0.5), pytest.approx(1 / 3))
    assert liver.asd == pytest.approx((3 + 0 + 0 + 3) / 4)
    assert liver.hd95 == pytest.approx(0.95 * 3)
    assert (liver.prediction_voxels, liver.reference_voxels) == (2, 2)

    assert (spleen.status, spleen.dice, spleen.iou, spleen.hd95, spleen.asd) == ("missed", 0, 0, None, None)
    assert (spleen.prediction_voxels, spleen.reference_voxels) == (0, 1)
    assert (stone.status, stone.dice, stone.iou, stone.hd95, stone.asd) == ("invented", 0, 0, None, None)
    assert (stone.prediction_voxels, stone.reference_voxels) == (1, 0)
    assert (cyst.status, cyst.dice, cyst.iou, cyst.hd95, cyst.asd) == ("absent", None, None, None, None)


def test_an_oblique_grid_measures_along_its_own_axes():
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING
    one, other = (Volume(voxels(place).astype(np.int32), affine) for place in [(1, 1, 1), (1, 2, 1)])
    (score,) = score_case("a", one, other, {1: "organ"})["strict"]
    assert score.hd95 == pytest.approx(2.0)


def test_other_shapes_types_and_spacings_are_refused():
    mask = voxels((1, 1, 1))
    with pytest.raises(ValueError, match="shape"):
        dice(mask, mask[:1])
    with pytest.raises(ValueError, match="boolean"):
        iou(mask, mask.astype(int))
    with pytest.raises(ValueError, match="spacing"):
        hd95(mask, mask, (1, 1))
    with pytest.raises(ValueError, match="spacing"):
        asd(mask, mask, (1, 0, 1))


def test_neither_metrics_nor_evaluate_loads_torch():
    code = "import sys, medssl.metrics, medssl.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
