import pytest
import torch
from torch import nn

from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.networks import NetworkConfig, make_network
from medssl.parts.losses import cross_entropy, dice_ce, dice_loss
from medssl.parts.perturb import strong_view
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import generator, mix
from medssl.run import parse_method

SHAPE = (5, 6, 7)
LATER = Progress(60, 100)


def build(make=lambda **changes: nn.Conv3d(1, 3, 3, padding=1), **settings):
    torch.manual_seed(0)
    return METHODS["fixmatch"](parse_method({"name": "fixmatch", **settings}), make)


def batch(size=3):
    torch.manual_seed(1)
    label = torch.randint(0, 3, (2, *SHAPE))
    unlabelled = torch.randn(size, 1, *SHAPE)
    return TrainBatch(torch.randn(2, 1, *SHAPE), label, unlabelled, tuple(range(size)))


def set_bias(method, values):
    """A student that says the same everywhere."""
    with torch.no_grad():
        method.student.weight.zero_()
        method.student.bias.copy_(torch.tensor(values))


def test_the_weak_view_labels_and_the_strong_view_learns():
    method, data = build(threshold=0.4), batch()
    loss = method.step(data, LATER, generator(0)).losses["strong"]
    confidence, target = method.student(data.unlabelled).softmax(1).max(1)
    logits = method.student(strong_view(data.unlabelled, [mix(seed, 0) for seed in data.seeds]))
    confident = confidence >= 0.4
    assert 0 < confident.float().mean() < 1
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")[confident].sum() / target.numel()
    torch.testing.assert_close(loss, expected)


def test_no_gradient_passes_through_the_pseudo_label():
    method, data = build(threshold=0.0), batch()
    pseudo = method.pseudo_label(data.unlabelled)
    assert not pseudo.target.requires_grad
    assert not pseudo.weight.requires_grad


@pytest.mark.parametrize("loss", ["ce", "dice"])
def test_an_unsure_network_learns_nothing_from_unlabelled_patches(loss):
    method, data = build(threshold=0.95, loss=loss), batch()
    set_bias(method, [0.0, 0.0, 0.0])
    result = method.step(data, LATER, generator(0))
    assert result.stats["selected"] == result.losses["strong"] == 0
    torch.testing.assert_close(result.losses["supervised"], dice_ce(method.student(data.image), data.label))
    set_bias(method, [0.0, 5.0, 0.0])
    assert method.step(data, LATER, generator(0)).stats["selected"] == 1


def test_unlabelled_terms_count_confident_voxels_as_each_loss_says():
    torch.manual_seed(2)
    logits, target = torch.randn(2, 3, *SHAPE), torch.randint(0, 3, (2, *SHAPE))
    weight = (torch.rand(2, *SHAPE) < 0.3).float()
    sample = Sample(logits[:, :1], target, weight)
    ce = build(loss="ce").unsupervised(logits, sample)
    torch.testing.assert_close(ce, cross_entropy(logits, target, weight) * weight.mean())
    torch.testing.assert_close(build(loss="dice").unsupervised(logits, sample), dice_loss(logits, target, weight))


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


def test_a_single_patch_has_nobody_to_exchange_with():
    result = build(cutmix=1.0, threshold=0.0).step(batch(size=1), LATER, generator(0))
    assert torch.isfinite(result.losses["strong"])


def test_views_of_a_patch_differ_and_their_losses_are_averaged():
    method, data = build(views=2, threshold=0.0), batch()
    seen = []
    method.student.register_forward_hook(lambda net, args, out: seen.append(args[0]))
    loss = method.step(data, LATER, generator(0)).losses["strong"]
    _, first, second = seen[1].split([2, 3, 3])
    assert not torch.allclose(first, second)
    weak = method.pseudo_label(data.unlabelled)
    each = [method.unsupervised(method.student(view), weak) for view in (first, second)]
    torch.testing.assert_close(loss, sum(each) / 2)


def test_a_view_with_fewer_channels_is_an_option():
    network = NetworkConfig(channels=(4, 8, 16), strides=(2, 2), name="unet")
    make = lambda **changes: make_network(network, 1, 3)  # noqa: E731
    torch.manual_seed(1)
    image, label = torch.randn(2, 1, 8, 8, 12), torch.randint(0, 3, (2, 8, 8, 12))
    data = TrainBatch(image, label, torch.randn(2, 1, 8, 8, 12), (1, 2))
    losses = build(make, feature_dropout=0.5, threshold=0.0).step(data, LATER, generator(0)).losses
    assert losses["features"] > 0
    assert "features" not in build(make).step(data, LATER, generator(0)).losses
    with pytest.raises(ConfigError, match=r"method\.feature_dropout"):
        build(feature_dropout=0.5)
