import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from medssl.parts.losses import (
    consistency,
    cross_entropy,
    dice_ce,
    dice_loss,
    flatness,
    soft_dice_loss,
    trusted,
    voxel_mean,
)

SPACE = (5, 6, 7)


def batch(classes=3):
    torch.manual_seed(0)
    return torch.randn(2, classes, 5, 6, 7), torch.randint(0, classes, (2, 5, 6, 7))


def plain_cross_entropy(logits, target, weight, eps=1e-5):
    """Cross-entropy as one would write it, in the precision of the logits."""
    return (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum().clamp_min(eps)


def plain_dice(logits, target, weight, form, eps=1e-5):
    """Dice loss as one would write it, in the precision of the logits."""
    probs, onehot, weight = logits.softmax(1), F.one_hot(target, logits.shape[1]).movedim(-1, 1), weight.unsqueeze(1)
    space, below = ((2, 3, 4), probs + onehot) if form == "linear" else ((0, 2, 3, 4), probs**2 + onehot)
    overlap, size = (weight * probs * onehot).sum(space), (weight * below).sum(space)
    ratio = (2 * overlap + eps) / (size + eps)
    return 1 - (ratio[1:] if form == "foreground" else ratio).mean()


LOSSES = {  # name: what is tested, and the plain way
    "cross_entropy": (cross_entropy, plain_cross_entropy),
    "linear dice": (lambda *of: dice_loss(*of, "linear"), lambda *of: plain_dice(*of, "linear")),
    "squared dice": (lambda *of: dice_loss(*of, "squared"), lambda *of: plain_dice(*of, "squared")),
    "foreground dice": (lambda *of: dice_loss(*of, "foreground"), lambda *of: plain_dice(*of, "foreground")),
    "linear sum": (
        lambda *of: dice_ce(*of, dice="linear"),
        lambda *of: (plain_cross_entropy(*of) + plain_dice(*of, "linear")) / 2,
    ),
    "squared sum": (
        lambda *of: dice_ce(*of, dice="squared"),
        lambda *of: (plain_cross_entropy(*of) + plain_dice(*of, "squared")) / 2,
    ),
    "foreground sum": (
        lambda *of: dice_ce(*of, dice="foreground"),
        lambda *of: (plain_cross_entropy(*of) + plain_dice(*of, "foreground")) / 2,
    ),
}


def value_and_gradient(loss, logits, *others):
    """A loss, or the sum of several with unlike factors, and its gradient by the logits."""
    logits = logits.detach().clone().requires_grad_()
    values = loss(logits, *others)
    (values * torch.arange(1, values.numel() + 1).view_as(values)).sum().backward()
    return values.detach(), logits.grad


class TestAgainstThePlainWay:
    def check(self, name, logits, target, weight):
        loss, plain = LOSSES[name]
        value, gradient = value_and_gradient(loss, logits, target, weight)
        weight = torch.ones(target.shape) if weight is None else weight
        expected, slope = value_and_gradient(plain, logits.double(), target, weight.double())
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(gradient.double(), slope, atol=1e-6 * slope.abs().max().item() + 1e-9, rtol=1e-5)

    @pytest.mark.parametrize(
        ("name", "classes"),
        [(name, n) for name in LOSSES for n in (1, 2, 3, 5) if n > 1 or "foreground" not in name],
    )
    @pytest.mark.parametrize("weighted", [False, True])
    def test_value_and_gradient(self, name, classes, weighted):
        logits, target = batch(classes)
        self.check(name, 3 * logits, target, torch.rand(target.shape) if weighted else None)

    @pytest.mark.parametrize("name", LOSSES)
    def test_where_classes_are_absent_and_a_volume_has_no_weight(self, name):
        logits, target = batch(5)
        target[target == 3] = 0
        target[1] = 1
        weight = torch.rand(target.shape)
        weight[0] = 0
        self.check(name, logits, target, weight)

    @pytest.mark.parametrize("name", LOSSES)
    def test_where_the_right_class_seems_impossible(self, name):
        logits, target = batch(3)
        self.check(name, 300 * logits, target, None)

    @pytest.mark.parametrize("name", LOSSES)
    def test_of_channels_last_and_of_a_single_voxel(self, name):
        logits, target = batch(3)
        self.check(name, logits.contiguous(memory_format=torch.channels_last_3d), target, None)
        self.check(name, logits[:1, :, :1, :1, :1], target[:1, :1, :1, :1], None)

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("shape", [(5, 30, 31, 33), (3, 50, 61, 53)])
    def test_of_volumes_that_a_cpu_takes_in_turn(self, name, shape):
        torch.manual_seed(0)
        logits, target = torch.randn(shape[0], 3, *shape[1:]), torch.randint(0, 3, shape)
        self.check(name, logits, target, torch.rand(shape))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("name", LOSSES)
    def test_on_a_gpu(self, name):
        loss, (logits, target), weight = LOSSES[name][0], batch(), regions(shared=True)
        expected = value_and_gradient(loss, logits, target, weight)
        there = value_and_gradient(loss, logits.cuda(), target.cuda(), weight.cuda())
        for one, other in zip(there, expected, strict=True):
            torch.testing.assert_close(one.cpu(), other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_nothing_but_the_type_of_the_gradient(name, dtype):
    loss, (logits, target), weight = LOSSES[name][0], batch(), torch.rand(2, *SPACE)
    value, gradient = value_and_gradient(loss, logits.to(dtype), target, weight)
    expected, slope = value_and_gradient(loss, logits.to(dtype).float(), target, weight)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(value, expected)
    assert torch.equal(gradient, slope.to(dtype))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name):
    loss, (logits, target), weight = LOSSES[name][0], batch(), regions(shared=True)
    value, gradient = value_and_gradient(loss, logits, target, weight)
    with torch.autocast("cpu", torch.bfloat16):
        inside, slope = value_and_gradient(loss, logits, target, weight)
    assert torch.equal(inside, value)
    assert torch.equal(slope, gradient)


def regions(shared):
    """Two sides of a box, trust of all sizes, and nothing: `(4, 1 or 2, X, Y, Z)`."""
    box = torch.zeros(1 if shared else 2, *SPACE, dtype=torch.bool)
    box[:, 1:4, 2:, :5] = True
    torch.manual_seed(3)
    return torch.stack([box.float(), (~box).float(), torch.rand(box.shape), torch.zeros(box.shape)])


@pytest.mark.parametrize("loss", [dice_ce, dice_loss, cross_entropy])
def test_targets_and_weights_of_other_shapes_are_refused(loss):
    logits, target = batch()
    for other in (target.transpose(1, 3), target[:1], target[:, None], target.float()):
        with pytest.raises(ValueError, match=r"target integers \(B, X, Y, Z\), got \(2, 3, 5, 6, 7\) and"):
            loss(logits, other)
    for shape in ((2, 7, 6, 5), (3, *SPACE), (1, 3, *SPACE), SPACE):
        with pytest.raises(ValueError, match=r"the target's shape, \(2, 5, 6, 7\), or regions before it, got \("):
            loss(logits, target, torch.ones(shape))
    assert torch.equal(loss(logits, target.byte()), loss(logits, target))


def test_an_unknown_form_of_dice_is_refused():
    with pytest.raises(ValueError, match="must be one of linear, squared, foreground, got 'square'"):
        dice_loss(*batch(), form="square")


def test_values_are_weighed_one_by_one():
    with pytest.raises(ValueError, match=r"must have the shape of values, \(2, 5, 6, 7\), got \(2, 1, 5, 6, 7\)"):
        voxel_mean(torch.ones(2, *SPACE), torch.ones(2, 1, *SPACE))


class TestRegions:
    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("shared", [False, True])
    def test_are_scored_as_each_would_be_alone(self, name, shared):
        loss, (logits, target), weight = LOSSES[name][0], batch(), regions(shared)
        values, gradient = value_and_gradient(loss, logits, target, weight)
        alone = [value_and_gradient(loss, logits, target, one.expand(2, *SPACE)) for one in weight]
        torch.testing.assert_close(values, torch.stack([value for value, _ in alone]), atol=1e-6, rtol=1e-6)
        total = sum(factor * slope for factor, (_, slope) in enumerate(alone, 1))
        torch.testing.assert_close(gradient, total, atol=1e-7, rtol=1e-5)
        assert values[-1] == 0

    def test_may_be_masks(self):
        logits, target = batch()
        masks = regions(shared=True)[:2]
        assert torch.equal(dice_ce(logits, target, masks.bool()), dice_ce(logits, target, masks))

    def test_without_weight_anywhere_have_no_gradient(self):
        logits, target = batch()
        _, gradient = value_and_gradient(dice_ce, logits, target, torch.zeros(3, 2, *SPACE))
        assert (gradient == 0).all()


@pytest.mark.parametrize("form", ["linear", "squared", "foreground"])
def test_a_sure_and_right_prediction_costs_nothing(form):
    _, target = batch()
    logits = 50 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert dice_ce(logits, target, dice=form).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("form", ["linear", "squared", "foreground"])
def test_weight_zero_everywhere_costs_exactly_nothing(form):
    logits, target = batch()
    weight = torch.zeros(2, 5, 6, 7)
    assert dice_ce(logits, target, weight, dice=form).item() == 0


@pytest.mark.parametrize("form", ["linear", "squared", "foreground"])
def test_weight_zero_hides_a_voxel(form):
    logits, target = batch()
    weight = torch.ones(2, 5, 6, 7)
    weight[:, 2, 3, 4] = 0
    changed = logits.clone()
    changed[:, 0, 2, 3, 4] += 5
    assert dice_ce(logits, target, weight, dice=form) == dice_ce(changed, target, weight, dice=form)
    assert dice_ce(logits, target, dice=form) != dice_ce(changed, target, dice=form)


def test_no_weight_is_weight_one():
    logits, target = batch()
    weight = torch.ones(2, 5, 6, 7)
    torch.testing.assert_close(dice_ce(logits, target), dice_ce(logits, target, weight))


def test_cross_entropy_of_a_uniform_guess_is_log_of_the_classes():
    _, target = batch()
    assert cross_entropy(torch.zeros(2, 3, 5, 6, 7), target).item() == pytest.approx(math.log(3), rel=1e-5)


def test_dice_by_hand():
    # One class of two, one voxel each: p = (1/2, 1/2) against class 1 in a single voxel.
    logits, target = torch.zeros(1, 2, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.long)
    # linear: background 0 / 0.5, foreground 1 / 1.5; squared: 0 / 0.25, 1 / 1.25
    assert dice_loss(logits, target, form="linear").item() == pytest.approx(1 - (0 + 2 / 3) / 2, abs=1e-4)
    assert dice_loss(logits, target, form="squared").item() == pytest.approx(1 - (0 + 0.8) / 2, abs=1e-4)
    assert dice_loss(logits, target, form="foreground").item() == pytest.approx(1 - 0.8, abs=1e-4)


def test_linear_dice_is_the_mean_over_volumes_and_squared_is_not():
    logits, target = batch()
    for form, same in [("linear", True), ("squared", False)]:
        parts = [dice_loss(logits[i : i + 1], target[i : i + 1], form=form) for i in range(2)]
        whole = dice_loss(logits, target, form=form)
        assert torch.isclose(whole, sum(parts) / 2, atol=1e-7).item() is same


@pytest.mark.parametrize("form", ["linear", "squared", "foreground"])
def test_the_order_of_voxels_does_not_matter(form):
    logits, target = batch()
    turned = dice_ce(logits.flip(2).transpose(3, 4), target.flip(1).transpose(2, 3), dice=form)
    torch.testing.assert_close(turned, dice_ce(logits, target, dice=form))


def test_half_precision_logits_give_finite_float32():
    logits, target = batch()
    loss = dice_ce(1000 * logits.half(), target)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_consistency_of_equal_predictions_is_zero():
    logits, _ = batch()
    assert consistency(logits, logits.softmax(1)).item() == 0
    assert consistency(logits, (-logits).softmax(1)).item() > 0


def test_a_voxel_mean_counts_each_voxel_by_its_weight():
    values = torch.arange(210.0).view(1, 5, 6, 7)
    inside = torch.zeros(1, 5, 6, 7, dtype=torch.bool)
    inside[0, 1, 2, 3:5] = True
    assert voxel_mean(values, inside) == values[inside].mean()
    torch.testing.assert_close(voxel_mean(values, torch.full((1, 5, 6, 7), 0.3)), voxel_mean(values))
    assert voxel_mean(values, torch.zeros_like(inside)).item() == 0


def test_trust_is_the_mean_weight_of_a_region_and_nothing_of_none():
    weight, region = torch.rand(2, *SPACE), torch.zeros(SPACE, dtype=torch.bool)
    assert trusted(weight, region) == 0
    region[1, 2, 3:5] = True
    torch.testing.assert_close(trusted(weight, region), weight[:, region].mean())
    torch.testing.assert_close(trusted(weight), weight.mean())


def test_flatness_is_least_where_all_classes_are_as_likely():
    even = torch.zeros(2, 3, 5, 6, 7, requires_grad=True)
    loss = flatness(even)
    torch.testing.assert_close(loss, torch.tensor(math.log(3)))
    loss.backward()
    assert even.grad.abs().max() < 1e-8
    assert flatness(batch()[0]) > loss


def test_soft_dice_is_dice_for_certain_targets_and_nothing_for_equal_probabilities():
    logits, target = batch()
    onehot = F.one_hot(target, 3).movedim(-1, 1).float()
    torch.testing.assert_close(soft_dice_loss(logits, onehot), dice_loss(logits, target))
    assert soft_dice_loss(logits, logits.softmax(1)).abs() < 1e-6
    slope = value_and_gradient(soft_dice_loss, logits, logits.softmax(1))[1]
    assert slope.abs().max() < 1e-6


def joint_batch():
    """Four volumes, and what may count them: nothing, voxel weights that leave the last two out, two regions."""
    torch.manual_seed(0)
    logits, target, weight = torch.randn(4, 3, *SPACE), torch.randint(0, 3, (4, *SPACE)), torch.rand(4, *SPACE)
    target[:2][target[:2] == 2] = 0
    left_out = weight * torch.tensor([1.0, 1, 0, 0]).view(4, 1, 1, 1)
    return logits, target, {"none": None, "voxel": weight, "left out": left_out, "regions": torch.rand(2, 4, *SPACE)}


def against_probabilities(logits, weights):
    """Losses that sum over all processes and take no classes: their names, and their arguments after the logits."""
    probs, inside = logits.flip(1).softmax(1), weights["left out"]
    return [
        ("soft dice", soft_dice_loss, [probs]),
        ("consistency", consistency, [probs, inside]),
        ("flatness", flatness, [inside]),
    ]


def train_on_a_share(rank, meet, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    logits, target, weights = joint_batch()
    mine = slice(2 * rank, 2 * rank + 2)
    found = {}
    for name, (loss, _) in LOSSES.items():
        for kind, weight in weights.items():
            share = None if weight is None else weight[..., mine, :, :, :]
            found[name, kind] = value_and_gradient(loss, logits[mine], target[mine], share)
    for name, loss, others in against_probabilities(logits, weights):
        found[name] = value_and_gradient(loss, logits[mine], *(other[mine] for other in others))
    torch.save(found, results / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_have_the_loss_and_gradient_of_the_joint_batch(tmp_path):
    mp.spawn(train_on_a_share, (f"file://{tmp_path}/meet", tmp_path), nprocs=2)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    logits, target, weights = joint_batch()
    for name, loss, others in against_probabilities(logits, weights):
        expected, slope = value_and_gradient(loss, logits, *others)
        for share in shares:
            torch.testing.assert_close(share[name][0], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.cat([share[name][1] for share in shares]) / 2, slope, atol=1e-7, rtol=1e-5)
    for name, (loss, _) in LOSSES.items():
        for kind, weight in weights.items():
            expected, slope = value_and_gradient(loss, logits, target, weight)
            (first, one), (second, two) = (share[name, kind] for share in shares)
            torch.testing.assert_close((first + second) / 2, expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(
                torch.cat([one, two]) / 2, slope, atol=1e-7, rtol=1e-5
            )  # as gradients are averaged
            joint = "squared" in name or "foreground" in name
            if joint or (name == "cross_entropy" and weight is not None):
                torch.testing.assert_close(first, expected, atol=1e-6, rtol=0)
                torch.testing.assert_close(second, expected, atol=1e-6, rtol=0)
