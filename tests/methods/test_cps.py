import torch
from torch import nn

from medssl.methods import METHODS
from medssl.parts.losses import cross_entropy
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator
from medssl.run import parse_method

SHAPE = (5, 6, 7)
LATER = Progress(60, 100)


def build(name="cps", **settings):
    torch.manual_seed(0)
    return METHODS[name](parse_method({"name": name, **settings}), lambda **changes: nn.Conv3d(1, 3, 3, padding=1))


def batch():
    torch.manual_seed(1)
    label = torch.randint(0, 3, (2, *SHAPE))
    return TrainBatch(torch.randn(2, 1, *SHAPE), label, torch.randn(3, 1, *SHAPE), (1, 2, 3))


def test_the_networks_start_apart():
    first, second = build().students()
    assert not torch.equal(first.weight, second.weight)


def test_each_network_learns_the_others_classes():
    method, data = build(ramp=0.0), batch()
    losses = method.step(data, LATER, generator(0)).losses
    ours, theirs = method.first(data.unlabelled), method.second(data.unlabelled)
    torch.testing.assert_close(losses["cross_1"], 0.1 * cross_entropy(ours, theirs.argmax(1)))
    torch.testing.assert_close(losses["cross_2"], 0.1 * cross_entropy(theirs, ours.argmax(1)))


def test_no_gradient_reaches_the_network_that_labels():
    for name, learner, other in (("cross_1", "first", "second"), ("cross_2", "second", "first")):
        method = build()
        method.step(batch(), LATER, generator(0)).losses[name].backward()
        assert all(p.grad.abs().sum() > 0 for p in getattr(method, learner).parameters())
        assert all(p.grad is None for p in getattr(method, other).parameters())


def test_without_the_cross_term_each_is_the_supervised_baseline():
    method, supervised = build(cross_weight=0.0), build("supervised")
    losses = method.step(batch(), LATER, generator(0)).losses
    assert losses["cross_1"].item() == losses["cross_2"].item() == 0
    expected = supervised.step(batch(), LATER, generator(0)).losses["supervised"]
    torch.testing.assert_close(losses["supervised_1"], expected)


def test_the_gap_is_where_the_networks_differ():
    method, data = build(), batch()
    stats = method.step(data, LATER, generator(0)).stats
    differ = method.first(data.unlabelled).argmax(1) != method.second(data.unlabelled).argmax(1)
    torch.testing.assert_close(stats["gap"], differ.float().mean())
    method.second.load_state_dict(method.first.state_dict())
    assert method.step(data, LATER, generator(0)).stats["gap"] == 0
