import torch
from by_hand import MIDWAY, RISE, TinyNet, assert_step, batch, nll, segmentation

from medssl.methods import METHODS
from medssl.parts.schedules import generator
from medssl.run import parse_method


def build(**settings):
    torch.manual_seed(0)
    return METHODS["cps"](parse_method({"name": "cps", **settings}), TinyNet)


def test_the_networks_start_apart():
    first, second = build().students()
    assert not torch.equal(first.decoder.weight, second.decoder.weight)


def test_losses_are_those_of_the_equations():
    method, data = build(cross_weight=0.3, ramp=0.5), batch()
    images = torch.cat([data.image, data.unlabelled])
    (labelled_1, unlabelled_1), (labelled_2, unlabelled_2) = (net(images).split([2, 3]) for net in method.students())
    expected = {
        "supervised_1": segmentation(labelled_1, data.label),
        "supervised_2": segmentation(labelled_2, data.label),
        "cross_1": 0.3 * RISE * nll(unlabelled_1, unlabelled_2.argmax(1)).mean(),
        "cross_2": 0.3 * RISE * nll(unlabelled_2, unlabelled_1.argmax(1)).mean(),
    }
    assert_step(method.step(data, MIDWAY, generator(0)).losses, expected, method.students())


def test_the_gap_is_where_the_networks_differ():
    method, data = build(), batch()
    stats = method.step(data, MIDWAY, generator(0)).stats
    first, second = (net(torch.cat([data.image, data.unlabelled]))[2:].argmax(1) for net in method.students())
    differ = first != second
    torch.testing.assert_close(stats["gap"], differ.float().mean())
    method.second.load_state_dict(method.first.state_dict())
    assert method.step(data, MIDWAY, generator(0)).stats["gap"] == 0
