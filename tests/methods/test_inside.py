"""Noise inside a network: where it acts, that it is the volume's own, and that nothing stays behind."""

import pytest
import torch
from torch import nn

from medssl.methods.inside import decoder_blocks, dropout_layers, with_dropout, with_fewer_channels
from medssl.networks import NetworkConfig, checkpoint_activations, make_network

SMALL = {"channels": (4, 8, 16), "strides": (2, 2)}


def network(name="dynunet", **settings):
    torch.manual_seed(0)
    return make_network(NetworkConfig(name=name, **SMALL, **settings), 1, 3)


def image(size=2):
    torch.manual_seed(1)
    return torch.randn(size, 1, 12, 8, 8)


NETWORKS = [("dynunet", 0), ("unet", 0), ("unet", 2)]


@pytest.mark.parametrize(("name", "units"), NETWORKS)
def test_dropout_is_live_in_evaluation_mode_and_belongs_to_each_volume(name, units):
    net, both = network(name, residual_units=units, dropout=0.2).eval(), image()
    noisy = with_dropout(net, both, (1, 2))
    assert not torch.allclose(noisy, net(both))
    torch.testing.assert_close(noisy[1:], with_dropout(net, both[1:], (2,)))
    assert not torch.allclose(noisy[1:], with_dropout(net, both[1:], (3,)))


def test_layers_and_volumes_drop_apart():
    net = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    out = with_dropout(net.eval(), torch.ones(2, 1, 20, 20, 20), (1, 2))
    assert 0.22 < (out > 0).float().mean() < 0.28  # as chances of their own multiply
    assert 0.22 < ((out[0] > 0) & (out[1] > 0)).float().mean() * 4 < 0.28


@pytest.mark.parametrize(("name", "units"), NETWORKS)
def test_the_decoder_misses_channels_and_the_encoder_does_not(name, units):
    net, both = network(name, residual_units=units).eval(), image()
    blocks = decoder_blocks(net)
    assert len(blocks) == len(SMALL["strides"])
    torch.testing.assert_close(with_fewer_channels(net, both, 0.0, (1, 2)), net(both))
    fewer = with_fewer_channels(net, both, 0.5, (1, 2))
    assert not torch.allclose(fewer, net(both))
    torch.testing.assert_close(fewer[1:], with_fewer_channels(net, both[1:], 0.5, (2,)))
    with_fewer_channels(net, both, 0.5, (1, 2)).sum().backward()
    first = next(module for module in net.modules() if isinstance(module, nn.Conv3d))
    assert first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "units"), NETWORKS)
def test_whole_channels_of_the_encoder_are_missing_and_none_of_the_decoder(name, units):
    """At the finer block of two, 4 channels are skipped and 8 are the coarser block's; at that one all are encoded."""
    net, seen = network(name, residual_units=units).eval(), []
    for block in decoder_blocks(net):
        block.register_forward_hook(lambda block, inputs, output: seen.append(inputs))
    with_fewer_channels(net, image(8), 0.5, range(8))
    coarse, fine = ([(features.flatten(2) == 0).all(-1) for features in inputs] for inputs in seen)
    decoded, skipped = fine if name == "dynunet" else (fine[0][:, 4:], fine[0][:, :4])
    assert decoded.shape[1] >= 4
    assert not decoded.any()
    for missing, channels in ((skipped, 4), (torch.cat(coarse, 1), 8 + 16)):
        assert missing.shape[1] == channels
        assert 0.3 < missing.float().mean() < 0.7


def test_nothing_stays_behind():
    net, both = network(dropout=0.2).eval(), image()
    before, state = net(both), torch.get_rng_state()
    with_dropout(net, both, (1, 2))
    with_fewer_channels(net, both, 0.5, (1, 2))
    assert torch.equal(net(both), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_layers_that_drop_whole_channels_still_do():
    net = nn.Sequential(nn.Dropout3d(0.5)).eval()
    volumes = with_dropout(net, torch.ones(2, 16, 3, 4, 5), (1, 2)).flatten(2)
    assert torch.equal(volumes.amin(-1), volumes.amax(-1))
    assert set(volumes.flatten().tolist()) == {0.0, 2.0}


def test_a_rate_of_zero_is_no_dropout():
    assert not dropout_layers(network("unet"))
    assert dropout_layers(network("unet", dropout=0.1))


def test_checkpointed_activations_have_the_same_gradients():
    plain, frugal = network().train(), network().train()
    checkpoint_activations(frugal)
    for net in (plain, frugal):
        with_fewer_channels(net, image(), 0.5, (1, 2)).square().mean().backward()
    for one, two in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_a_compiled_network_is_not_run_from_code_that_knows_no_noise():
    net, both = network(dropout=0.2).eval(), image()
    noisy = with_dropout(net, both, (1, 2))
    net.compile(backend="eager")
    torch.testing.assert_close(net(both), network(dropout=0.2).eval()(both))
    torch.testing.assert_close(with_dropout(net, both, (1, 2)), noisy)
