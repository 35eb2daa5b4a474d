"""Augmentation: drawn once per sample, replayed alike on image, label and targets, identity where nothing is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage

from medssl.augment import Augment, AugmentConfig, Draw
from medssl.data.cases import IGNORED
from medssl.parts.warp import CLASSES_AT_ONCE, CONTROL_POINTS

STILL = Draw()


def make(preset="weak", patch=(8, 10, 8), spacing=(1.0, 1.0, 1.0), classes=3, **kwargs):
    return Augment(AugmentConfig(preset=preset, **kwargs), patch, spacing, classes)


def batch(shape=(8, 10, 8), size=3):
    torch.manual_seed(0)
    label = torch.randint(0, 3, (size, *shape))
    return label[:, None].float(), label


def draw_with(augment, *fields, start=0):
    """The first draw of a stream in which something was drawn for each of the fields."""
    draws = (augment.draw(start, n) for n in range(500))
    return next(d for d in draws if all(getattr(d, field) is not None for field in fields))


def ball(shape, centre, radius=5.0):
    """`(1, X, Y, Z)`, 1 inside."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in shape), indexing="ij"), -1)
    return ((grid - torch.tensor(centre)).norm(dim=-1) < radius).long()[None]


def test_an_axis_that_is_named_twice_is_mirrored_once():
    assert AugmentConfig(flips=(2, 0, 2)).flips == (2, 0)


def test_the_still_draw_changes_nothing():
    image, label = batch()
    out, same = make("strong").apply(image, [STILL] * 3, label)
    torch.testing.assert_close(out, image)
    assert torch.equal(same, label)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("preset", ["weak", "strong"])
def test_sides_change_places_in_a_mirror_and_not_in_a_turn(preset, dtype):
    """Two mirrors are half a turn: what lies on the left of a patient who turns round is still his left one."""
    shape = (8, 10, 8)
    label = torch.randint(0, 4, (20, *shape), generator=torch.Generator().manual_seed(1))
    label[:, 0] = IGNORED
    sided, plain = (
        Augment(AugmentConfig(preset=preset), shape, (1.0, 1.0, 1.0), 4, ignores=True, mirrored=mirrored)
        for mirrored in ({1: 3, 3: 1}, None)
    )
    draws = [plain.draw(7, n) for n in range(20)]
    found, as_is = (a.move(torch.zeros(20, 0, *shape), draws, label.to(dtype))[1] for a in (sided, plain))
    assert {len(draw.flips) for draw in draws} == {0, 1, 2, 3}
    for draw, one, other in zip(draws, found, as_is, strict=True):
        is_mirrored = len(draw.flips) % 2 == 1
        expected = torch.where(other == 1, 3, torch.where(other == 3, 1, other)) if is_mirrored else other
        if draw.matrix is None and draw.elastic is None:
            assert torch.equal(one, expected)
        else:  # where shares are equal, the first class has the voxel
            assert (one == expected).float().mean() > 0.98


def test_sides_stay_where_a_single_slice_is_mirrored_along_itself():
    shape = (8, 10, 1)
    image, label = torch.rand(20, 1, *shape), torch.randint(0, 3, (20, *shape))
    augment = Augment(AugmentConfig(preset="weak", flips=(2,)), shape, (1.0, 1.0, 1.0), 3, mirrored={1: 2, 2: 1})
    draws = [augment.draw(7, n) for n in range(20)]
    same, found = augment.move(image, draws, label)
    assert any(draw.flips for draw in draws)
    assert torch.equal(same, image)
    assert torch.equal(found, label)


def test_preset_none_changes_nothing():
    image, label = batch()
    augment = make("none")
    out, same = augment.apply(image, [augment.draw(0, n) for n in range(3)], label)
    assert torch.equal(out, image)
    assert torch.equal(same, label)


