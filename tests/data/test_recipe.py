"""Geometry: whatever the axes, spacing or tilt, a label goes through prepare and comes back to its place."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from medssl.config import parse
from medssl.data.cases import DatasetConfig
from medssl.data.grid import Grid, Slab, Turn
from medssl.data.recipe import Intensity, Recipe, zero_is_background
from medssl.data.volume import Volume
from medssl.errors import ConfigError, DataError

ORIENTATIONS = ["RAS", "LPS", "LAS", "PIR", "SLA", "IAR", "ALS", "RSP"]


def test_images_are_cubic_within_slices_and_linear_across_thick_ones():
    """A parabola is cubic splines' own, and lines fall short of it; a step across slices has no overshoot."""
    places = np.arange(24, dtype=np.float32)
    parabola = np.broadcast_to(((places - 11.5) ** 2)[:, None, None], (24, 24, 12))
    step = np.broadcast_to(np.float32(np.arange(12) > 5), (24, 24, 12))
    recipe = Recipe(spacing=(0.7, 0.7, 4.0), crop=False, intensity=Intensity(kind="clip", window=(0, 1)))
    grid = recipe.apply(Volume(parabola, np.diag([1.0, 1.0, 6.0, 1.0]))).grid
    fine, across = (grid.resample_image(np.ascontiguousarray(array)) for array in (parabola, step))
    at = 0.7 * (np.arange(grid.prepared[0]) - (grid.prepared[0] - 1) / 2)
    inside = np.abs(at) < 7
    expected = np.broadcast_to((at**2)[:, None, None], fine.shape)
    np.testing.assert_allclose(fine[inside], expected[inside], atol=0.02)
    assert across.min() > -1e-6
    assert across.max() < 1 + 1e-6
    assert ((across > 0.1) & (across < 0.9)).any()


