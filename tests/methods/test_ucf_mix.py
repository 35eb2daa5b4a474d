"""The uncertainty-guided mix of frequency bands on top of CFC-MT."""

import math

import pytest
import torch
from torch import nn

from medssl.methods import METHODS
from medssl.parts.losses import dice_ce
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator
from medssl.run import parse_method

SHAPE = (5, 6, 7)


def build(name="ucf_mix", **settings):
    torch.manual_seed(0)
    config = parse_method({"name": name, "ramp": 0.0, **settings})
    method = METHODS[name](config, lambda **changes: nn.Conv3d(1, 3, 3, padding=1))
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return method


def batch():
    torch.manual_seed(1)
    return TrainBatch(torch.randn(2, 1, *SHAPE), torch.randint(0, 3, (2, *SHAPE)), torch.randn(3, 1, *SHAPE), (1, 2, 3))


def step(method):
    return method.step(batch(), Progress(60, 100), generator(0))


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


def test_the_mix_counts_as_much_as_its_labels_are_sure():
    method = build(mix_weight=0.7)
    result, mixed = step(method), method.mix(batch().unlabelled, *probs_of(method))
    for name, student in {"mix_low": method.low, "mix_high": method.high}.items():
        loss = dice_ce(student.net(mixed.image), mixed.target, mixed.weight)
        torch.testing.assert_close(result.losses[name], 0.7 * mixed.weight.mean() * loss)
    torch.testing.assert_close(result.stats["selected"], mixed.weight.mean())


def test_undecided_students_teach_nothing():
    method = build()
    with torch.no_grad():
        for p in method.parameters():
            p.zero_()
    losses = step(method).losses
    assert losses["mix_low"].abs() < 1e-5
    assert losses["mix_high"].abs() < 1e-5


def test_the_mix_teaches_each_student_by_its_own_loss_and_never_by_its_labels():
    method = build()
    losses = step(method).losses
    losses["mix_low"].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.low.parameters())
    assert all(p.grad is None for net in (method.high, method.teacher) for p in net.parameters())
    mixed = method.mix(batch().unlabelled, *probs_of(method))
    assert not any(x.requires_grad for x in (mixed.image, mixed.weight))
