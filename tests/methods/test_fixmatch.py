from dataclasses import replace

import pytest
import torch
from by_hand import MIDWAY, SHAPE, TinyNet, assert_step, batch, dice, nll, part_ways, segmentation
from torch import nn

from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.methods.inside import with_fewer_channels
from medssl.parts.perturb import strong_view
from medssl.parts.sample import Sample
from medssl.parts.schedules import generator, mix
from medssl.run import parse_method


def build(make=lambda **changes: nn.Conv3d(1, 3, 3, padding=1), **settings):
    torch.manual_seed(0)
    return METHODS["fixmatch"](parse_method({"name": "fixmatch", **settings}), make)


def set_bias(method, values):
    """A student that says the same everywhere."""
    with torch.no_grad():
        method.student.weight.zero_()
        method.student.bias.copy_(torch.tensor(values))


@pytest.mark.parametrize("loss", ["ce", "dice"])
def test_losses_are_those_of_the_equations(loss):
    """Equations 3 and 4 with two strong views, or Dice in place of 4, and UniMatch's view with fewer features."""
    settings = {"loss": loss, "threshold": 0.8, "views": 2, "strong_weight": 0.7, "feature_weight": 0.3}
    method, data = (
        part_ways(build(TinyNet, feature_dropout=0.5, **settings)),
        replace(batch(), fine=(True, True, False)),
    )
    losses = method.step(data, MIDWAY, generator(0)).losses
    student = method.student
    confidence, target = student(data.weak).detach().softmax(1).max(1)
    confident = confidence >= 0.8
    assert 0.2 < confident.float().mean() < 0.8

    def unsupervised(logits):
        return dice(logits, target, confident) if loss == "dice" else (confident * nll(logits, target)).mean()

    seeds = [[mix(seed, view) for seed in data.seeds] for view in (0, 1)]
    views = [strong_view(data.unlabelled, each, data.fine) for each in seeds]
    labelled, first, second = student(torch.cat([data.image, *views])).split([2, 3, 3])
    fewer = with_fewer_channels(student, data.weak, 0.5, data.seeds)
    expected = {
        "supervised": segmentation(labelled, data.label),
        "strong": 0.7 * (unsupervised(first) + unsupervised(second)) / 2,
        "features": 0.3 * unsupervised(fewer),
    }
    assert_step(losses, expected, [student])


@pytest.mark.parametrize("loss", ["ce", "dice"])
def test_an_unsure_network_learns_nothing_from_unlabelled_patches(loss):
    method, data = build(threshold=0.95, loss=loss), batch()
    set_bias(method, [0.0, 0.0, 0.0])
    result = method.step(data, MIDWAY, generator(0))
    assert result.stats["selected"] == result.losses["strong"] == 0
    torch.testing.assert_close(result.losses["supervised"], segmentation(method.student(data.image), data.label))
    set_bias(method, [0.0, 5.0, 0.0])
    assert method.step(data, MIDWAY, generator(0)).stats["selected"] == 1


def test_cutmix_moves_image_target_and_trust_together():
    """Patches are constants, so every voxel tells which patch it comes from."""
    method, volumes = build(cutmix=1.0), torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 1, *SHAPE).clone()
    weak = Sample(volumes, volumes[:, 0].long(), volumes[:, 0] / 4)
    for draw in range(5):
        mixed = method.strong(weak, (0, 1, 2, 3), generator(draw))
        assert torch.equal(mixed.weight, mixed.target / 4)
        exchanged = mixed.target != weak.target
        assert exchanged.any()
        assert ((mixed.target - weak.target).abs()[exchanged] == 2).all(), "half a batch further"
        plain = build(cutmix=0.0).strong(weak, (0, 1, 2, 3), generator(draw))
        assert torch.equal(mixed.image[~exchanged.unsqueeze(1)], plain.image[~exchanged.unsqueeze(1)])
    assert torch.equal(build(cutmix=0.0).strong(weak, (0, 1, 2, 3), generator(0)).target, weak.target)


def test_patches_are_exchanged_as_often_as_the_settings_say():
    patches = Sample.of(torch.rand(2, 1, *SHAPE), torch.arange(2).view(2, 1, 1, 1).expand(2, *SHAPE))
    method = build(cutmix=0.25)
    times = sum(
        not torch.equal(method.strong(patches, (0, 1), generator(n)).target, patches.target) for n in range(200)
    )
    assert 30 < times < 70


def test_boxes_hold_half_of_a_patch_on_average_as_beta_has_it():
    """Beta(4, 4) has a standard deviation of a sixth; a side that is cut to whole voxels takes a little."""
    method, shape = build(cutmix=1.0), (24, 25, 26)
    target = torch.arange(2).view(2, 1, 1, 1).expand(2, *shape)
    patches = Sample.of(target.unsqueeze(1).float(), target)
    shares = torch.stack([
        (method.strong(patches, (0, 1), generator(draw)).target != target).float().mean() for draw in range(100)
    ])  # fmt: skip
    assert 0.41 < shares.mean() < 0.53
    assert 0.12 < shares.std() < 0.21


def test_the_gap_is_to_the_target_of_what_the_view_shows():
    """Patches of one grey level each, which is its class and which no strong view changes."""
    method, data = build(lambda **changes: nn.Conv3d(1, 3, 1), cutmix=1.0, threshold=0.0), batch(unlabelled=4)
    with torch.no_grad():
        method.student.weight.copy_(torch.tensor([0.0, 2.0, 4.0]).view(3, 1, 1, 1, 1))
        method.student.bias.copy_(torch.tensor([0.0, -1.0, -4.0]))
    constant = torch.tensor([0.0, 1.0, 2.0, 0.0]).view(4, 1, 1, 1, 1).expand(4, 1, *SHAPE)
    data = replace(data, unlabelled=constant, weak=constant)
    for draw in range(3):
        assert method.step(data, MIDWAY, generator(draw)).stats["gap"] == 0


def test_a_single_patch_has_nobody_to_exchange_with():
    result = build(cutmix=1.0, threshold=0.0).step(batch(unlabelled=1), MIDWAY, generator(0))
    assert torch.isfinite(result.losses["strong"])


def test_a_view_with_fewer_channels_is_an_option_for_networks_that_say_what_their_decoder_is():
    assert "features" not in build().step(batch(), MIDWAY, generator(0)).losses
    with pytest.raises(ConfigError, match=r"method\.feature_dropout"):
        build(feature_dropout=0.5)