@pytest.mark.parametrize("preset", ["weak", "strong"])
def test_a_draw_is_a_function_of_its_seed_and_can_be_replayed(preset):
    image, label = batch()
    one, two = (
        augment.apply(image, [augment.draw(4, n) for n in range(3)], label) for augment in (make(preset), make(preset))
    )
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert len({str(make(preset).draw(4, n)) for n in range(20)}) == 20


@pytest.mark.parametrize("preset", ["weak", "strong"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(preset, channels):
    torch.manual_seed(0)
    shape, size = (9, 7, 9), 8
    image, label = torch.randn(size, channels, *shape), torch.randint(0, 3, (size, *shape))
    augment = make(preset, shape)
    for seed in range(4):
        draws = [augment.draw(seed, n) for n in range(size)]
        out, moved = augment.apply(image, draws, label)
        for n in range(size):
            alone, moved_alone = augment.apply(image[n : n + 1], draws[n : n + 1], label[n : n + 1])
            torch.testing.assert_close(alone[0], out[n])
            assert torch.equal(moved_alone[0], moved[n])


@pytest.mark.parametrize("preset", ["weak", "strong"])
def test_geometry_is_that_of_the_image_alone_or_with_its_label(preset):
    image, label = batch()
    augment = make(preset)
    draws = [augment.draw(1, n) for n in range(3)]
    assert torch.equal(augment.apply(image, draws)[0], augment.apply(image, draws, label)[0])


@pytest.mark.parametrize("preset", ["weak", "strong"])
def test_applying_is_moving_then_shading(preset):
    image, label = batch(size=6)
    augment = make(preset)
    draws = [augment.draw(2, n) for n in range(6)]
    out, moved = augment.apply(image, draws, label)
    image, same = augment.move(image, draws, label)
    assert torch.equal(augment.shade(image, draws), out)
    assert torch.equal(same, moved)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("preset", ["none", "weak", "strong"])
def test_labels_leave_as_int64(preset, dtype):
    image, label = batch(size=6)
    augment = make(preset)
    draws = [augment.draw(0, n) for n in range(6)]
    _, moved = augment.apply(image, draws, label.to(dtype))
    assert moved.dtype == torch.int64
    assert torch.equal(moved, augment.apply(image, draws, label)[1])


def test_a_draw_replays_on_probabilities_and_weights():
    torch.manual_seed(0)
    size, shape = 8, (9, 7, 5)
    image, label = torch.randn(size, 2, *shape), torch.randint(0, 3, (size, *shape))
    probs = torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    weight = torch.rand(size, 1, *shape)
    augment = make("strong", shape)
    draws = [augment.draw(7, n) for n in range(size)]
    assert any(d.matrix is not None for d in draws)
    assert any(d.elastic is not None for d in draws)

    together, moved = augment.move(torch.cat([image, probs, weight], 1), draws, label)
    torch.testing.assert_close(together[:, :2], augment.move(image, draws)[0])
    torch.testing.assert_close(together[:, 5:], augment.move(weight, draws)[0])
    probs = together[:, 2:5]
    torch.testing.assert_close(probs.sum(1), torch.ones(size, *shape))
    certain = probs.topk(2, 1).values.diff(dim=1).abs()[:, 0] > 1e-5  # ties may fall either way
    assert certain.float().mean() > 0.9
    assert torch.equal(probs.argmax(1)[certain], moved[certain])
    assert torch.equal(augment.move(image[:, :0], draws, label)[1], moved)


def test_a_move_passes_gradients_on():
    probs = torch.rand(3, 2, 5, 6, 7, requires_grad=True)
    augment = make("strong", (5, 6, 7))
    label = torch.zeros(3, 5, 6, 7, dtype=torch.long)
    draws = [STILL, draw_with(augment, "matrix"), draw_with(augment, "elastic")]
    augment.move(probs, draws, label)[0].sum().backward()
    assert probs.grad.flatten(1).abs().sum(1).gt(0).all()


@pytest.mark.parametrize("seed", range(8))
def test_flips_and_turns_move_image_and_label_together(seed):
    image, label = batch()
    drawn = make().draw(seed)
    out, moved = make().move(image, [drawn] * 3, label)
    assert torch.equal(out[:, 0], moved.float())
    assert torch.equal(moved.flatten().bincount(), label.flatten().bincount())


@pytest.mark.parametrize("seed", range(12))
def test_turns_are_those_of_rot90_after_the_flips(seed):
    shape = (6, 6, 6)
    image = torch.arange(216.0).view(1, 1, *shape)
    draw = make(patch=shape).draw(seed)
    expected = image.flip([2 + axis for axis in draw.flips])
    for a, b, quarters in draw.turns:
        expected = torch.rot90(expected, quarters, (2 + a, 2 + b))
    assert torch.equal(make(patch=shape).move(image, [draw])[0], expected)


@pytest.mark.parametrize("field", ["matrix", "elastic"])
def test_warping_moves_a_ball_in_image_and_label_together(field):
    label = ball((24, 20, 22), (15.0, 9.0, 12.0))
    augment = make("strong", (24, 20, 22), classes=2)
    found = [value for n in range(100) if (value := getattr(augment.draw(n), field)) is not None]
    draw = Draw(**{field: max(found, key=lambda value: np.abs(value).sum())})
    image, moved = augment.move(label[:, None].float(), [draw], label)
    assert (moved != label).any()
    assert torch.equal((image[:, 0] > 0.5).long(), moved)


def test_a_turn_by_ninety_degrees_is_an_exact_quarter_turn():
    image, label = batch((9, 9, 5), size=1)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    warped, moved = make("strong", (9, 9, 5)).apply(image, [replace(STILL, matrix=turn)], label)
    exact = [torch.rot90(image, k, (2, 3)) for k in (1, 3)]
    assert any(torch.allclose(warped, e, atol=1e-4) for e in exact)
    assert torch.equal(moved, warped[:, 0].round().long())


def test_thick_slices_are_neither_tilted_nor_stretched():
    augment = make("strong", (16, 16, 6), (1.5, 1.5, 10.0))
    matrices = [d.matrix for d in (augment.draw(n) for n in range(60)) if d.matrix is not None]
    assert len(matrices) > 10
    for matrix in matrices:
        np.testing.assert_allclose(matrix[2], [0, 0, 1], atol=1e-12)
        np.testing.assert_allclose(matrix[:, 2], [0, 0, 1], atol=1e-12)


def test_a_single_slice_is_neither_tilted_nor_bent_out_of_its_plane():
    augment = make("strong", patch=(9, 8, 1), spacing=(None, None, None))
    draw = draw_with(augment, "matrix", "elastic")
    assert draw.matrix[2].tolist() == [0, 0, 1]
    assert draw.matrix[:2, 2].tolist() == [0, 0]
    assert not draw.elastic[2].any()
    inside = torch.ones(1, 9, 8, 1).long()
    _, moved = augment.move(torch.zeros(1, 0, 9, 8, 1), [draw], inside)
    assert moved.float().mean() > 0.5


def test_elastic_deformation_stays_put_across_thick_slices():
    shape = (16, 14, 6)
    augment = make("strong", shape, (1.5, 1.5, 10.0))
    draw = Draw(elastic=draw_with(augment, "elastic").elastic)
    assert not draw.elastic[2].any()
    ramps = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in shape), indexing="ij"))[None]
    moved = augment.move(ramps, [draw])[0] - ramps
    torch.testing.assert_close(moved[:, 2], torch.zeros(1, *shape))
    assert moved[:, :2].abs().amax() > 0.01


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 1.5)])
def test_elastic_deformation_is_small_smooth_and_folds_nothing(spacing):
    shape = (24, 20, 22)
    augment = make("strong", shape, spacing)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in shape), indexing="ij"))[None]
    side = min(n * s for n, s in zip(shape, spacing, strict=True))
    found = [d for d in (augment.draw(5, n) for n in range(100)) if d.elastic is not None]
    assert 8 < len(found) < 40
    for draw in found:
        places = augment.move(ramps, [Draw(elastic=draw.elastic)])[0]
        moves = (places - ramps) * torch.tensor(spacing).view(1, 3, 1, 1, 1)
        assert moves.abs().amax() < 0.07 * side
        gradients = torch.stack(torch.gradient(places[0], dim=(1, 2, 3)), 1)  # of each component, along each axis
        assert torch.linalg.det(gradients[..., 2:-2, 2:-2, 2:-2].permute(2, 3, 4, 0, 1)).amin() > 0.2
        bends = places.diff(n=2, dim=2)[:, :, 2:-2].abs().amax()
        assert bends < 0.15


