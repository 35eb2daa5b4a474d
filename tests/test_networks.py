import copy

import pytest
import torch
from pydantic import ValidationError

from medssl.device import choose_device
from medssl.errors import ConfigError, DeviceError
from medssl.networks import NetworkConfig, check_patch, checkpoint_activations, count_parameters, make_network

THICK = {"channels": (4, 8, 8), "strides": ((2, 2, 1), (2, 2, 2)), "kernels": ((3, 3, 1), 3, 3)}


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("name", ["dynunet", "unet"])
def test_logits_have_the_shape_of_the_image(name, norm):
    config = NetworkConfig(name=name, channels=(4, 8, 8), strides=((2, 2, 1), (2, 2, 2)), norm=norm)
    net = make_network(config, channels=2, classes=3)
    assert net(torch.randn(2, 2, 8, 12, 6)).shape == (2, 3, 8, 12, 6)


def test_thick_slices_are_not_pooled_through():
    """What happens in one slice stays within the slices that kernels and strides reach."""
    config = NetworkConfig(channels=(4, 8, 8), strides=((2, 2, 1), (2, 2, 1)), kernels=((3, 3, 1),), norm="batch")
    net = make_network(config, 1, 2).eval()
    image = torch.randn(1, 1, 8, 8, 5)
    changed = image.clone()
    changed[..., 2] += 1
    moved = (net(image) - net(changed)).abs().amax((0, 1, 2, 3)) > 1e-6
    assert moved.tolist() == [False, False, True, False, False]


def test_patch_must_be_divisible_and_the_message_names_the_nearest():
    config = NetworkConfig(**THICK)
    assert config.total_stride == (4, 4, 2)
    check_patch((8, 12, 6), config)
    with pytest.raises(ConfigError, match=r"\[8, 10, 6\].*\[4, 4, 2\].*\[8, 8, 6\]"):
        check_patch((8, 10, 6), config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strides": (2,)},
        {"kernels": (3, 3)},
        {"channels": (4, 8), "strides": (2,), "kernels": (3,)},
        {"name": "unet", "kernels": (3, (3, 3, 1), 3)},
        {"norm": "x"},
        {"norm": "group"},
        {"kernels": (2,)},
        {"axes": (0, 1, 1)},
        {"residual_units": 1},
    ],
)
def test_settings_that_cannot_be_a_network_are_refused(wrong):
    with pytest.raises(ValidationError):
        NetworkConfig(**{**THICK, **wrong})


def test_device_is_the_cpu_where_there_is_no_other():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(DeviceError, match="cuda:99"):
        choose_device("cuda:99")
    for name in ("abacus", "gpu", "cuda:x", ""):
        with pytest.raises(ConfigError, match=f"--device {name}: expected auto, cpu, cuda"):
            choose_device(name)


def sample_nets(dropout=0.0):
    dynunet = {"strides": ((2, 2, 1), (2, 2, 2)), "dropout": dropout}
    for settings in (
        dynunet,
        {**dynunet, "norm": "group", "channels": (8, 8, 16)},
        {**dynunet, "residual_units": 2, "axes": (2, 0, 1)},
        {"name": "unet", "dropout": dropout},
        {"name": "unet", "residual_units": 2, "dropout": dropout},
    ):
        torch.manual_seed(0)
        config = NetworkConfig(**{"channels": (4, 8, 8), "strides": (2, 2), **settings})
        yield make_network(config, channels=2, classes=3).train()


def loss_and_gradients(net, image, seed=1):
    torch.manual_seed(seed)
    net.zero_grad()
    loss = net(image).square().mean()
    loss.backward()
    return loss, [p.grad for p in net.parameters()]


