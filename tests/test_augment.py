"""Augmentation: drawn once per sample, applied alike to image and label, identity where nothing is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage

from medssl.augment import Augment, AugmentConfig, Draw

STILL = Draw((), (), None, 1.0, 0.0, None, None, None, 0.0, 0)


def make(preset="weak", patch=(8, 10, 8), spacing=(1.0, 1.0, 1.0), **kwargs):
    return Augment(AugmentConfig(preset=preset, **kwargs), patch, spacing)


def batch(shape=(8, 10, 8), size=3):
    torch.manual_seed(0)
    label = torch.randint(0, 3, (size, *shape))
    return label[:, None].float(), label


def test_the_still_draw_changes_nothing():
    image, label = batch()
    out, same = make("strong").apply(image, [STILL] * 3, label)
    torch.testing.assert_close(out, image)
    assert torch.equal(same, label)


def test_preset_none_changes_nothing():
    image, label = batch()
    augment = make("none")
    out, same = augment.apply(image, [augment.draw(0, n) for n in range(3)], label)
    assert torch.equal(out, image)
    assert torch.equal(same, label)


@pytest.mark.parametrize("preset", ["weak", "strong"])
def test_a_draw_is_a_function_of_its_seed_and_can_be_replayed(preset):
    image, label = batch()
    augment = make(preset)
    draws = [[augment.draw(4, n) for n in range(3)] for _ in range(2)]
    one, two = (augment.apply(image, d, label) for d in draws)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert len({str(augment.draw(4, n)) for n in range(20)}) == 20


@pytest.mark.parametrize("preset", ["weak", "strong"])
def test_geometry_is_that_of_the_image_alone_or_with_its_label(preset):
    image, label = batch()
    augment = make(preset)
    draws = [augment.draw(1, n) for n in range(3)]
    assert torch.equal(augment.apply(image, draws)[0], augment.apply(image, draws, label)[0])


@pytest.mark.parametrize("seed", range(8))
def test_flips_and_turns_move_image_and_label_together(seed):
    image, label = batch()
    drawn = make().draw(seed)
    exact = replace(drawn, contrast=1.0, brightness=0.0, noise=0.0)
    out, moved = make().apply(image, [exact] * 3, label)
    torch.testing.assert_close(out[:, 0], moved.float(), atol=1e-5, rtol=0)
    assert torch.equal(moved.flatten().bincount(), label.flatten().bincount())


def test_warping_moves_a_ball_in_image_and_label_together():
    grid = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in (24, 20, 22)), indexing="ij"), -1)
    label = ((grid - torch.tensor([15.0, 9, 12])).norm(dim=-1) < 5).long()[None]
    augment = make("strong", (24, 20, 22))
    warped = next(d for d in (augment.draw(n) for n in range(50)) if d.matrix is not None)
    draw = replace(STILL, matrix=warped.matrix)
    image, moved = augment.apply(label[:, None].float(), [draw], label)
    assert (moved != label).any()
    agree = ((image[:, 0] > 0.5).long() == moved).float().mean()
    assert agree > 0.995


def test_a_turn_by_ninety_degrees_is_an_exact_quarter_turn():
    image, label = batch((9, 9, 5), size=1)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    warped, _ = make("strong", (9, 9, 5)).apply(image, [replace(STILL, matrix=turn)], label)
    exact = [torch.rot90(image, k, (2, 3)) for k in (1, 3)]
    assert any(torch.allclose(warped, e, atol=1e-4) for e in exact)


def test_thick_slices_are_neither_tilted_nor_stretched():
    augment = make("strong", (16, 16, 6), (1.5, 1.5, 10.0))
    matrices = [d.matrix for d in (augment.draw(n) for n in range(60)) if d.matrix is not None]
    assert len(matrices) > 10
    for matrix in matrices:
        np.testing.assert_allclose(matrix[2], [0, 0, 1], atol=1e-12)
        np.testing.assert_allclose(matrix[:, 2], [0, 0, 1], atol=1e-12)


def test_rotation_is_rigid_in_millimetres():
    spacing = np.array([1.0, 2.0, 1.0])
    augment = make("strong", (16, 8, 16), tuple(spacing))
    matrix = next(d.matrix for d in (augment.draw(n) for n in range(50)) if d.matrix is not None)
    in_mm = np.diag(spacing) @ matrix @ np.diag(1 / spacing)
    scale = np.linalg.det(in_mm) ** (1 / 3)
    np.testing.assert_allclose(in_mm @ in_mm.T, scale**2 * np.eye(3), atol=1e-9)


@pytest.mark.parametrize(
    ("patch", "spacing", "planes"),
    [((8, 8, 8), (1, 1, 1), 3), ((8, 10, 8), (1, 1, 1), 1), ((8, 8, 8), (1, 1, 3), 1), ((8, 10, 6), (1, 1, 1), 0)],
)
def test_quarter_turns_only_where_they_keep_the_grid(patch, spacing, planes):
    augment = make(patch=patch, spacing=spacing)
    assert len(augment.draw(0).turns) == planes
    image = torch.zeros(1, 1, *patch)
    assert all(augment.apply(image, [augment.draw(n)])[0].shape == image.shape for n in range(10))


def test_forbidden_flips_never_happen():
    augment = make(flips=(1,))
    assert {d.flips for d in (augment.draw(n) for n in range(40))} == {(), (1,)}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("shape", [(5, 6, 7), (8, 8, 1)])
def test_strong_augmentation_is_finite_at_odd_sizes(shape, channels):
    torch.manual_seed(0)
    image, label = torch.randn(4, channels, *shape), torch.randint(0, 2, (4, *shape))
    augment = make("strong", shape)
    for n in range(12):
        out, moved = augment.apply(image, [augment.draw(n, k) for k in range(4)], label)
        assert out.shape == image.shape
        assert torch.isfinite(out).all()
        assert moved.shape == label.shape
        assert set(moved.unique().tolist()) <= {0, 1}


def test_inputs_are_left_alone():
    image, label = batch()
    before = image.clone(), label.clone()
    augment = make("strong")
    augment.apply(image, [augment.draw(n) for n in range(3)], label)
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 1.5), (1.5, 1.5, 10.0)])
def test_warping_is_the_affine_map_of_its_matrix(spacing):
    shape = (14, 10, 8)
    augment = make("strong", shape, spacing)
    draw = next(d for d in (augment.draw(3, n) for n in range(50)) if d.matrix is not None)
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1.0)
    centre = (np.array(shape) - 1) / 2
    expected = ndimage.affine_transform(image, draw.matrix, centre - draw.matrix @ centre, order=1, mode="nearest")
    tensor = torch.from_numpy(image).float()[None, None]
    warped, _ = augment.apply(tensor, [replace(STILL, matrix=draw.matrix)])
    np.testing.assert_allclose(warped[0, 0].numpy(), expected, atol=1e-4)


def test_an_axis_that_is_not_one_is_refused():
    with pytest.raises(ValidationError):
        AugmentConfig(flips=(-1,))