def test_control_points_on_a_straight_line_shift_a_sample_evenly():
    shape = (9, 8, 7)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in shape), indexing="ij"))[None]
    moves = np.zeros((3, *3 * [CONTROL_POINTS]))
    moves[0], moves[2] = 1.0, -2.0
    moved = make("strong", shape).move(ramps, [Draw(elastic=moves)])[0]
    torch.testing.assert_close(moved[:, 0, :-1], ramps[:, 0, :-1] + 1, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[:, 1], ramps[:, 1], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[:, 2, :, :, 2:], ramps[:, 2, :, :, 2:] - 2, atol=1e-4, rtol=0)


def test_rotation_is_rigid_in_millimetres():
    spacing = np.array([1.0, 2.0, 1.0])
    augment = make("strong", (16, 8, 16), tuple(spacing))
    matrix = draw_with(augment, "matrix").matrix
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


def test_every_quarter_turn_comes_up():
    drawn = [make().draw(n).turns[0][2] for n in range(200)]
    assert min(drawn.count(quarters) for quarters in range(4)) > 25
    assert set(drawn) == {0, 1, 2, 3}


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


@pytest.mark.parametrize("part", ["apply", "move", "shade"])
def test_inputs_are_left_alone(part):
    image, label = batch()
    before = image.clone(), label.clone()
    augment = make("strong")
    for seed in range(5):
        draws = [augment.draw(seed, n) for n in range(3)]
        getattr(augment, part)(image, draws, *([] if part == "shade" else [label]))
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


