import math

import pytest
import torch
from torch import nn

from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.parts.losses import consistency
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator
from medssl.run import parse_method

SHAPE = (5, 6, 7)


def build(dropout=0.5, **settings):
    torch.manual_seed(0)
    return METHODS["uamt"](
        parse_method({"name": "uamt", **settings}),
        lambda **changes: nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.Dropout(dropout), nn.Conv3d(8, 3, 1)),
    )


def batch():
    torch.manual_seed(1)
    label = torch.randint(0, 3, (2, *SHAPE))
    return TrainBatch(torch.randn(2, 1, *SHAPE), label, torch.randn(3, 1, *SHAPE), (1, 2, 3))


def set_bias(method, values):
    """A teacher that says the same everywhere."""
    with torch.no_grad():
        method.pair.teacher[2].weight.zero_()
        method.pair.teacher[2].bias.copy_(torch.tensor(values))


def test_the_threshold_rises_from_three_quarters_to_all_of_the_largest_entropy():
    method = build()
    heights = [method.highest(Progress(i, 100)) for i in (0, 50, 75, 100)]
    assert heights == pytest.approx([0.75 + 0.25 * math.exp(-5 * (1 - x) ** 2) for x in (0, 0.5, 0.75, 1)])
    assert heights[0] == pytest.approx(0.7517, abs=1e-4)


@pytest.mark.parametrize(("bias", "share"), [([0.0, 0.0, 0.0], 0), ([0.0, 90.0, 0.0], 1)])
def test_no_voxel_of_a_uniform_teacher_counts_and_every_one_of_a_sure_teacher(bias, share):
    method = build()
    set_bias(method, bias)
    for progress in (Progress(0, 100), Progress(90, 100)):
        result = method.step(batch(), progress, generator(0))
        assert result.stats["selected"] == share
        assert (result.losses["consistency"] > 0) == bool(share)


def test_uncertainty_is_the_entropy_of_the_mean_not_the_mean_entropy():
    method, data = build(noise=0.0, passes=8), batch()
    one = build(noise=0.0, passes=1)
    entropies = torch.stack([one.uncertainty(data.unlabelled, [seed + k for seed in (1, 2, 3)]) for k in range(8)])
    assert (entropies[1:] != entropies[0]).any(), "dropout makes passes differ"
    assert method.uncertainty(data.unlabelled, data.seeds).mean() > entropies.mean()
    assert ((entropies >= 0) & (entropies <= 1 + 1e-6)).all()


def test_each_volume_has_its_own_draws():
    method, data = build(), batch()
    together = method.uncertainty(data.unlabelled, data.seeds)
    torch.testing.assert_close(together[1:], method.uncertainty(data.unlabelled[1:], data.seeds[1:]))


def test_where_every_voxel_counts_it_is_mean_teacher():
    uamt, data = build(dropout=0.5, threshold=1.0), batch()
    set_bias(uamt, [0.0, 1.0, 0.0])
    uamt.pair.student.eval()
    plain = METHODS["mean_teacher"](parse_method({"name": "mean_teacher"}), lambda **changes: nn.Conv3d(1, 3, 1))
    plain.pair = uamt.pair
    one, two = (method.step(data, Progress(60, 100), generator(0)).losses for method in (uamt, plain))
    torch.testing.assert_close(one, two)


def test_the_mean_is_over_voxels_that_count():
    torch.manual_seed(0)
    logits, probs = torch.randn(2, 3, *SHAPE), torch.rand(2, 3, *SHAPE)
    counts = (torch.rand(2, *SHAPE) < 0.3).float()
    squares = ((logits.softmax(1) - probs) ** 2).movedim(1, -1)[counts > 0]
    torch.testing.assert_close(consistency(logits, probs, counts), squares.mean())
    assert consistency(logits, probs, 0 * counts) == 0


def test_a_network_without_dropout_is_refused_with_the_key_to_set():
    with pytest.raises(ConfigError, match=r"network\.dropout above 0"):
        build(dropout=0.0)
