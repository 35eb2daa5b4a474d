import math

import pytest
import torch

from medssl.parts.losses import consistency, cross_entropy, dice_ce, dice_loss


def batch(classes=3):
    torch.manual_seed(0)
    return torch.randn(2, classes, 5, 6, 7), torch.randint(0, classes, (2, 5, 6, 7))


@pytest.mark.parametrize("form", ["linear", "squared"])
def test_a_sure_and_right_prediction_costs_nothing(form):
    _, target = batch()
    logits = 50 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert dice_ce(logits, target, dice=form).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("form", ["linear", "squared"])
def test_weight_zero_everywhere_costs_exactly_nothing(form):
    logits, target = batch()
    weight = torch.zeros(2, 5, 6, 7)
    assert dice_ce(logits, target, weight, dice=form).item() == 0


@pytest.mark.parametrize("form", ["linear", "squared"])
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


def test_linear_dice_is_the_mean_over_volumes_and_squared_is_not():
    logits, target = batch()
    for form, same in [("linear", True), ("squared", False)]:
        parts = [dice_loss(logits[i : i + 1], target[i : i + 1], form=form) for i in range(2)]
        whole = dice_loss(logits, target, form=form)
        assert torch.isclose(whole, sum(parts) / 2, atol=1e-7).item() is same


def test_half_precision_logits_give_finite_float32():
    logits, target = batch()
    loss = dice_ce(1000 * logits.half(), target)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_consistency_of_equal_predictions_is_zero():
    logits, _ = batch()
    assert consistency(logits, logits.softmax(1)).item() == 0
    assert consistency(logits, (-logits).softmax(1)).item() > 0
