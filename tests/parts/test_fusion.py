"""Fusing predictions: what must not matter, and who has the last word."""

import pytest
import torch

from medssl.parts.fusion import fuse, mean_and_variance, others

SPACE = (5, 6, 7)


def views(count=3, classes=3, seed=0):
    torch.manual_seed(seed)
    return torch.randn(count, 2, classes, *SPACE).softmax(2), torch.rand(count, 2, *SPACE)


def test_equal_views_come_back_as_they_are():
    probs, uncertainty = views()
    fused, _ = fuse(probs[:1].expand(3, -1, -1, -1, -1, -1), uncertainty)
    torch.testing.assert_close(fused, probs[0])


def test_equal_uncertainty_gives_the_plain_mean():
    probs, _ = views()
    torch.testing.assert_close(fuse(probs, torch.full((3, 2, *SPACE), 0.3))[0], probs.mean(0))


def test_targets_sum_to_one_and_lie_between_the_predictions():
    probs, uncertainty = views()
    fused, confidence = fuse(probs, uncertainty)
    torch.testing.assert_close(fused.sum(1), torch.ones(2, *SPACE))
    assert (fused >= probs.amin(0) - 1e-6).all()
    assert (fused <= probs.amax(0) + 1e-6).all()
    assert confidence.shape == (2, *SPACE)
    assert (confidence >= -1e-6).all()
    assert (confidence <= 1).all()


def test_the_order_of_views_does_not_matter():
    probs, uncertainty = views()
    turned = [2, 0, 1]
    torch.testing.assert_close(fuse(probs, uncertainty), fuse(probs[turned], uncertainty[turned]))


def test_weights_go_with_one_over_the_uncertainty_of_each_voxel():
    probs, uncertainty = views()
    fused, _ = fuse(probs, uncertainty, floor=0.5)
    weights = 1 / (uncertainty[:, 1, 2, 3, 4] + 0.5)
    torch.testing.assert_close(fused[1, :, 2, 3, 4], weights @ probs[:, 1, :, 2, 3, 4] / weights.sum())


@pytest.mark.parametrize("sure", [0, 1, 2])
def test_a_certain_view_wins_as_far_as_it_is_allowed(sure):
    probs, _ = views()
    uncertainty = torch.ones(3, 2, *SPACE)
    uncertainty[sure] = 0
    torch.testing.assert_close(fuse(probs, uncertainty, floor=1e-9, most=1e9)[0], probs[sure], atol=1e-5, rtol=0)
    rest = others(probs, sure).sum(0)
    torch.testing.assert_close(fuse(probs, uncertainty, floor=1e-3, most=20)[0], (20 * probs[sure] + rest) / 22)


def test_one_view_alone_has_all_the_weight():
    probs, uncertainty = views(2)
    for index in range(2):
        fused, _ = fuse(others(probs, index), others(uncertainty, index))
        torch.testing.assert_close(fused, probs[1 - index])


def test_one_that_is_left_out_bounds_nobody():
    """It is far less sure than the two that count, which the bound would make alike if it did."""
    probs, uncertainty = views()
    uncertainty[0], uncertainty[1], uncertainty[2] = 1e6, 0.5, 0.1
    two, _ = fuse(probs[1:], uncertainty[1:])
    torch.testing.assert_close(fuse(probs, uncertainty, share=[0, 1, 1])[0], two)


def test_an_uncertainty_for_each_sample_is_one_for_all_of_its_voxels():
    probs, uncertainty = views()
    one = uncertainty.mean((2, 3, 4), keepdim=True)
    torch.testing.assert_close(fuse(probs, one), fuse(probs, one.expand_as(uncertainty)))


def test_others_leave_out_one():
    assert [others(torch.arange(4), index).tolist() for index in (0, 2, 3)] == [[1, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_mean_and_variance_are_those_of_all_passes():
    passes, _ = views(10)
    mean, variance = mean_and_variance(iter(passes))
    torch.testing.assert_close(mean, passes.mean(0))
    torch.testing.assert_close(variance, (passes**2).mean(0).mean(1) - (passes.mean(0) ** 2).mean(1))
    assert (variance >= 0).all()


def test_equal_passes_have_no_variance_and_no_pass_has_no_mean():
    passes, _ = views(1)
    for count in (1, 4):
        assert torch.equal(mean_and_variance(count * [passes[0]])[1], torch.zeros(2, *SPACE))
    with pytest.raises(ValueError, match="at least one"):
        mean_and_variance([])
