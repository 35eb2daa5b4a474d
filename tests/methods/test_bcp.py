"""The invariants of bidirectional copy-paste that its equations promise."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from medssl.methods import METHODS
from medssl.parts.losses import dice_ce, dice_loss
from medssl.parts.mix import paste, random_box
from medssl.parts.sample import Progress, Sample, TrainBatch, concat
from medssl.parts.schedules import generator
from medssl.run import parse_method

SHAPE = (5, 6, 7)
LATER = Progress(60, 100)


def build(**settings):
    torch.manual_seed(0)
    config = parse_method({"name": "bcp", **settings})
    return METHODS["bcp"](config, lambda **changes: nn.Conv3d(1, 3, 3, padding=1))


def batch(size=2):
    torch.manual_seed(1)
    return TrainBatch(
        torch.randn(size, 1, *SHAPE),
        torch.randint(0, 3, (size, *SHAPE)),
        torch.randn(size, 1, *SHAPE),
        tuple(range(size)),
    )


def test_a_box_over_everything_leaves_the_unlabelled_volume_inside_and_the_labelled_outside():
    method, data = build(box=1.0, alpha=0.5), batch()
    losses = method.step(data, LATER, generator(0)).losses
    pseudo = method.pseudo_label(data.unlabelled)
    student = method.pair.student
    inward = dice_ce(student(data.unlabelled[:1]), pseudo.target[:1], dice="linear")
    outward = dice_ce(student(data.image[:1]), data.label[:1], dice="linear")
    torch.testing.assert_close(losses["in"], 0.5 * inward)
    torch.testing.assert_close(losses["out"], outward)


def test_without_a_box_one_pair_is_the_labelled_volume_and_the_other_the_unlabelled():
    method, data = build(alpha=0.5), batch()
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    one, two = Sample.of(data.image, data.label), method.pseudo_label(data.unlabelled)
    inward, outward = paste(inside=two, outside=one, box=nothing), paste(inside=one, outside=two, box=nothing)
    assert torch.equal(inward.image, data.image)
    logits = method.pair.student(data.image)
    torch.testing.assert_close(method.mixed_loss(logits, inward, nothing), dice_ce(logits, data.label, dice="linear"))
    logits = method.pair.student(data.unlabelled)
    expected = 0.5 * dice_ce(logits, two.target, dice="linear")
    torch.testing.assert_close(method.mixed_loss(logits, outward, nothing), expected)


@pytest.mark.parametrize("weighting", ["region", "voxel"])
def test_inward_pasting_is_outward_pasting_with_the_mask_turned_over(weighting):
    method, data, box = build(weighting=weighting), batch(), random_box(SHAPE, 2 / 3, generator(0))
    one, two = Sample.of(data.image, data.label), method.pseudo_label(data.unlabelled)
    inward, outward = paste(inside=two, outside=one, box=box), paste(inside=one, outside=two, box=~box)
    assert torch.equal(inward.image, outward.image)
    logits = method.pair.student(inward.image)
    torch.testing.assert_close(method.mixed_loss(logits, inward, box), method.mixed_loss(logits, outward, ~box))


def test_a_teacher_that_knows_the_truth_makes_it_supervised_learning_on_pasted_volumes():
    method, data = build(alpha=1.0, largest_component=False, pretrain=0.0), batch()
    with torch.no_grad():
        truth = method.pair.teacher(data.unlabelled).argmax(1)
    losses = method.step(data, LATER, generator(0)).losses
    box = random_box(SHAPE, 2 / 3, generator(0))
    image = torch.where(box, data.unlabelled[:1], data.image[1:]), torch.where(box, data.image[:1], data.unlabelled[1:])
    target = torch.where(box, truth[:1], data.label[1:]), torch.where(box, data.label[:1], truth[1:])
    for loss, x, y in zip((losses["in"], losses["out"]), image, target, strict=True):
        sides = torch.stack([box, ~box]).unsqueeze(1).float()
        torch.testing.assert_close(loss, dice_ce(method.pair.student(x), y, sides, dice="linear").sum())


def test_two_regions_are_more_than_the_whole():
    """Each region is a mean by itself, so the released loss of a volume is about twice that of the whole volume."""
    torch.manual_seed(2)
    logits, target = torch.randn(2, 3, *SHAPE), torch.randint(0, 3, (2, *SHAPE))
    box = random_box(SHAPE, 0.5, generator(0))
    loss = build(dice="squared").mixed_loss(logits, Sample.of(logits[:, :1], target), box)
    assert 1.8 < loss / dice_ce(logits, target) < 2.2


@pytest.mark.parametrize("dice", ["linear", "squared"])
@pytest.mark.parametrize("side", [2 / 3, 1.0])
def test_released_weighting_sums_the_two_region_means(dice, side):
    method = build(dice=dice)
    torch.manual_seed(2)
    logits, box = torch.randn(2, 3, *SHAPE, requires_grad=True), random_box(SHAPE, side, generator(0))
    target = torch.randint(0, 3, (2, *SHAPE))
    one, two = Sample.of(logits[:, :1], target), Sample.of(logits[:, :1], target, trust=0.5)
    inside, outside = box.expand_as(target).float(), (~box).expand_as(target).float()
    mixed = paste(inside=two, outside=one, box=box)
    loss = method.mixed_loss(logits, mixed, box)
    expected = 0.5 * dice_ce(logits, target, inside, dice=dice) + dice_ce(logits, target, outside, dice=dice)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


def test_voxel_weighting_with_full_trust_is_the_plain_loss_on_the_mixed_label():
    method = build(weighting="voxel", alpha=1.0)
    torch.manual_seed(2)
    logits, target = torch.randn(2, 3, *SHAPE), torch.randint(0, 3, (2, *SHAPE))
    box = random_box(SHAPE, 2 / 3, generator(0))
    mixed = Sample.of(logits[:, :1], target)
    torch.testing.assert_close(method.mixed_loss(logits, mixed, box), dice_ce(logits, target, dice="linear"))


def test_voxel_weighting_averages_over_all_voxels_those_of_the_teacher_counting_less():
    method = build(weighting="voxel", alpha=0.3)
    torch.manual_seed(2)
    logits, target = torch.randn(2, 3, *SHAPE), torch.randint(0, 3, (2, *SHAPE))
    box = random_box(SHAPE, 0.5, generator(0))
    image = logits[:, :1]
    mixed = paste(inside=Sample.of(image, target, trust=0.3), outside=Sample.of(image, target), box=box)
    weight = torch.where(box, 0.3, 1.0).expand(2, *SHAPE)
    surprise = nn.functional.cross_entropy(logits, target, reduction="none")
    expected = ((weight * surprise).mean() + dice_loss(logits, target, weight, "linear")) / 2
    torch.testing.assert_close(method.mixed_loss(logits, mixed, box), expected)


def test_without_trust_the_unlabelled_side_has_no_gradient():
    method = build(alpha=0.0)
    torch.manual_seed(2)
    logits = torch.randn(2, 3, *SHAPE, requires_grad=True)
    target, box = torch.randint(0, 3, (2, *SHAPE)), random_box(SHAPE, 2 / 3, generator(0))
    image = logits[:, :1].detach()
    mixed = paste(inside=Sample.of(image, target, trust=0.0), outside=Sample.of(image, target), box=box)
    method.mixed_loss(logits, mixed, box).backward()
    assert (logits.grad[:, :, box] == 0).all()
    assert (logits.grad[:, :, ~box] != 0).any()


def test_pretraining_ignores_unlabelled_volumes_and_copies_the_student():
    method, data = build(pretrain=0.5), batch()
    start = Progress(0, 100)
    garbage = TrainBatch(data.image, data.label, 1e6 * data.unlabelled, data.seeds)
    one, two = (method.step(b, start, generator(0)).losses["pretrain"] for b in (data, garbage))
    assert one.item() == two.item()
    assert [f.decay for f in method.followers(start)] == [0.0]
    assert [f.decay for f in method.followers(LATER)] == [0.99]


def test_stage_one_is_its_share_of_the_steps():
    method = build(pretrain=0.25)
    assert [method.pretraining(Progress(step, 40)) for step in range(40)] == 10 * [True] + 30 * [False]


def test_pseudo_labels_come_from_unpasted_volumes_and_keep_one_component_per_class():
    method, data = build(), batch()
    with torch.no_grad():
        raw = method.pair.teacher(data.unlabelled).argmax(1)
    clean = method.pseudo_label(data.unlabelled).target
    assert ((clean == raw) | (clean == 0)).all()
    assert not torch.equal(clean, raw)
    for volume in clean:
        assert all(ndimage.label(volume == value, np.ones((3, 3, 3)))[1] <= 1 for value in (1, 2))
    assert torch.equal(build(largest_component=False).pseudo_label(data.unlabelled).target, raw)


@pytest.mark.parametrize("size", [2, 4])
def test_the_student_sees_as_many_mixed_volumes_as_there_are_labelled_ones(size):
    method, seen = build(), []
    method.pair.student.register_forward_hook(lambda net, args, out: seen.append(len(args[0])))
    method.step(batch(size), LATER, generator(0))
    assert seen == [size]


def test_every_half_of_both_batches_has_its_place():
    """`x_j` around `x_p`, and `x_q` around `x_i`, with the labels of each."""
    method, seen = build(pretrain=0.0), []
    method.pair.student.register_forward_hook(lambda net, args, out: seen.append(args[0]))
    constant = torch.arange(1.0, 5.0).view(4, 1, 1, 1, 1).expand(4, 1, *SHAPE)  # i=1, j=2, p=3, q=4
    data = TrainBatch(constant[:2], torch.zeros(2, *SHAPE, dtype=torch.long), constant[2:], (0, 1))
    method.step(data, LATER, generator(0))
    box = random_box(SHAPE, 2 / 3, generator(0))
    inward, outward = seen[0][:, 0]
    assert (inward[box] == 3).all()
    assert (inward[~box] == 2).all()
    assert (outward[box] == 1).all()
    assert (outward[~box] == 4).all()


def test_pseudo_labels_are_the_teachers():
    method, data = build(largest_component=False), batch()
    with torch.no_grad():
        for p in method.pair.teacher.parameters():
            p.copy_(torch.randn_like(p))
        expected = method.pair.teacher(data.unlabelled).argmax(1)
        assert not torch.equal(expected, method.pair.student(data.unlabelled).argmax(1))
    assert torch.equal(method.pseudo_label(data.unlabelled).target, expected)


def test_the_gap_looks_at_unlabelled_voxels_only():
    """With constant networks: the student says 1 everywhere, as the experts do, and the teacher says 2."""
    method, data = build(pretrain=0.0, largest_component=False), batch()
    with torch.no_grad():
        method.pair.student.bias[1] = 1e6
        method.pair.teacher.bias[2] = 1e6
    data = TrainBatch(data.image, torch.ones_like(data.label), data.unlabelled, data.seeds)
    stats = method.step(data, LATER, generator(0)).stats
    assert stats["gap"] == stats["pseudo/2"] == stats["prior/1"] == 1


@pytest.mark.parametrize("weighting", ["region", "voxel"])
def test_pretraining_by_sides_scores_each_as_if_it_were_alone(weighting):
    method, data = build(pretrain=0.5, pretrain_loss="sides", weighting=weighting), batch()
    loss = method.step(data, Progress(0, 100), generator(0)).losses["pretrain"]
    box = random_box(SHAPE, 2 / 3, generator(0))
    one, two = (Sample.of(data.image[i : i + 1], data.label[i : i + 1]) for i in (0, 1))
    mixed = concat(paste(inside=one, outside=two, box=box), paste(inside=two, outside=one, box=box))
    logits, side = method.pair.student(mixed.image), box.expand_as(mixed.target).float()
    expected = dice_ce(logits, mixed.target, side, dice="linear") + dice_ce(
        logits, mixed.target, 1 - side, dice="linear"
    )
    torch.testing.assert_close(loss, expected)
