"""Views: exact ways there and back, on unequal sides."""

import copy
import itertools

import pytest
import torch
from torch import nn

from medssl.ema import ema_update
from medssl.parts.views import Axes, Band, Identity, Viewed

SHAPE = (5, 6, 7)
ORDERS = list(itertools.permutations(range(3)))


def halves(image):
    """A split that is easy to do by head: low is the volume's mean."""
    low = image.mean((2, 3, 4), keepdim=True).expand_as(image)
    return low, image - low


def thirds(image):
    """A split of which neither band is the image."""
    return image / 3, image - image / 3


VIEWS = {
    "identity": Identity(),
    "order": Axes((2, 0, 1)),
    "band": Band("low", thirds, leak=0.2),
}


def image(seed=0, modalities=2):
    return torch.randn(2, modalities, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", ORDERS)
def test_undoing_a_change_of_axes_brings_every_voxel_back(order):
    view = Axes(order)
    seen = view.apply(image())
    assert seen.shape[2:] == tuple(SHAPE[axis] for axis in order)
    assert torch.equal(view.undo(seen), image())


def test_changes_of_axes_are_six_different_ones():
    assert len({str(Axes(order).apply(image()).flatten().tolist()) for order in ORDERS}) == 6


@pytest.mark.parametrize("order", [(0, 1, 1), (0, 1, 3)])
def test_what_is_no_order_of_the_axes_is_refused(order):
    with pytest.raises(ValueError, match="axes 0, 1 and 2"):
        Axes(order)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_a_network_of_single_voxels_predicts_the_same_behind_any_axes(view):
    torch.manual_seed(0)
    net = nn.Conv3d(2, 3, 1)
    seen = view.apply(image()) if isinstance(view, Band) else image()
    torch.testing.assert_close(Viewed(net, view)(image()), net(seen))


@pytest.mark.parametrize("which", ["low", "high"])
def test_a_band_that_takes_in_all_of_the_other_is_the_image(which):
    torch.testing.assert_close(Band(which, thirds, leak=1.0).apply(image()), image())


@pytest.mark.parametrize("which", ["low", "high"])
@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_a_band_is_as_loud_as_its_image_volume_by_volume(which, leak):
    loud = image() * torch.tensor([1.0, 100.0]).view(2, 1, 1, 1, 1)
    seen = Band(which, lambda x: (0.9 * x, 0.1 * x), leak).apply(loud)
    torch.testing.assert_close(seen, loud)


def test_each_modality_is_made_as_loud_as_it_was():
    loud = image() * torch.tensor([1.0, 100.0]).view(1, 2, 1, 1, 1)
    share = torch.tensor([0.9, 0.2]).view(1, 2, 1, 1, 1)
    seen = Band("low", lambda x: (share * x, x - share * x)).apply(loud)
    torch.testing.assert_close(seen, loud)


@pytest.mark.parametrize("which", ["low", "high"])
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_constant_image_stays_finite_and_no_noise_is_made_loud(which, value):
    constant = torch.full((2, 1, *SHAPE), value)
    seen = Band(which, halves).apply(constant)
    torch.testing.assert_close(seen, constant if which == "low" else torch.zeros_like(constant), atol=1e-5, rtol=0)
    ramp = torch.arange(7.0).expand(2, 1, *SHAPE)
    faint = Band("high", lambda x: (x - 1e-7, torch.full_like(x, 1e-7) * x)).apply(ramp)
    assert faint.abs().max() < 1e-4


def test_bands_are_float32_under_autocast():
    exact = Band("low", thirds, leak=0.2).apply(image())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Band("low", thirds, leak=0.2).apply(image()), exact)
        assert Band("low", thirds).apply(image().bfloat16()).dtype == torch.float32


def test_a_viewed_network_has_the_weights_of_its_network_and_copies_whole():
    net = nn.Conv3d(2, 3, 3, padding=1)
    viewed = Viewed(net, VIEWS["order"])
    assert list(viewed.state_dict()) == ["net.weight", "net.bias"]
    assert [id(p) for p in viewed.parameters()] == [id(p) for p in net.parameters()]
    twin = copy.deepcopy(viewed)
    assert torch.equal(twin(image()), viewed(image()))
    with torch.no_grad():
        net.weight.add_(1)
    assert not torch.equal(twin(image()), viewed(image()))


def test_networks_behind_different_views_follow_each_other():
    teacher, student = Viewed(nn.Conv3d(2, 3, 1), Identity()), Viewed(nn.Conv3d(2, 3, 1), VIEWS["order"])
    ema_update(teacher, [student], decay=0.0)
    torch.testing.assert_close(teacher.state_dict(), student.state_dict())
