"""What RAIL promises: who learns when, what is compared with whom, and the published binary numbers."""

import copy
from dataclasses import replace

import pytest
import torch
from by_hand import MIDWAY, RISE, TinyNet, assert_step, dice, nll, onehot, part_ways, squares
from by_hand import batch as patches
from torch import nn

from medssl.data.recipe import Recipe
from medssl.methods import METHODS
from medssl.networks import NetworkConfig, make_network
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator
from medssl.predictor import Predictor, WindowConfig
from medssl.run import parse_method

SHAPE = (5, 6, 7)
LATER = Progress(60, 100)  # turn 30: the first group's


def build(classes=3, **settings):
    torch.manual_seed(0)
    config = parse_method({"name": "rail", **settings})
    return METHODS["rail"](
        config,
        lambda **changes: nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Conv3d(4, classes, 1)),
    ).train()


def batch(classes=3, size=2):
    torch.manual_seed(1)
    return TrainBatch(
        torch.randn(size, 1, *SHAPE),
        torch.randint(0, classes, (size, *SHAPE)),
        torch.randn(size, 1, *SHAPE),
        tuple(range(size)),
    )


def logits_of(*named, classes=3, sure=2.0):
    """Logits of students that name these classes, `(B, X, Y, Z)` each."""
    return [sure * nn.functional.one_hot(n, classes).movedim(-1, 1).float() for n in named]


def total(result):
    return torch.stack(list(result.losses.values())).sum()


def test_groups_take_turns_of_equal_length_and_each_counts_its_own_steps():
    method = build(turn=0.1)
    turns = [method.turn(Progress(step, 40)) for step in range(40)]
    assert [turn % 2 for turn, _ in turns] == 5 * (4 * [0] + 4 * [1])
    for group in (0, 1):
        assert [steps for turn, steps in turns if turn % 2 == group] == list(range(20))


@pytest.mark.parametrize("iteration", [0, 3, 60, 62])
def test_resting_students_get_no_gradient_and_their_teacher_keeps_its_statistics(iteration):
    method, now = build(), Progress(iteration, 100)
    turn, _ = method.turn(now)
    resting = method.group(turn + 1)
    before = copy.deepcopy(resting.pair.teacher.state_dict())
    total(method.step(batch(), now, generator(0))).backward()
    assert all(p.grad is None for p in resting.parameters())
    torch.testing.assert_close(resting.pair.teacher.state_dict(), before, rtol=0, atol=0)
    assert resting.other.training
    assert all(p.grad is not None for student in method.group(turn).students for p in student.parameters())


def test_who_rests_is_judged_with_dropout_as_who_learns_is():
    """Without, a resting student would look better than its equals, and lead."""
    config = parse_method({"name": "rail", "turn": 0.5, "best_over": 1000})
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Conv3d(8, 3, 1))
    method = METHODS["rail"](config, lambda **changes: copy.deepcopy(net)).train()
    patches = batch()
    target = patches.image[:, 0].clamp(-0.9, 1.1).add(0.9).long()  # what the net knows something about
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(patches.image), target).backward()
        optimizer.step()
    for student in method.students():
        student.load_state_dict(net.state_dict())
    with torch.no_grad():
        for step in range(100):
            logits = method.step(replace(patches, label=target), Progress(1500 + step % 400, 1000), generator(step))
    assert logits.losses["confidence"].isfinite()
    learning, resting = method.running[2:], method.running[:2]
    assert abs(learning.mean() - resting.mean()) < 0.1 * learning.mean()


def test_first_turns_have_no_terms_between_students():
    method = build(turn=0.25)
    for iteration, between in ((0, False), (49, False), (50, True), (99, True)):
        losses = method.step(batch(), Progress(iteration, 100), generator(0)).losses
        assert {"supervised", "teacher"} <= losses.keys()
        assert ({"disagreement", "confidence"} <= losses.keys()) is between


