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


def test_whole_channels_are_missing():
    net, seen = network().eval(), []
    block = decoder_blocks(net)[0]
    block.conv_block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with_fewer_channels(net, image(), 0.5, (1, 2))
    skipped = seen[0][:, 8:].flatten(2)  # after the upsampled channels
    assert ((skipped == 0).all(-1) | (skipped != 0).any(-1)).all()
    assert 0 < (skipped == 0).all(-1).sum() < skipped.shape[0] * skipped.shape[1]


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
