"""What multi-view co-training promises: who labels for whom, and what a view is."""

import copy
import itertools

import pytest
import torch
from by_hand import MIDWAY, TinyNet, assert_step, dice, doubt, part_ways
from by_hand import batch as patches
from pydantic import ValidationError
from torch import nn

from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.methods.inside import with_dropout
from medssl.networks import NetworkConfig, make_network
from medssl.parts.losses import dice_loss
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator, mix
from medssl.run import parse_method

SHAPE = (4, 8, 12)
NETWORK = NetworkConfig(channels=(4, 8, 8), strides=((1, 2, 2), (2, 2, 2)))
LATER = Progress(60, 100)
SIX = list(itertools.permutations(range(3)))


def build(network=NETWORK, **settings):
    torch.manual_seed(0)
    config = parse_method({"name": "umct", "pretrain": 0.0, "uncertainty": "entropy", "flat_levels": 1, **settings})
    return METHODS["umct"](config, lambda **changes: make_network(network.changed(**changes), 1, 3))


def batch():
    torch.manual_seed(1)
    label = torch.randint(0, 3, (2, *SHAPE))
    return TrainBatch(torch.randn(2, 1, *SHAPE), label, torch.randn(2, 1, *SHAPE), (0, 1))


def step(method, progress=LATER):
    torch.manual_seed(2)
    return method.step(batch(), progress, generator(0))


def opinions(method):
    return method.opinions(batch().unlabelled, batch().seeds)


def reach(net):
    """How far a voxel's change is felt along each axis."""
    image = torch.zeros(1, 1, 16, 16, 16)
    changed = image.clone()
    changed[..., 8, 8, 8] = 1
    felt = (net(changed) - net(image)).abs().sum((0, 1)) > 1e-7
    return [int(felt.any(other[0]).any(other[1]).sum()) for other in ((2, 1), (2, 0), (1, 0))]


@pytest.mark.parametrize("axes", SIX)
def test_a_view_does_not_reach_along_its_last_axis(axes):
    network = NetworkConfig(channels=(4, 8, 8), strides=(1, 1), norm="batch")
    method = build(network, views=[axes, (0, 1, 2)], flat_levels=3)
    sides = reach(method.nets[0].eval())
    assert sides[axes[2]] == 1
    assert min(sides[axes[0]], sides[axes[1]]) > 8


@pytest.mark.parametrize("count", [2, 3, 6])
def test_every_view_of_a_volume_of_unequal_sides_and_strides_comes_back_on_its_axes(count):
    method = build(views=SIX[:count])
    assert [net(batch().image).shape for net in method.nets] == count * [(2, 3, *SHAPE)]
    assert len(method.students()) == count
    result = step(method)
    assert torch.isfinite(result.losses["cotraining"])


def test_networks_that_see_single_voxels_predict_the_same_in_every_view():
    network = NetworkConfig(channels=(4, 8, 8), strides=(1, 1), kernels=(1,), norm="batch")
    method = build(network, views=SIX, flat_levels=0)
    weights = list(method.nets[0].parameters())
    for net in method.nets[1:]:
        with torch.no_grad():
            for mine, first in zip(net.parameters(), weights, strict=True):
                mine.copy_(first)
    first, *rest = (net.eval()(batch().image) for net in method.nets)
    for other in rest:
        torch.testing.assert_close(other, first)


def test_stage_one_is_supervised_learning_of_each_view():
    method = build(pretrain=0.5)
    result = step(method, Progress(49, 100))
    assert result.losses.keys() == {"supervised"}
    expected = sum(dice_loss(net(batch().image), batch().label) for net in method.nets)
    torch.testing.assert_close(result.losses["supervised"], expected)
    assert step(method, Progress(50, 100)).losses.keys() == {"supervised", "cotraining"}


