"""Instances drawn by hand, and with both libraries that find them."""

import numpy as np
import pytest
from scipy import ndimage

from medssl.metrics.instances import components, match


def teeth(*starts, shape=(5, 6, 40)):
    """Cuboids of 2 x 3 x 4 voxels in a row."""
    mask = np.zeros(shape, bool)
    for start in starts:
        mask[1:3, 1:4, start : start + 4] = True
    return mask


def test_a_tooth_in_place_a_moved_one_a_missed_one_and_an_invented_one():
    found = match(teeth(0, 11, 30), teeth(0, 10, 20))  # moved by one: IoU 3 / 5
    assert (found.prediction, found.reference) == (3, 3)
    assert sorted(found.dice) == [pytest.approx(0.75), 1.0]
    assert found.f1 == pytest.approx(2 * 2 / 6)
    assert found.mean_dice == pytest.approx((1 + 0.75) / 4)  # two pairs, one missed, one invented


def test_half_of_the_union_is_not_enough():
    found = match(teeth(2), teeth(0))  # IoU 2 / 6
    assert (found.dice, found.f1, found.mean_dice) == ((), 0, 0)
    half = teeth(0)
    half[:, :, 2:] = False  # IoU 2 / 4
    assert match(half, teeth(0)).dice == ()


def test_two_teeth_that_grew_together_are_one_and_match_at_most_one():
    bridge = teeth(0, 6)
    bridge[1, 1, 4:6] = True
    found = match(bridge, teeth(0, 6))
    assert (found.prediction, found.reference, len(found.dice)) == (1, 2, 0)


def test_without_instances_there_is_no_number():
    found = match(teeth(), teeth())
    assert (found.f1, found.mean_dice) == (None, None)
    assert match(teeth(), teeth(3)).f1 == match(teeth(3), teeth()).mean_dice == 0


def test_swapping_the_masks_swaps_the_counts():
    one, other = teeth(0, 11), teeth(0, 10, 20)
    there, back = match(one, other), match(other, one)
    assert (there.prediction, there.reference) == (back.reference, back.prediction)
    assert (there.f1, there.mean_dice) == (back.f1, back.mean_dice)


def test_a_corner_joins():
    mask = np.zeros((3, 4, 5), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 3, 4] = True
    assert components(mask)[1] == 2


def test_two_specks_with_a_voxel_between_them_are_two():
    assert components(np.array([True, False, True]).reshape(3, 1, 1))[1] == 2
    sparse = np.zeros((5, 3, 7), bool)
    sparse[::2, ::2, ::2] = True
    assert components(sparse)[1] == 3 * 2 * 4


@pytest.mark.parametrize("seed", range(3))
def test_cc3d_finds_the_components_of_scipy(seed):
    pytest.importorskip("cc3d", reason="the extra `instances` is not installed")
    mask = np.random.default_rng(seed).random((9, 11, 13)) < 0.08
    labels, count = components(mask)
    theirs, number = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count == number
    assert len(np.unique(labels.astype(np.int64) * (number + 1) + theirs)) == number + 1  # one to one