@pytest.mark.parametrize("shape", [(14, 10, 8), (9, 1, 6), (40, 50, 30)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 1.5), (1.5, 1.5, 10.0)])
def test_warping_is_the_affine_map_of_its_matrix(spacing, shape):
    augment = make("strong", shape, spacing)
    draw = draw_with(augment, "matrix", start=3)
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1.0)
    centre = (np.array(shape) - 1) / 2
    expected = ndimage.affine_transform(image, draw.matrix, centre - draw.matrix @ centre, order=1, mode="nearest")
    tensor = torch.from_numpy(image).float()[None, None]
    warped, _ = augment.apply(tensor, [replace(STILL, matrix=draw.matrix)])
    np.testing.assert_allclose(warped[0, 0].numpy(), expected, atol=5e-4)


@pytest.mark.parametrize("classes", [1, 2, 3, CLASSES_AT_ONCE + 1, CLASSES_AT_ONCE + 2, 3 * CLASSES_AT_ONCE])
def test_many_classes_go_in_chunks_to_the_same_end(classes):
    torch.manual_seed(0)
    shape = (10, 9, 8)
    coarse = torch.rand(2, classes, 4, 4, 4)
    label = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear").argmax(1)
    augment = make("strong", shape, classes=classes)
    draws = [draw_with(augment, "matrix"), draw_with(augment, "matrix", "elastic")]
    one_hot = torch.nn.functional.one_hot(label, classes).movedim(-1, 1).float()
    image, moved = augment.move(torch.rand(2, 1, *shape), draws, label)
    shares = augment.move(one_hot, draws)[0]  # each class for itself, background too
    assert image.shape == (2, 1, *shape)
    best = shares.amax(1)
    torch.testing.assert_close(shares.gather(1, moved[:, None])[:, 0], best)  # ties may fall either way
    assert (shares.argmax(1) == moved).float().mean() > 0.99


