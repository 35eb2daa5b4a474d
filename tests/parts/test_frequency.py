"""Low and high frequencies: what every split owes, and what is particular to each kind."""

import itertools

import pytest
import torch

from medssl.parts.frequency import block_mean, halvings, split_frequencies
from medssl.parts.views import Axes

KINDS = ["haar", "gauss", "fft"]
SHAPES = [(5, 6, 7), (8, 4, 6), (1, 9, 2)]


def image(shape=(5, 6, 7), seed=0):
    return 3 + torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [1, 3])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 1.4, 5.0)])
def test_low_and_high_sum_to_the_image(kind, shape, strength, spacing):
    low, high = split_frequencies(image(shape), kind, levels=strength, sigma=strength, spacing=spacing)
    assert low.shape == high.shape == image(shape).shape
    assert (low + high - image(shape)).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_image_is_all_low(kind, shape):
    constant = torch.full((2, 1, *shape), 7.5)
    low, high = split_frequencies(constant, kind)
    torch.testing.assert_close(low, constant, rtol=0, atol=1e-5)
    assert high.abs().max() <= 1e-5


def test_without_strength_low_is_the_image(kind):
    low, high = split_frequencies(image(), kind, levels=0, sigma=0.0)
    assert torch.equal(low, image())
    assert torch.equal(high, torch.zeros_like(high))


def test_the_image_is_left_alone_and_volumes_do_not_see_each_other(kind):
    whole = image()
    low, _ = split_frequencies(whole, kind)
    assert torch.equal(whole, image())
    alone, _ = split_frequencies(whole[1:, :1], kind)
    torch.testing.assert_close(low[1:, :1], alone)


def test_low_holds_less_the_stronger_the_split(kind):
    strengths = [split_frequencies(image((16, 16, 16)), kind, levels=n, sigma=n)[0].std().item() for n in range(4)]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[0] > strengths[-1]


@pytest.mark.parametrize("axis", range(3))
def test_a_thick_axis_is_not_smoothed_below_its_sampling(kind, axis):
    """Alternating slices 10 mm apart are coarse structure next to a cutoff of two voxels of 1.5 mm."""
    spacing = [1.5, 1.5, 1.5]
    spacing[axis] = 10.0
    slices = torch.tensor([1.0, -1.0]).repeat(4).view([-1 if a == axis else 1 for a in range(3)])
    alternating = slices.expand(1, 1, 8, 8, 8)
    low, _ = split_frequencies(alternating, kind, levels=1, sigma=3.0, spacing=spacing)
    torch.testing.assert_close(low, alternating, rtol=0, atol=1e-5)
    assert split_frequencies(alternating, kind, levels=1, sigma=3.0)[0][..., 2:6, 2:6, 2:6].abs().max() < 0.25
    in_plane = split_frequencies(image(), kind, levels=1, sigma=3.0, spacing=spacing)[0]
    assert not torch.allclose(in_plane, image())


