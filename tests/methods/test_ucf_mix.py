"""The uncertainty-guided mix of frequency bands on top of CFC-MT."""

import math

import pytest
import torch
from by_hand import MIDWAY, RISE, SHAPE, assert_step, batch, dice, doubt, nll, segmentation, squares
from torch import nn

from medssl.methods import METHODS
from medssl.parts.schedules import generator
from medssl.run import parse_method


def build(name="ucf_mix", **settings):
    torch.manual_seed(0)
    config = parse_method({"name": name, "ramp": 0.0, **settings})
    method = METHODS[name](config, lambda **changes: nn.Conv3d(1, 3, 3, padding=1))
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return method


def step(method):
    return method.step(batch(), MIDWAY, generator(0))


def probs_of(method):
    return [student(batch().unlabelled).softmax(1) for student in method.students()]


def bands_of(method):
    return [student.view.apply(batch().unlabelled) for student in method.students()]


def test_without_the_mix_it_is_cfc_mt():
    mixed, plain = step(build(mix_weight=0.0)).losses, step(build("cfc_mt")).losses
    assert mixed.pop("mix_low") == mixed.pop("mix_high") == 0
    assert {k: v.item() for k, v in mixed.items()} == {k: v.item() for k, v in plain.items()}


def test_the_easy_and_the_hard_mix_share_out_both_bands():
    easy, hard = (build(mixed=kind, block=2) for kind in ("easy", "hard"))
    mixes = [method.mix(batch().unlabelled, *probs_of(method)) for method in (easy, hard)]
    low, high = bands_of(easy)
    torch.testing.assert_close(mixes[0].image + mixes[1].image, low + high)
    assert torch.equal(mixes[0].target, mixes[1].target)
    assert torch.equal(mixes[0].weight, mixes[1].weight)
    assert not torch.equal(mixes[0].image, mixes[1].image)


def certain(value, sure):
    """Probabilities of three classes: `sure` for one, the rest shared out."""
    probs = torch.full((3, 3, *SHAPE), (1 - sure) / 2)
    probs[:, value] = sure
    return probs


@pytest.mark.parametrize("kind", ["easy", "hard"])
def test_each_block_takes_the_classes_of_its_surer_student(kind):
    """The low student is the surer one up to X = 2, and says 1; the high one elsewhere, and says 2."""
    method, near = build(mixed=kind, block=2), torch.zeros(SHAPE, dtype=torch.bool)
    near[:2] = True
    low = torch.where(near, certain(1, 0.9), certain(1, 0.5))
    high = torch.where(near, certain(2, 0.6), certain(2, 0.8))
    mixed = method.mix(batch().unlabelled, low, high)
    assert torch.equal(mixed.target, torch.where(near, 1, 2).expand(3, *SHAPE))
    bands = bands_of(method) if kind == "easy" else bands_of(method)[::-1]
    assert torch.equal(mixed.image, torch.where(near, *bands))
    trust = [1 + (p * math.log(p) + (1 - p) * math.log((1 - p) / 2)) / math.log(3) for p in (0.9, 0.8)]
    expected = torch.where(near, *(torch.tensor(t) for t in trust)).expand(3, *SHAPE)
    torch.testing.assert_close(mixed.weight, expected)


def test_students_that_are_equally_sure_give_the_low_ones_part():
    method = build()
    probs = probs_of(method)[0].detach()
    assert torch.equal(method.mix(batch().unlabelled, probs, probs).image, bands_of(method)[1])


@pytest.mark.parametrize(
    ("spacing", "sides"), [((1, 1, 1), (2, 2, 2)), ((1, 2, 10), (2, 1, 1)), ((0.5, 1, 0.5), (2, 1, 2))]
)
def test_blocks_are_as_long_along_all_axes_in_millimetres(spacing, sides):
    method = build(block=2, frequency={"spacing": spacing})
    surer = method.surer(*probs_of(method)).float()
    for axis, side in enumerate(sides, start=2):
        even = surer.narrow(axis, 0, SHAPE[axis - 2] // 2 * 2).unfold(axis, 2, 2)
        assert torch.equal(even[..., 0], even[..., 1]) == (side == 2)


def test_a_volume_stays_itself_where_both_students_see_it_whole():
    method = build(high_in_low=1.0, low_in_high=1.0, block=2)
    torch.testing.assert_close(method.mix(batch().unlabelled, *probs_of(method)).image, batch().unlabelled)


def test_losses_are_those_of_the_equations():
    settings = {"cross_weight": 0.4, "full_weight": 1.3, "mix_weight": 0.7, "ramp": 0.5, "block": 1}
    method, data = build(**settings), batch()
    p_low, p_high = probs_of(method)
    p = method.teacher(data.unlabelled).softmax(1)
    cross = squares(p_low, p_high.detach()) + squares(p_high, p_low.detach())
    expected = {
        "supervised_low": segmentation(method.low(data.image), data.label),
        "supervised_high": segmentation(method.high(data.image), data.label),
        "cross_frequency": 0.4 * RISE * cross.mean() / 2,
        "full_frequency": 1.3 * RISE * (squares(p_low, p) + squares(p_high, p)).mean() / 2,
    }
    p_low, p_high = p_low.detach(), p_high.detach()
    surer = (doubt(p_low) <= doubt(p_high)).unsqueeze(1)
    assert 0.2 < surer.float().mean() < 0.8
    q, (low, high) = torch.where(surer, p_low, p_high), bands_of(method)
    target, trust = q.argmax(1), 1 - doubt(q)
    for name, net in {"mix_low": method.low.net, "mix_high": method.high.net}.items():
        logits = net(torch.where(surer, high, low))
        told = (trust * nll(logits, target)).mean() + trust.mean() * dice(logits, target, trust)
        expected[name] = 0.7 * RISE * told / 2
    result = step(method)
    assert_step(result.losses, expected, method.students())
    torch.testing.assert_close(result.stats["selected"], trust.mean())


def test_undecided_students_teach_nothing():
    method = build()
    with torch.no_grad():
        for p in method.parameters():
            p.zero_()
    losses = step(method).losses
    assert losses["mix_low"].abs() < 1e-5
    assert losses["mix_high"].abs() < 1e-5
