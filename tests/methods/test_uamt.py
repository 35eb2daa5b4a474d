import math

import pytest
import torch
from by_hand import MIDWAY, RISE, TinyNet, assert_step, batch, doubt, part_ways, segmentation, squares

from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.methods.inside import with_dropout
from medssl.parts.sample import Progress
from medssl.parts.schedules import generator, mix, normal
from medssl.run import parse_method


def build(dropout=0.5, **settings):
    torch.manual_seed(0)
    return METHODS["uamt"](parse_method({"name": "uamt", **settings}), lambda **changes: TinyNet(dropout)).train()


def set_bias(method, values):
    """A teacher that says the same everywhere."""
    with torch.no_grad():
        method.pair.teacher.decoder.weight.zero_()
        method.pair.teacher.decoder.bias.copy_(torch.tensor(values))


def test_losses_are_those_of_the_equations():
    """The gate by passes with noise and dropout of their own, and the target by one more prediction without dropout."""
    settings = {"consistency_weight": 0.7, "ramp": 0.5, "noise": 0.2, "passes": 3, "threshold": 0.6}
    method, data = part_ways(build(**settings)), batch()
    student, teacher = method.pair.student, method.pair.teacher

    def noisy(seeds):
        return data.unlabelled + (0.2 * normal(data.unlabelled, seeds)).clamp(-0.4, 0.4)

    with torch.no_grad():
        draws = [[mix(seed, number) for seed in data.seeds] for number in (1, 2, 3)]
        probs = sum(with_dropout(teacher, noisy(drawn), drawn).softmax(1) for drawn in draws) / 3
        counts = doubt(probs) < 0.6 + 0.4 * math.exp(-5 * (1 - 0.25) ** 2)
        target = teacher(noisy(data.seeds)).softmax(1)
    assert 0.2 < counts.float().mean() < 0.8
    torch.manual_seed(2)  # of the student's dropout
    losses = method.step(data, MIDWAY, generator(0)).losses
    torch.manual_seed(2)
    labelled, unlabelled = student(torch.cat([data.image, data.unlabelled])).split([2, 3])
    expected = {
        "supervised": segmentation(labelled, data.label),
        "consistency": 0.7 * RISE * squares(unlabelled.softmax(1), target)[counts].mean(),
    }
    assert_step(losses, expected, [student])


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


def test_a_network_without_dropout_is_refused_with_the_key_to_set():
    with pytest.raises(ConfigError, match=r"network\.dropout above 0"):
        build(dropout=0.0)
