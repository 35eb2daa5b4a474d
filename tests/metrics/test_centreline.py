"""Thinning keeps what topology counts, and clDice sees a broken canal where Dice hardly does."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from medssl.metrics.centreline import centreline, cldice

FULL = np.ones((3, 3, 3))


def euler(mask):
    """Corners minus edges plus faces minus cubes of the voxels as closed cubes: parts - tunnels + cavities."""
    padded, total = np.pad(mask, 1), 0
    for across in itertools.product((0, 1), repeat=3):
        cells = padded
        for axis, doubled in enumerate(across):
            cells = cells | np.roll(cells, 1, axis) if doubled else cells
        total += (-1) ** (3 - sum(across)) * int(cells.sum())
    return total


def tube(shape=(9, 10, 40), radius=2, gap=()):
    mask = np.zeros(shape, bool)
    x, y = np.ogrid[: shape[0], : shape[1]]
    mask[(x - 4) ** 2 + (y - 5) ** 2 <= radius**2] = True
    mask[:, :, [0, 1, 2, -3, -2, -1, *gap]] = False
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_parts_tunnels_and_cavities_stay(seed):
    mask = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(17, 19, 21)), 1.2) > 0.05
    line = centreline(mask)
    assert not (line & ~mask).any()
    assert line.sum() < mask.sum() / 4
    assert euler(line) == euler(mask)
    assert ndimage.label(line, FULL)[1] == ndimage.label(mask, FULL)[1]
    assert ndimage.label(~np.pad(line, 1))[1] == ndimage.label(~np.pad(mask, 1))[1]


def test_a_tube_becomes_its_axis():
    places = np.argwhere(centreline(tube()))
    assert set(map(tuple, places[:, :2])) == {(4, 5)}
    assert len(places) >= 28  # of 34 slices; the ends wear off by a radius


def test_a_ring_stays_a_ring():
    x, y, z = np.ogrid[:21, :23, :9]
    ring = (np.hypot(x - 10, y - 11) - 7) ** 2 + (z - 4) ** 2 <= 4
    line = centreline(ring)
    assert euler(line) == euler(ring) == 0
    neighbours = ndimage.convolve(line.astype(int), FULL.astype(int), mode="constant")[line] - 1
    assert (neighbours == 2).mean() > 0.9


def test_a_curve_is_its_own_centreline():
    curve = np.zeros((5, 6, 7), bool)
    curve[[0, 1, 2, 3], [1, 1, 2, 3], [0, 1, 2, 3]] = True
    np.testing.assert_array_equal(centreline(curve), curve)


def test_cldice_of_equal_empty_and_strange_masks():
    canal, empty = tube(), np.zeros((9, 10, 40), bool)
    assert cldice(canal, canal) == 1
    assert cldice(empty, empty) is None
    assert cldice(canal, empty) == cldice(empty, canal) == 0
    assert cldice(np.roll(canal, 5, axis=1), canal) == 0


def test_a_thinner_canal_keeps_its_cldice_and_a_shorter_one_does_not():
    canal, thin, short = tube(), tube(radius=1), tube(gap=range(20, 40))
    assert cldice(thin, canal) == 1
    # All of the short one's line lies inside, about half of the long one's.
    assert cldice(short, canal) == pytest.approx(2 * 0.5 / 1.5, abs=0.08)
    assert cldice(short, canal) == cldice(canal, short)