def test_a_view_is_labelled_by_the_others_alone():
    method = build()
    probs, uncertainty = opinions(method)
    targets = method.targets(probs, uncertainty)
    probs[1], uncertainty[1] = 1 / 3, 0
    changed = [not torch.equal(a, b) for a, b in zip(targets, method.targets(probs, uncertainty), strict=True)]
    assert changed == [True, False, True]


def test_with_two_views_each_learns_from_the_other_whatever_the_uncertainty():
    method = build(views=SIX[:2])
    probs, uncertainty = opinions(method)
    torch.testing.assert_close(method.targets(probs, uncertainty), probs.flip(0))
    torch.testing.assert_close(method.targets(probs, torch.rand_like(uncertainty)), probs.flip(0))


@pytest.mark.parametrize("settings", [{"most": 1.0}, {"floor": 1e6}])
def test_a_bound_or_a_floor_that_is_high_makes_views_count_alike(settings):
    probs, uncertainty = opinions(build())
    uncertainty = uncertainty * torch.tensor([1.0, 3.0, 9.0]).view(3, 1, 1, 1, 1)
    assert not torch.allclose(build().targets(probs, uncertainty)[0], (probs[1] + probs[2]) / 2)
    torch.testing.assert_close(build(**settings).targets(probs, uncertainty)[0], (probs[1] + probs[2]) / 2)