@pytest.mark.parametrize("preset", ["none", "weak", "strong"])
def test_what_nobody_annotated_moves_as_a_class_of_its_own(preset):
    image, label = batch()
    ordinary = make(preset)
    moving = Augment(AugmentConfig(preset=preset), (8, 10, 8), (1.0, 1.0, 1.0), 2, ignores=True)
    draws = [ordinary.draw(0, n) for n in range(3)]
    if preset == "strong":
        assert any(draw.matrix is not None or draw.elastic is not None for draw in draws)
    _, expected = ordinary.apply(image, draws, label)
    _, found = moving.apply(image, draws, torch.where(label == 2, IGNORED, label).to(torch.uint8))
    assert torch.equal(found, torch.where(expected == 2, IGNORED, expected))
    assert (found == IGNORED).any()


def test_blur_is_a_gaussian_with_its_edges_continued():
    torch.manual_seed(0)
    image = torch.randn(1, 2, 9, 8, 7)
    out = make("strong").shade(image, [Draw(blur=0.8)])
    for channel in range(2):
        expected = ndimage.gaussian_filter(image[0, channel].numpy(), 0.8, mode="nearest", radius=3)
        np.testing.assert_allclose(out[0, channel].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("draw", [Draw(blur=0.8), Draw(zoom=0.5)])
def test_thick_slices_are_blurred_within_and_not_across(draw):
    image = torch.zeros(1, 1, 8, 10, 8)
    image[..., 4] = 1  # a structure that one slice shows
    torch.testing.assert_close(make("strong", spacing=(1.0, 1.0, 4.0)).shade(image, [draw]), image)
    assert make("strong", spacing=(1.0, 1.0, 3.0)).shade(image, [draw])[..., 4].max() < 0.8
    within = image.transpose(2, 4)[:, :, :, :8].contiguous()
    assert make("strong", (8, 8, 8), (1.0, 1.0, 4.0)).shade(within, [draw])[:, :, 4].max() < 0.8


def test_low_resolution_keeps_an_even_image_and_flattens_a_checked_one():
    checks = (torch.stack(torch.meshgrid(*3 * [torch.arange(12)], indexing="ij")).sum(0) % 2).float()[None, None]
    augment, draw = make("strong"), Draw(zoom=0.5)
    torch.testing.assert_close(augment.shade(torch.ones_like(checks), [draw]), torch.ones_like(checks))
    assert augment.shade(checks, [draw]).std() < 0.5 * checks.std()


@pytest.mark.parametrize("zoom", [0.5, 0.55, 0.6, 0.67, 0.75, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [47, 48])
def test_low_resolution_leaves_things_in_their_place(zoom, n):
    places = torch.stack(torch.meshgrid(*3 * [torch.arange(float(n))], indexing="ij"))
    middle = torch.tensor([22.0, 23.3, 24.5]).view(3, 1, 1, 1)
    blob = torch.exp(-((places - middle) ** 2).sum(0) / 50)[None, None]
    out = make("strong", (n, n, n)).shade(blob, [Draw(zoom=zoom)])[0, 0]
    torch.testing.assert_close((places * out).sum((1, 2, 3)) / out.sum(), middle.flatten(), atol=0.03, rtol=0)


def test_gamma_keeps_the_range_and_the_order_of_each_channel():
    torch.manual_seed(0)
    image = torch.randn(2, 2, 5, 6, 7) * torch.tensor([1.0, 30.0]).view(1, 2, 1, 1, 1)
    out = make("strong").shade(image, [Draw(gamma=0.7), Draw(gamma=1.5)])
    torch.testing.assert_close(out.amin((2, 3, 4)), image.amin((2, 3, 4)))
    torch.testing.assert_close(out.amax((2, 3, 4)), image.amax((2, 3, 4)))
    assert (out[0].mean((1, 2, 3)) > image[0].mean((1, 2, 3))).all()
    assert (out[1].mean((1, 2, 3)) < image[1].mean((1, 2, 3))).all()
    order = image.flatten(2).argsort(-1)
    assert (out.flatten(2).gather(2, order).diff(dim=-1) >= -1e-4).all()


def test_contrast_and_brightness_act_about_the_mean_of_each_channel():
    torch.manual_seed(0)
    image = torch.randn(2, 2, 5, 6, 7) + torch.tensor([0.0, 50.0]).view(1, 2, 1, 1, 1)
    out = make().shade(image, [Draw(contrast=1.1), Draw(contrast=0.5, brightness=0.3)])
    mean = image.mean((2, 3, 4))
    torch.testing.assert_close(out.mean((2, 3, 4)), mean + torch.tensor([[0.0], [0.3]]))
    torch.testing.assert_close(out.std((2, 3, 4)), image.std((2, 3, 4)) * torch.tensor([[1.1], [0.5]]))


def test_noise_has_its_deviation_no_mean_and_differs_between_samples_and_channels():
    image = torch.zeros(6, 2, 20, 18, 16)
    augment = make(patch=(20, 18, 16))
    seeds = [augment.draw(n).noise_seed for n in range(6)]
    levels = [0.0, 0.01, 0.05, 0.1, 0.2, 0.2]
    out = augment.shade(image, [Draw(noise=level, noise_seed=s) for level, s in zip(levels, seeds, strict=True)])
    assert not out[0].any()
    for noise, level in zip(out[1:], levels[1:], strict=True):
        assert noise.std().item() == pytest.approx(level, rel=0.03)
        assert abs(noise.mean().item()) < 4 * level / noise.numel() ** 0.5
    unit = torch.nn.functional.normalize(out[1:].reshape(10, -1), dim=1)
    others = (unit @ unit.T).fill_diagonal_(0)
    assert others.abs().amax() < 0.06


def test_noise_fills_a_patch_of_more_than_half_the_least_bank():
    shape = (130, 128, 130)
    image = torch.zeros(2, 1, *shape)
    out = make(patch=shape).shade(image, [Draw(noise=1.0, noise_seed=s) for s in (1, 2**62 - 1)])
    assert out.std((2, 3, 4)).sub(1).abs().amax() < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_a_cpu_gives_and_is_not_waited_for():
    torch.manual_seed(0)
    size, shape = 12, (20, 18, 20)
    image, label = torch.randn(size, 2, *shape), torch.randint(0, 3, (size, *shape))
    augment = make("strong", shape)
    draws = [augment.draw(n) for n in range(size)]
    expected, moved = augment.apply(image, draws, label)
    there = image.cuda(), label.cuda()
    augment.apply(there[0], draws, there[1])  # the bank of noise is copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, moved_there = augment.apply(there[0], draws, there[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected, atol=5e-3, rtol=0)
    assert (moved_there.cpu() == moved).float().mean() > 0.999


def test_an_axis_that_is_not_one_is_refused():
    with pytest.raises(ValidationError):
        AugmentConfig(flips=(-1,))


def test_labels_have_no_channels_and_each_sample_its_draw():
    augment = Augment(AugmentConfig(), (5, 6, 7), (1, 1, 1), 3)
    draws = [augment.draw(seed) for seed in (0, 1)]
    image, label = torch.zeros(2, 1, 5, 6, 7), torch.zeros(2, 5, 6, 7, dtype=torch.long)
    with pytest.raises(ValueError, match=r"label must be \(2, 5, 6, 7\), got \(2, 1, 5, 6, 7\)"):
        augment.apply(image, draws, label[:, None])
    with pytest.raises(ValueError, match=r"B draws, got \(2, 1, 5, 6, 7\) and 1"):
        augment.apply(image, draws[:1], label)
