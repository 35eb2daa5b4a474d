"""Channels weighed by how far views agree on them."""

import pytest
import torch

from medssl.parts.agreement import by_agreement

SHAPE = (5, 6, 7)


def features(views=2, volumes=3, channels=4):
    torch.manual_seed(0)
    return torch.randn(views * volumes, channels, *SHAPE)


def gates(before, after):
    """What each channel of each volume was multiplied with, `(V B, K)`."""
    return (after / before).mean((2, 3, 4))


def test_equal_views_and_a_single_one_are_left_as_they_are():
    once = features(views=1)
    torch.testing.assert_close(by_agreement(once, 1, 3.0), once)
    torch.testing.assert_close(by_agreement(once.repeat(2, 1, 1, 1, 1), 2, 3.0), once.repeat(2, 1, 1, 1, 1))
    torch.testing.assert_close(by_agreement(features(), 2, 0.0), features())


def test_gates_are_those_of_the_equations():
    both = features()
    one, two = both[:3], both[3:]
    mean = (one + two) / 2
    deviation = ((one - mean).abs() + (two - mean).abs()).mean((2, 3, 4)) / (one.abs() + two.abs()).mean((2, 3, 4))
    expected = 4 * torch.softmax(-1.7 * deviation, 1)
    found = gates(both, by_agreement(both, 2, 1.7))
    torch.testing.assert_close(found, expected.repeat(2, 1))
    torch.testing.assert_close(found.mean(1), torch.ones(6))


def test_views_are_compared_with_their_mean_whatever_their_order():
    views = features(views=3).chunk(3)
    mean = sum(views) / 3
    deviation = sum((view - mean).abs().mean((2, 3, 4)) for view in views)
    expected = 4 * torch.softmax(-1.7 * deviation / sum(view.abs().mean((2, 3, 4)) for view in views), 1)
    for order in ([0, 1, 2], [2, 0, 1]):
        before = torch.cat([views[n] for n in order])
        torch.testing.assert_close(gates(before, by_agreement(before, 3, 1.7)), expected.repeat(3, 1))


def test_the_channel_that_views_share_weighs_more_and_the_one_in_dispute_less():
    both = features()
    both[3:, 1] = both[:3, 1]
    both[3:, 2] = -both[:3, 2]
    found = gates(both, by_agreement(both, 2, 2.0))
    assert (found[:, 1] > 1).all()
    assert (found[:, 1:2] >= found).all()
    assert (found[:, 2] < 1).all()
    assert (found[:, 2:3] <= found).all()


@pytest.mark.parametrize("volumes", [1, 2, 5])
def test_a_volume_is_weighed_by_its_own_views_alone(volumes):
    views = [features(views=1, volumes=volumes) + n for n in range(3)]
    together = by_agreement(torch.cat(views), 3, 2.0)
    last = by_agreement(torch.cat([view[-1:] for view in views]), 3, 2.0)
    torch.testing.assert_close(together[volumes - 1 :: volumes], last)


def test_a_silent_network_stays_finite_and_gates_take_no_gradient():
    silent = torch.zeros(4, 3, *SHAPE, requires_grad=True)
    by_agreement(silent, 2, 2.0).sum().backward()
    torch.testing.assert_close(silent.grad, torch.ones_like(silent))
    both = features().requires_grad_()
    after = by_agreement(both, 2, 2.0)
    after.sum().backward()
    torch.testing.assert_close(both.grad, (after / both).detach())