def test_teachers_follow_the_first_student_of_the_learning_group():
    method = build(turn=0.25, ema_decay=0.97)
    for iteration, group, decay in ((0, 0, 0.0), (1, 0, 0.5), (25, 1, 0.0), (50, 0, 1 - 1 / 26), (99, 1, 0.97)):
        (follow,) = method.followers(Progress(iteration, 100))
        assert follow.teacher is method.group(group).pair.teacher
        assert follow.students == [method.group(group).pair.student]
        assert follow.decay == pytest.approx(decay)


def test_the_best_student_is_the_one_of_the_lowest_dice_loss_on_labelled_patches():
    method, label = build(), batch().label
    wrong = (label + 1) % 3
    half = torch.where(torch.arange(7) < 4, label, wrong)
    assert method.best(2, logits_of(wrong, half, label, wrong), label).tolist() == [2]
    assert build().best(2, logits_of(wrong, half, wrong, wrong), label).tolist() == [1]


def test_what_nobody_annotated_has_no_say_in_who_is_the_best_student():
    label = batch().label
    wrong = (label + 1) % 3
    known = (torch.arange(7) < 3).expand(label.shape)
    right_there, right_elsewhere = torch.where(known, label, wrong), torch.where(known, wrong, label)
    logits = logits_of(right_elsewhere, wrong, right_there, wrong)
    assert build().best(2, logits, label).tolist() == [0]
    assert build().best(2, logits, label, known).tolist() == [2]


def test_the_best_student_is_that_of_many_batches_and_keeps_its_place_in_both_turns():
    """The third student, who learns in odd turns, is the best until the first has been better for long enough."""
    method, label = build(best_over=4, best_margin=0.01), batch().label
    wrong = (label + 1) % 3
    half = torch.where(torch.arange(7) < 4, label, wrong)
    assert method.best(2, logits_of(half, wrong, label, wrong), label).tolist() == [2]
    assert method.best(3, logits_of(label, wrong, half, wrong), label).tolist() == [0]  # the first group rests
    assert method.best(2, logits_of(label, wrong, half, wrong), label).tolist() == [2]
    places = [method.best(2, logits_of(label, wrong, half, wrong), label).item() for _ in range(8)]
    assert places == sorted(places, reverse=True)
    assert places[-1] == 0


def test_a_student_that_is_better_by_less_than_the_margin_does_not_take_over():
    method, label = build(best_over=1, best_margin=0.5), batch().label
    wrong = (label + 1) % 3
    half = torch.where(torch.arange(7) < 4, label, wrong)
    assert method.best(2, logits_of(half, wrong, wrong, wrong), label).tolist() == [0]
    assert method.best(2, logits_of(half, label, wrong, wrong), label).tolist() == [0]
    assert method.best(2, logits_of(wrong, label, wrong, wrong), label).tolist() == [1]


def test_perfect_students_that_agree_have_no_disagreement():
    method, label = build(), batch().label
    sure = logits_of(label, label, label, label, sure=50.0)
    assert method.disagreement_loss(sure, label, torch.tensor([3])).item() == 0


@pytest.mark.parametrize("number", [1, 2])
def test_losses_are_those_of_the_equations(number):
    """Of the first group; the best student, number 1 in the group and number 2 outside, is the one that most labels
    are made of."""
    torch.manual_seed(0)
    config = parse_method({"name": "rail", "ramp": 0.5})
    method, data = part_ways(METHODS["rail"](config, lambda **changes: TinyNet()).train()), patches()
    assert method.turn(MIDWAY)[0] % 2 == 0
    learning, resting = (method.group(turn).students for turn in (0, 1))
    images = torch.cat([data.image, data.unlabelled])
    logits = [net(images) for net in learning] + [copy.deepcopy(net)(images).detach() for net in resting]
    labelled, unlabelled = zip(*(z.split([2, 3]) for z in logits), strict=True)
    label = torch.where(torch.rand(data.label.shape) < 0.6, labelled[number].argmax(1), data.label)
    assert min(range(4), key=lambda s: dice(labelled[s], label)) == number

    def sharp(z):
        return z.softmax(1) ** 10 / (z.softmax(1) ** 10).sum(1, keepdim=True)

    named, meant = ([z.argmax(1) for z in each] for each in (labelled, unlabelled))
    best, taught = sharp(unlabelled[number].detach()), sharp(method.group(0).pair.teacher(data.unlabelled))
    expected = dict.fromkeys(("supervised", "teacher", "disagreement", "confidence"), 0.0)
    for s in (0, 1):
        told, said = nll(labelled[s], label), unlabelled[s].softmax(1)
        apart = named[s] != named[number] if s != number else torch.ones_like(label, dtype=torch.bool)
        expected["supervised"] += told.mean() + dice(labelled[s], label)
        expected["disagreement"] += 0.5 * squares(labelled[s].softmax(1), onehot(label))[apart].mean()
        expected["disagreement"] += 0.05 * told[apart & (named[s] != label)].mean()
        expected["teacher"] += 10 * RISE * squares(said, taught).mean()
        if s != number:
            undecided = -unlabelled[s].log_softmax(1).mean(1)[meant[s] != meant[number]].mean()
            expected["confidence"] += 20 * RISE * (squares(said, best).mean() + 0.1 * undecided)
    losses = method.step(replace(data, label=label), MIDWAY, generator(0)).losses
    assert_step(losses, expected, learning)