def test_the_gap_is_between_views_and_what_they_are_told_and_dissent_between_the_first_two():
    """The first view says 1, the two others say 2; told by one of each, class 1 comes first."""
    values = {"name": "umct", "pretrain": 0.0, "uncertainty": "entropy"}
    method = METHODS["umct"](parse_method(values), lambda **changes: TinyNet())
    with torch.no_grad():
        for net, value in zip(method.nets, (1, 2, 2), strict=True):
            net.decoder.bias[value] = 1e6
    stats = method.step(patches(), MIDWAY, generator(0)).stats
    assert stats["gap"] == stats["dissent"] == 1
    assert stats["pseudo/2"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("uncertainty", ["dropout", "entropy"])
@pytest.mark.parametrize("scope", ["sample", "voxel"])
def test_losses_are_those_of_the_equations(uncertainty, scope):
    """Three views: each is told the mean of the others by one over their uncertainty, and all are summed."""
    torch.manual_seed(0)
    values = {"pretrain": 0.0, "cotraining_weight": 0.7, "passes": 3, "uncertainty": uncertainty, "scope": scope}
    method = METHODS["umct"](parse_method({"name": "umct", **values}), lambda **changes: TinyNet(0.3)).train()
    data, probs, counts = patches(), [], []
    for view, net in enumerate(part_ways(method).nets):
        rest, drawn = copy.deepcopy(net).eval(), [[mix(mix(seed, view), k) for seed in data.seeds] for k in range(3)]
        with torch.no_grad():
            passes = torch.stack([with_dropout(rest, data.unlabelled, seeds).softmax(1) for seeds in drawn])
            p, unsure = passes.mean(0), ((passes**2).mean(0) - passes.mean(0) ** 2).mean(1)
            if uncertainty == "entropy":
                p = rest(data.unlabelled).softmax(1)
                unsure = doubt(p)
        unsure = unsure.mean((1, 2, 3), keepdim=True) if scope == "sample" else unsure
        probs.append(p)
        counts.append(1 / (unsure + 1e-3).unsqueeze(1))
    torch.manual_seed(2)  # of the students' dropout
    losses = method.step(data, MIDWAY, generator(0)).losses
    torch.manual_seed(2)
    expected = {"supervised": 0.0, "cotraining": 0.0}
    for v, net in enumerate(method.nets):
        labelled, unlabelled = net(torch.cat([data.image, data.unlabelled])).split([2, 3])
        one, two = (u for u in range(3) if u != v)
        lightest = torch.minimum(counts[one], counts[two])
        by = [torch.minimum(counts[u], 20 * lightest) for u in (one, two)]
        q, ours = (by[0] * probs[one] + by[1] * probs[two]) / sum(by), unlabelled.softmax(1)
        overlap, size = (x.sum((0, 2, 3, 4)) for x in (ours * q, ours**2 + q**2))
        expected["supervised"] += dice(labelled, data.label)
        expected["cotraining"] += 0.7 * (1 - ((2 * overlap + 1e-5) / (size + 1e-5)).mean())
    assert_step(losses, expected, method.nets)


def test_networks_that_agree_cost_nothing():
    network = NetworkConfig(channels=(4, 8, 8), strides=(1, 1), kernels=(1,))
    method = build(network, views=SIX[:3], flat_levels=0)
    for net in method.nets[1:]:
        net.load_state_dict({f"net.{k}": v for k, v in method.nets[0].state_dict().items()})
    assert step(method).losses["cotraining"].abs() < 1e-5


class TestDropout:
    def test_uncertainty_is_one_number_for_a_sample_or_for_a_voxel(self):
        network = NETWORK.changed(dropout=0.2)
        sample, voxel = (
            opinions(build(network, uncertainty="dropout", passes=4, scope=scope))[1] for scope in ("sample", "voxel")
        )
        assert sample.shape == (3, 2, 1, 1, 1)
        assert voxel.shape == (3, 2, *SHAPE)
        assert (sample > 0).all()

    def test_each_volume_has_its_own_draws(self):
        method, images = build(NETWORK.changed(dropout=0.2), uncertainty="dropout", scope="voxel"), batch().unlabelled
        probs, uncertainty = method.opinions(images, (3, 4))
        alone = method.opinions(images[1:], (4,))
        torch.testing.assert_close((probs[:, 1:], uncertainty[:, 1:]), alone)
        assert not torch.allclose(method.opinions(images[1:], (5,))[1], alone[1])

    def test_views_and_passes_draw_apart(self):
        method = build(NETWORK.changed(dropout=0.2), uncertainty="dropout", views=2 * [(0, 1, 2)])
        method.nets[1].load_state_dict(method.nets[0].state_dict())
        probs, uncertainty = opinions(method)
        assert not torch.allclose(probs[0], probs[1])
        assert (uncertainty > 0).all()

    def test_passes_leave_modes_running_statistics_and_random_state_alone(self):
        method = build(NETWORK.changed(dropout=0.2, norm="batch"), uncertainty="dropout", passes=3).train()
        before = {name: value.clone() for name, value in method.state_dict().items()}
        images, random = batch().unlabelled, torch.get_rng_state()
        method.opinions(images, (3, 4))
        torch.testing.assert_close(method.state_dict(), before, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(module.training for module in method.modules())

    def test_a_single_pass_has_no_variance_and_views_then_count_alike(self):
        method = build(NETWORK.changed(dropout=0.2), uncertainty="dropout", passes=1)
        probs, uncertainty = opinions(method)
        assert (uncertainty == 0).all()
        torch.testing.assert_close(method.targets(probs, uncertainty)[0], (probs[1] + probs[2]) / 2)
        assert torch.isfinite(step(method).losses["cotraining"])

    def test_is_asked_for_where_it_is_missing(self):
        with pytest.raises(ConfigError, match=r"network\.dropout above 0"):
            build(uncertainty="dropout")
        build(NETWORK.changed(dropout=0.1), uncertainty="dropout")


@pytest.mark.parametrize("views", [[(0, 1, 2)], 7 * [(0, 1, 2)]])
def test_there_are_two_to_six_views(views):
    with pytest.raises((ConfigError, ValidationError), match="views"):
        build(views=views)


def test_orders_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"network.*axes must name each"):
        build(views=[(0, 1, 2), (0, 1, 1)])


def test_a_network_without_kernels_of_its_own_for_each_level_is_refused():
    unet = NetworkConfig(name="unet", channels=(4, 8, 8), strides=(2, 2))
    with pytest.raises(ConfigError, match="use dynunet"):
        build(unet)
    assert isinstance(build(unet, flat_levels=0).nets[0], nn.Module)
