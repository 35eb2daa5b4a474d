import pytest
import torch
from pydantic import ValidationError

from medssl.device import choose_device
from medssl.errors import ConfigError, DeviceError
from medssl.networks import NetworkConfig, check_patch, make_network

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
    with pytest.raises(DeviceError):
        choose_device("abacus")