def kept_for_backward(net, image):
    """Bytes of the storages that a forward pass keeps."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = net(image)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    return logits, sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointed_networks_learn_the_same(dropout):
    image = torch.randn(2, 2, 8, 12, 16)
    for net in sample_nets(dropout):
        names, expected = list(net.state_dict()), loss_and_gradients(net, image)
        checkpoint_activations(net)
        assert list(net.state_dict()) == names
        torch.testing.assert_close(loss_and_gradients(net, image), expected, rtol=0, atol=0)


def test_checkpointing_keeps_less_than_half_of_the_activations():
    image = torch.randn(1, 1, 32, 32, 32)
    torch.manual_seed(0)
    net = make_network(NetworkConfig(), 1, 3).train()
    _, before = kept_for_backward(net, image)
    checkpoint_activations(net)
    assert kept_for_backward(net, image)[1] < before / 2


def test_only_training_is_checkpointed():
    image = torch.randn(1, 2, 8, 12, 16)
    for net in sample_nets():
        plain = copy.deepcopy(net)
        checkpoint_activations(net)
        assert kept_for_backward(net, image)[1] < kept_for_backward(plain, image)[1]
        assert kept_for_backward(net.eval(), image)[1] == kept_for_backward(plain.eval(), image)[1]
        with torch.no_grad():
            assert torch.equal(net.train()(image), plain.train()(image))


def test_a_copy_of_a_checkpointed_network_has_weights_of_its_own():
    image = torch.randn(1, 2, 8, 12, 16)
    for net in sample_nets():
        checkpoint_activations(net)
        before, twin = net(image), copy.deepcopy(net)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(0.5)
        assert torch.equal(net(image), before)
        assert not torch.equal(twin(image), before)
        twin(image).mean().backward()
        assert all(p.grad is None for p in net.parameters())


def test_batch_norm_is_not_checkpointed():
    net = make_network(NetworkConfig(channels=(4, 8, 8), strides=(2, 2), norm="batch"), 1, 2)
    with pytest.raises(ConfigError, match="norm: batch"):
        checkpoint_activations(net)


def test_a_patch_that_shrinks_to_one_voxel_is_refused():
    config = NetworkConfig(name="unet", channels=(4, 8, 8), strides=(2, (2, 2, 1)))
    with pytest.raises(ConfigError, match="single voxel"):
        check_patch((4, 4, 2), config)
    check_patch((4, 4, 4), config)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("name", ["dynunet", "unet"])
def test_strides_stay_with_the_image_whatever_the_order_of_axes(name, axes):
    config = NetworkConfig(name=name, channels=(4, 8, 8), strides=((2, 2, 1), (2, 2, 2)), axes=axes)
    assert make_network(config, 2, 3)(torch.randn(2, 2, 8, 12, 6)).shape == (2, 3, 8, 12, 6)


def test_flat_levels_are_thin_along_the_third_axis():
    config = NetworkConfig(channels=(4, 8, 8), strides=(2, 2), kernels=((3, 5, 7),), flat_levels=2)
    assert config.level_kernels == [(3, 5, 1), (3, 5, 1), (3, 5, 7)]


def test_dynunet_has_residual_blocks_on_demand():
    plain, residual = (NetworkConfig(channels=(4, 8, 8), strides=(2, 2), residual_units=units) for units in (0, 2))
    plain_net, residual_net = (make_network(config, 1, 2) for config in (plain, residual))
    assert count_parameters(residual_net) > count_parameters(plain_net)
    assert residual_net(torch.randn(1, 1, 8, 8, 12)).shape == (1, 2, 8, 8, 12)


def test_changed_settings_are_checked_like_given_ones():
    config = NetworkConfig(**THICK)
    assert config.changed(dropout=0.25) == NetworkConfig(**THICK, dropout=0.25)
    with pytest.raises(ConfigError, match=r"network.*kernels: must have 1 entry or 3, one per level, got 2"):
        config.changed(kernels=(3, 3))
    with pytest.raises(ConfigError, match=r"network\.residual_unit: unknown key; did you mean network.residual_units"):
        config.changed(residual_unit=2)