@pytest.mark.parametrize("kind", ["gauss", "fft"])
def test_a_gaussian_is_as_wide_along_all_axes_in_millimetres(kind):
    """A point's second moment along each axis is the variance asked for."""
    spacing, sigma = (1.0, 0.5, 2.0), 2.0
    point = torch.zeros(1, 1, 25, 45, 17)
    point[0, 0, 12, 22, 8] = 1
    spot = split_frequencies(point, kind, sigma=sigma, spacing=spacing)[0][0, 0].double()
    for axis, mm in enumerate(spacing):
        along = spot.sum([a for a in range(3) if a != axis])
        place = mm * (torch.arange(len(along)) - len(along) // 2)
        assert abs((along * place**2).sum().item() - sigma**2) < 0.02 * sigma**2


def test_the_gaussian_is_the_same_in_space_and_in_fourier_space():
    smooth, _ = split_frequencies(image((9, 16, 11)), "gauss", sigma=1.5)
    product, _ = split_frequencies(image((9, 16, 11)), "fft", sigma=1.5)
    torch.testing.assert_close(smooth, product, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["gauss", "fft"])
def test_one_face_does_not_leak_into_the_opposite_one(kind):
    bright = torch.zeros(1, 1, 24, 5, 6)
    bright[:, :, 0] = 1
    low, _ = split_frequencies(bright, kind, sigma=1.5)
    assert low[:, :, 0].min() > 0.3
    assert low[:, :, 12:].abs().max() < 1e-3


def haar_bands(volume):
    """One level of the Haar transform by its filters, on even sides: 8 bands."""
    bands = [volume]
    for axis in range(3):
        pairs = [band.unfold(axis, 2, 2) for band in bands]
        bands = [f for p in pairs for f in ((p[..., 0] + p[..., 1]) / 2**0.5, (p[..., 0] - p[..., 1]) / 2**0.5)]
    return bands


def inverse_haar(bands):
    for axis in reversed(range(3)):
        pairs = zip(bands[::2], bands[1::2], strict=True)
        bands = [
            torch.stack([(low + high) / 2**0.5, (low - high) / 2**0.5], axis + 1).flatten(axis, axis + 1)
            for low, high in pairs
        ]
    return bands[0]


def test_haar_low_is_the_coarsest_band_transformed_back_and_high_the_seven_others():
    volume = image((4, 6, 8))[0, 0].double()
    coarse, *details = haar_bands(volume)
    torch.testing.assert_close(inverse_haar([coarse, *details]), volume)
    low, high = split_frequencies(volume[None, None], "haar")
    nothing = torch.zeros_like(coarse)
    torch.testing.assert_close(low[0, 0].double(), inverse_haar([coarse, *[nothing] * 7]), rtol=0, atol=1e-6)
    torch.testing.assert_close(high[0, 0].double(), inverse_haar([nothing, *details]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [1, 2])
def test_haar_is_a_projection_and_keeps_energy_and_mean(shape, levels):
    low, high = (band.double() for band in split_frequencies(image(shape), "haar", levels=levels))
    again, nothing = split_frequencies(low, "haar", levels=levels)
    torch.testing.assert_close(again.double(), low, rtol=0, atol=1e-5)
    assert nothing.abs().max() < 1e-5
    torch.testing.assert_close((low**2).sum() + (high**2).sum(), (image(shape).double() ** 2).sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(low.mean(), image(shape).double().mean(), rtol=1e-6, atol=0)


def test_haar_halves_coarser_axes_less_often():
    assert halvings(1, (1, 1, 1)) == [1, 1, 1]
    assert halvings(2, (1, 2, 4)) == [2, 1, 0]
    assert halvings(3, (1.5, 1.5, 10)) == [3, 3, 0]
    assert halvings(3, (1, 4, 2)) == [3, 1, 2]


def test_a_block_has_one_value_and_the_last_one_is_what_is_left():
    volume = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 1, 5, 2, 3)
    means = block_mean(volume, (2, 8, 1))
    assert means[0, 0, :, 0, 0].tolist() == [0.5, 0.5, 2.5, 2.5, 4.0]
    assert torch.equal(means, means[..., :1, :1].expand_as(means))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (2,), (3, 4)])
def test_a_split_turns_with_the_image_on_even_sides(kind, order, flips):
    spacing = (1.0, 2.0, 1.0)

    def turn(volume):
        return Axes(order).apply(volume).flip(flips)

    low, high = split_frequencies(image((4, 6, 8)), kind, spacing=spacing)
    turned = split_frequencies(turn(image((4, 6, 8))), kind, spacing=[spacing[axis] for axis in order])
    torch.testing.assert_close(turned[0], turn(low), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned[1], turn(high), rtol=0, atol=1e-5)


def test_haar_blocks_belong_to_the_patch_and_the_gaussian_to_the_voxels():
    """Cut one voxel further, the same voxels are in other blocks; two further, in the same."""
    volume = image((12, 12, 12))

    def low_of_the_middle(start, kind):
        return split_frequencies(volume[..., start:], kind, sigma=0.4)[0][..., 4 - start : -4]

    for start, alike in ((1, False), (2, True)):
        assert torch.allclose(low_of_the_middle(start, "haar"), low_of_the_middle(0, "haar"), atol=1e-6) is alike
        assert torch.allclose(low_of_the_middle(start, "gauss"), low_of_the_middle(0, "gauss"), atol=1e-6)


def test_splitting_then_mixing_is_mixing_the_parts_of_the_sum(kind):
    one, two, box = image(), image(seed=1), torch.zeros(5, 6, 7, dtype=torch.bool)
    box[1:3, 2:5, :4] = True
    lows, highs = zip(*(split_frequencies(x, kind) for x in (one, two)), strict=True)
    mixed = torch.where(box, *lows) + torch.where(box, *highs)
    torch.testing.assert_close(mixed, torch.where(box, one, two), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_split_is_float32_under_autocast(kind, dtype):
    given = image().to(dtype)
    exact = split_frequencies(given.float(), kind)
    with torch.autocast("cpu", torch.bfloat16):
        bands = split_frequencies(given, kind)
    assert all(band.dtype == torch.float32 for band in bands)
    assert all(torch.equal(band, wanted) for band, wanted in zip(bands, exact, strict=True))


def test_gradients_pass_through_the_split(kind):
    given = image().requires_grad_()
    low, high = split_frequencies(given, kind)
    (2 * low + 2 * high).sum().backward()
    torch.testing.assert_close(given.grad, torch.full_like(given, 2.0))


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="haar, gauss or fft, got 'gaus'"):
        split_frequencies(image((5, 6, 7)), "gaus")