def test_the_gap_is_between_the_first_student_of_a_group_and_its_teacher_and_dissent_between_its_students():
    """The first student and the teacher say 1, the other student says 2."""
    method = build()
    first, other = method.group(0).students
    with torch.no_grad():
        for net, value in ((first, 1), (method.group(0).pair.teacher, 1), (other, 2)):
            net[-1].bias[value] = 1e6
    stats = method.step(batch(), LATER, generator(0)).stats
    assert stats["gap"] == 0
    assert stats["dissent"] == stats["pseudo/1"] == 1


def test_contested_are_annotated_voxels_where_those_that_learn_differ_from_the_best():
    method, said, known = build(), torch.zeros(4, 2, *SHAPE, dtype=torch.long), torch.ones(2, *SHAPE, dtype=torch.bool)
    said[0, :, 0] = said[2, :, 1] = 1  # a fifth of the voxels each
    known[:, 1] = False
    for best, everywhere, where_known in ((0, 0.1, 0.125), (1, 0.1, 0.125), (2, 0.3, 0.125)):
        of = torch.tensor([best])
        assert method.contested(logits_of(*said), of).item() == pytest.approx(everywhere)
        assert method.contested(logits_of(*said), of, known).item() == pytest.approx(where_known)


def test_contested_is_told_once_students_are_compared():
    method = build()
    assert "contested" not in method.step(batch(), Progress(0, 100), generator(0)).stats
    part_ways(method)
    assert 0 < method.step(batch(), LATER, generator(0)).stats["contested"] < 1


def test_for_two_classes_the_squares_are_those_of_the_foreground_alone():
    method, data = build(2, error_weight=0.0, disagreement_weight=1.0), batch(2)
    torch.manual_seed(2)
    logits = [torch.randn(2, 2, *SHAPE) for _ in range(4)]
    regions = [z.argmax(1) != logits[2].argmax(1) for z in logits[:2]]
    squares = [(z.softmax(1)[:, 1] - data.label) ** 2 for z in logits[:2]]
    expected = sum(square[region].mean() for square, region in zip(squares, regions, strict=True))
    torch.testing.assert_close(method.disagreement_loss(logits, data.label, torch.tensor([2])), expected)


def test_a_groups_students_have_different_architectures():
    network, made = NetworkConfig(channels=(4, 8, 8), strides=(2, 2)), []
    METHODS["rail"](
        parse_method({"name": "rail"}),
        lambda **changes: made.append(network.changed(**changes)) or make_network(made[-1], 1, 3),
    )
    assert [config.residual_units for config in made] == [0, 2, 0, 2]


def test_four_equal_students_predict_as_one():
    net = nn.Conv3d(1, 3, 3, padding=1)
    image = torch.randn(1, 9, 8, 11).numpy()
    one, four = (
        Predictor(
            nets, Recipe(), WindowConfig(), patch=(4, 4, 4), channels=("image",), classes="abc",
            device=torch.device("cpu"),
        ).probabilities(image)
        for nets in ([net], 4 * [net])
    )  # fmt: skip
    torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(four))