def oriented_affine(codes, spacing=(1.0, 1.0, 1.0), tilt=0.0):
    """An affine whose axes grow along `codes`, then rotated by `tilt` degrees about two world axes."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        world = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[code]
        affine[world, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    a = np.deg2rad(tilt)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine[:3, :3] = about_z @ about_x @ affine[:3, :3]
    affine[:3, 3] = (-30, 12, 7)
    return affine


def blob(shape):
    """An image with two structures and its label; bright body in dark air."""
    centre = [(n - 1) / 2 for n in shape]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    scaled = (grid - centre) / (np.array(shape) / 2)
    radius = np.linalg.norm(scaled + np.array([0.1, 0, 0]), axis=-1)
    label = (radius < 0.65).astype(np.int32) + (radius < 0.35)
    image = np.where(np.linalg.norm(scaled, axis=-1) < 0.95, 300.0, 0.0) + 150 * label
    return image.astype(np.float32), label


def one_hot(label, classes):
    return np.stack([(label == value) for value in range(classes)]).astype(np.float32)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def normalised_brain(shape=(15, 16, 17), channels=2):
    """Of zero mean in a box of tissue, 0 outside, and where the box is."""
    rng, image = np.random.default_rng(0), np.zeros((*shape, channels), np.float32)
    box = tuple(slice(3, n - 4) for n in shape)
    image[box] = rng.normal(size=image[box].shape)
    return image, box


def test_where_0_is_background_all_that_is_not_0_is_foreground():
    image, box = normalised_brain()
    volume = Volume(3 * image, np.eye(4))
    recipe = Recipe(threshold="nonzero", margin=0, intensity=Intensity(percentiles=(0, 100)))
    prepared = recipe.apply(volume)
    assert prepared.grid.start == (3, 3, 3)
    assert prepared.image.shape == (2, *(n.stop - n.start for n in box))
    np.testing.assert_allclose(prepared.image.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(prepared.image.std((1, 2, 3)), 1, atol=1e-5)
    assert Recipe().apply(volume).grid.start == (0, 0, 0)  # 0 is brighter than the darkest tissue
    empty = Recipe(threshold="nonzero").apply(Volume(np.zeros((5, 6, 7), np.float32), np.eye(4)))
    assert empty.image.shape == (1, 5, 6, 7)


def test_each_channel_may_have_a_rule_of_its_own():
    ct, pet = blob((15, 16, 17))[0] * 3 - 1000, np.random.default_rng(0).uniform(0, 9, (15, 16, 17)).astype(np.float32)
    pet[:4] = 0
    window = {"kind": "clip", "window": (-1000, 200)}
    recipe = Recipe(threshold=(-500, "nonzero"), margin=0, intensity=[window, {"percentiles": (0, 100)}])
    prepared = recipe.apply(Volume(np.stack([ct, pet], -1), np.eye(4)))
    foreground = (ct > -500) | (pet != 0)
    assert prepared.grid.start == tuple(np.argwhere(foreground).min(0))
    inside = tuple(slice(start, None) for start in prepared.grid.start)
    np.testing.assert_allclose(prepared.image[0], np.clip((ct[inside] + 1000) / 1200, 0, 1), atol=1e-6)
    np.testing.assert_allclose(prepared.image[1][foreground[inside]].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(prepared.image[1][foreground[inside]].std(), 1, atol=1e-5)
    alike = [
        Recipe(intensity=rule).apply(Volume(np.stack([ct, pet], -1), np.eye(4))) for rule in (window, [window] * 2)
    ]
    assert np.array_equal(alike[0].image, alike[1].image)


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ({"intensity": [{}]}, r"`recipe\.intensity` must have one entry per channel \(CT, PET\), got 1"),
        ({"threshold": [-500, None, None]}, r"`recipe\.threshold` must have one entry per channel \(CT, PET\), got 3"),
        ({"intensity": [{}, {"kind": "clip"}]}, r"data\.recipe\.intensity\.1: `clip` needs `window"),
        (
            {"intensity": {"kidn": "clip"}},
            r"data\.recipe\.intensity\.kidn: unknown key; did you mean .*intensity\.kind",
        ),
        ({"threshold": ["none"]}, r"data\.recipe\.threshold\.0: "),
    ],
)
def test_rules_by_channel_fit_the_channels(recipe, fault):
    data = {"name": "body", "channels": ["CT", "PET"], "classes": ["background", "lesion"], "recipe": recipe}
    with pytest.raises(ConfigError, match=fault) as error:
        parse(DatasetConfig, data, where="data")
    assert "tuple" not in str(error.value)
    assert "each" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda image: image, True),
        (lambda image: np.stack([image[0], 100 * np.abs(image[1])]), True),  # all is foreground by the first
        (lambda image: np.abs(image), False),  # bright is enough
        (lambda image: 800 * np.abs(image) - 3 * (np.abs(image) > 2), False),  # a few voxels below, and air is darker
        (lambda image: 300 * image, False),  # as Hounsfield units
        (lambda image: image + 1, False),
        (lambda image: image[:, 3:-4, 3:-4, 3:-4], False),
        (lambda image: np.stack([image[0], image[1] + 1]), False),
    ],
)
def test_background_of_0_is_known_by_corners_and_by_being_no_air(change, expected):
    image, _ = normalised_brain()
    assert zero_is_background([*change(np.moveaxis(image, -1, 0))]) == expected


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0.0, 17.0])
def test_label_survives_the_round_trip_exactly_when_spacing_is_kept(codes, tilt):
    image, label = blob((21, 17, 13))
    affine = oriented_affine(codes, (1.2, 0.9, 3.0), tilt)
    recipe = Recipe()
    prepared = recipe.apply(Volume(image, affine), Volume(label, affine))
    back = recipe.undo([Slab(one_hot(prepared.label, 3))], prepared.grid)
    assert back.shape == label.shape
    assert np.array_equal(back, label)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0.0, 17.0])
def test_label_survives_resampling(codes, tilt):
    image, label = blob((41, 37, 25))
    affine = oriented_affine(codes, (0.9, 1.1, 1.6), tilt)
    recipe = Recipe(spacing=(1.0, 1.0, 1.0))
    prepared = recipe.apply(Volume(image, affine), Volume(label, affine))
    back = recipe.undo([Slab(one_hot(prepared.label, 3))], prepared.grid)
    for value in (1, 2):
        assert dice(back == value, label == value) >= 0.98


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_prepared_arrays_do_not_depend_on_how_the_file_stores_its_axes(codes):
    image, label = blob((20, 16, 12))
    reference = Recipe().apply(Volume(image, oriented_affine("RAS")), Volume(label, oriented_affine("RAS")))
    turn = Turn.to(codes, oriented_affine("RAS"))
    stored = oriented_affine("RAS")[:, :3][:3][:, list(turn.axes)] * [-1 if flip else 1 for flip in turn.flips]
    affine = np.eye(4)
    affine[:3, :3] = stored
    prepared = Recipe().apply(Volume(turn.apply(image), affine), Volume(turn.apply(label), affine))
    assert np.array_equal(prepared.image, reference.image)
    assert np.array_equal(prepared.label, reference.label)


def test_image_and_label_stored_in_different_orders_come_together():
    image, label = blob((20, 16, 12))
    affine = oriented_affine("RAS")
    flipped = affine.copy()
    flipped[0, 0], flipped[0, 3] = -1, affine[0, 3] + 19
    together = Recipe().apply(Volume(image, affine), Volume(label, affine))
    apart = Recipe().apply(Volume(image, affine), Volume(label[::-1], flipped))
    assert np.array_equal(together.label, apart.label)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_turn_undoes_itself(axes):
    array = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    turn = Turn(axes, (True, False, True))
    assert np.array_equal(turn.undo(turn.apply(array)), array)


def test_probabilities_of_many_classes_are_never_all_held_on_the_image_grid():
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (50, 60, 70)), indexing="ij"))
    recipe = Recipe(orientation="LPS", spacing=(5, 5, 5), intensity=Intensity(kind="clip", window=(0, 200)))
    prepared = recipe.apply(Volume(grid.sum(0).astype(np.float32), np.eye(4)))
    probs = np.random.default_rng(0).dirichlet(np.ones(22), prepared.grid.prepared).astype(np.float32)
    probs = np.moveaxis(probs, -1, 0)
    classes, certainty = recipe.undo_with_certainty([Slab(probs)], prepared.grid)
    total, found = np.zeros(classes.shape, np.float32), np.zeros(classes.shape, np.float32)
    tracemalloc.start()
    for place, of_class in enumerate(recipe.undo_by_class(probs, prepared.grid)):
        total += of_class
        found[classes == place] = of_class[classes == place]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * total.nbytes
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert np.array_equal(found, certainty)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("spacing", [(None, None, None), (0.6, 0.7, 0.8), (2.1, 1.7, 3.0), (1.0, 0.5, 2.0), (9, 9, 9)])
def test_slabs_go_back_as_the_whole_does_wherever_it_is_cut(axis, spacing):
    recipe = Recipe(orientation="LPS", spacing=spacing)
    grid = recipe.apply(Volume(np.random.default_rng(0).random((23, 21, 19), np.float32), np.eye(4))).grid
    probs = np.random.default_rng(1).dirichlet(np.ones(3), grid.prepared).astype(np.float32)
    probs = np.moveaxis(probs, -1, 0)
    rows = grid.prepared[axis]
    whole = recipe.undo_with_certainty([Slab(probs)], grid)
    for cuts in ([rows // 2], range(1, rows - 1), sorted({1, rows - 2})):
        ends = [0, *(cut for cut in cuts if 0 < cut < rows - 1), rows - 1]
        slabs = (
            Slab(probs.take(range(start, end + 1), 1 + axis), axis, start) for start, end in itertools.pairwise(ends)
        )
        classes, certainty = recipe.undo_with_certainty(slabs, grid)
        assert np.array_equal(classes, whole[0])
        np.testing.assert_allclose(certainty, whole[1], atol=1e-6)


@pytest.mark.parametrize("sharpness", [1, 8, 60])
@pytest.mark.parametrize(
    ("cropped", "spacing"),
    [
        ((17, 12, 9), (0.7, 0.7, 0.7)),
        ((8, 11, 6), (1.7, 0.6, 2.0)),
        ((5, 6, 1), (0.5, 2.5, 1.0)),
        ((9, 8, 7), (1, 1, 1)),
    ],
)
def test_classes_are_resampled_only_where_they_can_win_and_that_changes_nothing(cropped, spacing, sharpness):
    rng = np.random.default_rng(sharpness)
    prepared = tuple(max(1, round(n / step)) for n, step in zip(cropped, spacing, strict=True))
    grid = Grid(
        cropped, np.eye(4).tolist(), (0, 1, 2), (False,) * 3, (0, 0, 0), cropped, (1.0, 1.0, 1.0), prepared, spacing
    )
    scores = sharpness * ndimage.gaussian_filter(rng.normal(size=(7, *prepared)), (0, 1, 1, 1))
    scores[3] -= 1000  # a class that is nowhere
    probs = np.exp(scores - scores.max(0)).astype(np.float32)
    probs /= probs.sum(0)
    classes, certainty = grid.largest([Slab(probs)])
    shares = np.stack(list(grid.interpolated(Slab(probs))))
    np.testing.assert_array_equal(classes, shares.argmax(0))
    np.testing.assert_allclose(certainty, shares.max(0), atol=1e-6)

    label = (3 * ndimage.gaussian_filter(rng.normal(size=(4, *cropped)), (0, 1, 1, 1)).argmax(0)).astype(np.uint8)
    steps, first = (
        np.array(spacing),
        [(n - 1) / 2 - s * (m - 1) / 2 for n, m, s in zip(cropped, prepared, spacing, strict=True)],
    )
    ones = [(label == value).astype(np.float32) for value in (0, 3, 6, 9)]
    masks = [ndimage.affine_transform(one, steps, first, prepared, order=1, mode="nearest") for one in ones]
    np.testing.assert_array_equal(grid.resample_label(label), 3 * np.argmax(masks, 0))


def test_slices_of_one_size_go_back_in_slabs_of_slices():
    recipe = Recipe(resize=(11, 26))
    grid = recipe.apply(Volume(np.random.default_rng(0).random((23, 21, 9), np.float32), np.eye(4))).grid
    probs = np.random.default_rng(1).random((300, *grid.prepared), np.float32)
    slabs = (Slab(probs[..., start : start + 5], 2, start) for start in (0, 4))
    classes = recipe.undo(slabs, grid)
    assert np.array_equal(classes, recipe.undo([Slab(probs)], grid))
    assert classes.max() > 255


def test_crop_follows_intensity_and_never_the_label():
    image, label = np.zeros((30, 28, 20), np.float32), np.zeros((30, 28, 20), np.int32)
    image[5:20, 6:18, 4:12] = 100
    label[25:28, 20:24, 15:18] = 1
    affine = np.eye(4)
    with_label = Recipe(margin=1).apply(Volume(image, affine), Volume(label, affine))
    without = Recipe(margin=1).apply(Volume(image, affine))
    assert with_label.grid == without.grid
    assert with_label.grid.cropped == (17, 14, 10)
    assert with_label.grid.start == (4, 5, 3)


def test_a_sample_of_a_large_volume_finds_the_crop_of_all_its_voxels(monkeypatch):
    image, _ = blob((131, 127, 101))  # 1.7 million voxels
    noisy = image + np.random.default_rng(0).normal(0, 1, image.shape).astype(np.float32)
    sampled = Recipe(margin=0).apply(Volume(noisy, np.eye(4))).grid
    monkeypatch.setattr("medssl.data.recipe.SAMPLED", noisy.size)
    whole = Recipe(margin=0).apply(Volume(noisy, np.eye(4))).grid
    assert whole.cropped != noisy.shape
    assert np.abs(np.subtract(sampled.cropped, whole.cropped)).max() <= 1


def test_zscore_is_of_the_foreground():
    rng = np.random.default_rng(0)
    image = np.zeros((20, 20, 20), np.float32)
    image[4:16, 4:16, 4:16] = rng.normal(500, 40, (12, 12, 12))
    prepared = Recipe(crop=False).apply(Volume(image, np.eye(4)))
    inside = prepared.image[0, 4:16, 4:16, 4:16]
    assert abs(inside.mean()) < 1e-3
    assert inside.std() == pytest.approx(1, abs=1e-3)


def test_one_outlier_leaves_the_contrast():
    image, _ = blob((20, 16, 12))
    spoiled = image.copy()
    spoiled[10, 8, 6] = 1e6
    clean, dirty = (Recipe(crop=False).apply(Volume(i, np.eye(4))).image for i in (image, spoiled))
    assert np.abs(clean - dirty).mean() < 0.05


def test_clip_maps_its_window_to_zero_and_one():
    image = np.array([-2000.0, -1000, 1000, 3000, 9000], np.float32).reshape(5, 1, 1)
    recipe = Recipe(crop=False, intensity=Intensity(kind="clip", window=(-1000, 3000)))
    assert recipe.apply(Volume(image, np.eye(4))).image.ravel().tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_volume_gives_finite_numbers_and_keeps_its_size(value):
    prepared = Recipe().apply(Volume(np.full((5, 6, 7), value, np.float32), np.eye(4)))
    assert prepared.image.shape == (1, 5, 6, 7)
    assert np.isfinite(prepared.image).all()


def test_several_channels_share_one_grid():
    image, label = blob((20, 16, 12))
    both = np.stack([image, 2 * image + 5], axis=-1)
    prepared = Recipe(spacing=(1.0, 1.5, 2.0)).apply(Volume(both, np.eye(4)), Volume(label, np.eye(4)))
    assert prepared.image.shape[0] == 2
    assert prepared.image.shape[1:] == prepared.label.shape == prepared.grid.prepared
    np.testing.assert_allclose(prepared.image[0], prepared.image[1], atol=1e-4)


def test_more_than_255_classes_survive():
    label = np.zeros((6, 5, 4), np.int32)
    label[2:4] = 300
    recipe = Recipe(crop=False)
    prepared = recipe.apply(Volume(label.astype(np.float32), np.eye(4)), Volume(label, np.eye(4)))
    assert prepared.label.max() == 300


def test_grid_travels_as_json():
    image, _ = blob((20, 16, 12))
    grid = Recipe(spacing=(1.0, 1.5, None)).apply(Volume(image, oriented_affine("PIR"))).grid
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


def test_resampling_does_not_shift():
    line = np.linspace(0, 1, 40, dtype=np.float32)
    image = np.broadcast_to(line[:, None, None], (40, 8, 8)).copy()
    recipe = Recipe(spacing=(2.0, None, None), crop=False, intensity=Intensity(kind="clip", window=(0, 1)))
    prepared = recipe.apply(Volume(image, np.eye(4)))
    assert prepared.image.shape == (1, 20, 8, 8)
    # Pairs of voxels meet in the middle between them.
    np.testing.assert_allclose(prepared.image[0, 2:-2, 4, 4], line.reshape(20, 2).mean(1)[2:-2], atol=1e-3)


@pytest.mark.parametrize(
    "values",
    [
        {"orientation": "RRS"},
        {"spacing": (0, 1, 1)},
        {"intensity": {"kind": "clip"}},
        {"colour": 1},
        {"resize": (1, 256)},
        {"resize": (64, 64), "spacing": (None, None, 5)},
    ],
)
def test_nonsense_is_refused(values):
    with pytest.raises(ValidationError):
        Recipe(**values)


def test_a_label_turns_with_its_image_even_where_rounding_would_part_them():
    image, label = blob((16, 16, 9))
    one, other = oriented_affine("RAS", tilt=45.0 + 1e-5), oriented_affine("RAS", tilt=45.0 - 1e-5)
    together = Recipe().apply(Volume(image, one), Volume(label, one))
    apart = Recipe().apply(Volume(image, one), Volume(label, other))
    assert np.array_equal(together.label, apart.label)


def test_a_label_whose_axes_run_elsewhere_is_refused():
    image, label = blob((9, 9, 9))
    with pytest.raises(DataError, match="do not run along"):
        Recipe().apply(Volume(image, oriented_affine("RAS")), Volume(label, oriented_affine("RAS", tilt=45.0)))


# ---- slices of one size


SLICES = {"crop": False, "intensity": Intensity(kind="clip", window=(0, 600))}


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0.0, 17.0])
def test_a_label_returns_exactly_from_slices_that_were_enlarged(codes, tilt):
    image, label = blob((21, 17, 13))
    affine = oriented_affine(codes, (1.4, 0.9, 8.0), tilt)
    recipe = Recipe(resize=(32, 33), **SLICES)
    prepared = recipe.apply(Volume(image, affine), Volume(label, affine))
    slices = image.shape[Turn.to("RAS", affine).axes[2]]
    assert prepared.image.shape == (1, 32, 33, slices)
    assert prepared.label.shape == (32, 33, slices)
    assert np.array_equal(recipe.undo([Slab(one_hot(prepared.label, 3))], prepared.grid), label)


def test_a_label_returns_nearly_from_slices_that_were_reduced_and_a_crop_of_them():
    image, label = blob((61, 53, 5))
    for crop in (False, True):
        recipe = Recipe(resize=(40, 40), crop=crop)
        prepared = recipe.apply(Volume(image, np.eye(4)), Volume(label, np.eye(4)))
        back = recipe.undo([Slab(one_hot(prepared.label, 3))], prepared.grid)
        assert prepared.image.shape[1:3] == (40, 40)
        assert back.shape == label.shape
        assert min(dice(back == value, label == value) for value in (1, 2)) > 0.93


@pytest.mark.parametrize("shape", [(5, 6, 7), (11, 9, 1), (40, 31, 3), (1, 16, 2)])
def test_slices_are_resized_as_scipy_zooms_them_with_the_nearest_voxel(shape):
    rng = np.random.default_rng(3)
    image, label = rng.uniform(0, 600, shape).astype(np.float32), rng.integers(0, 4, shape)
    prepared = Recipe(resize=(16, 23), **SLICES).apply(Volume(image, np.eye(4)), Volume(label, np.eye(4)))
    factors = [16 / shape[0], 23 / shape[1]]
    for z in range(shape[2]):
        for found, array in ((prepared.image[0], image / 600), (prepared.label, label)):
            zoomed = ndimage.zoom(array[:, :, z], factors, order=0, mode="nearest")
            np.testing.assert_allclose(found[:, :, z], zoomed, rtol=1e-6)


def test_a_resized_grid_travels_as_json_and_older_grids_are_read():
    image, _ = blob((20, 16, 12))
    grid = Recipe(resize=(9, 31)).apply(Volume(image, oriented_affine("PIR"))).grid
    assert grid.nearest
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    plain = Recipe().apply(Volume(image, np.eye(4))).grid
    older = {key: value for key, value in plain.to_json().items() if key != "nearest"}
    assert Grid.from_json(older) == plain


@pytest.mark.parametrize(
    ("spacing", "nominal"),
    [((0.5, 0.6, 2.0), (0.5, 0.6, 2.0)), ((None, 0.5, 2.0), (0.5, 0.5, 2.0)), ((None, None, None), (1.0, 1.0, 1.0))],
)
def test_an_axis_whose_spacing_differs_by_case_counts_as_the_finest_other(spacing, nominal):
    assert Recipe(spacing=spacing).nominal_spacing == nominal
