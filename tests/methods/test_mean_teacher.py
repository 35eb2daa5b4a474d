import math

import torch
from torch import nn

from medssl.methods import METHODS
from medssl.parts.sample import Progress, TrainBatch
from medssl.parts.schedules import generator
from medssl.run import parse_method


def build(name="mean_teacher", **settings):
    torch.manual_seed(0)
    return METHODS[name](parse_method({"name": name, **settings}), lambda **changes: nn.Conv3d(1, 3, 3, padding=1))


def batch():
    torch.manual_seed(1)
    shape = (5, 6, 7)
    return TrainBatch(torch.randn(2, 1, *shape), torch.randint(0, 3, (2, *shape)), torch.randn(3, 1, *shape), (1, 2, 3))


def test_without_consistency_it_is_the_supervised_baseline():
    mean_teacher, supervised = build(consistency_weight=0.0), build("supervised")
    losses = mean_teacher.step(batch(), Progress(60, 100), generator(0)).losses
    assert losses["consistency"].item() == 0
    expected = supervised.step(batch(), Progress(60, 100), generator(0)).losses["supervised"]
    torch.testing.assert_close(losses["supervised"], expected)


def test_consistency_is_nothing_for_equal_networks_without_noise_and_something_with_it():
    quiet = build(noise=0.0).step(batch(), Progress(60, 100), generator(0))
    noisy = build(noise=0.1).step(batch(), Progress(60, 100), generator(0))
    assert quiet.losses["consistency"].item() == 0
    assert noisy.losses["consistency"].item() > 0


def test_the_consistency_gradient_reaches_the_student_alone():
    method = build()
    method.step(batch(), Progress(60, 100), generator(0)).losses["consistency"].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.pair.student.parameters())
    assert all(p.grad is None for p in method.pair.teacher.parameters())


def test_teacher_copies_the_student_after_the_first_update():
    method = build()
    decays = [method.followers(Progress(i, 1000))[0].decay for i in (0, 1, 9, 500)]
    assert decays == [0.0, 0.5, 0.9, 0.99]


def test_noise_is_clipped_at_twice_its_deviation():
    method, image = build(noise=0.1), torch.zeros(2, 1, 9, 8, 7)
    noise = method.noisy(image, (1, 2))
    assert noise.abs().max().item() <= 0.2 + 1e-7
    assert 0.08 < noise.std().item() < 0.12


def test_the_target_is_the_teachers_prediction():
    method = build(noise=0.0, ramp=0.0, consistency_weight=1.0)
    with torch.no_grad():
        for p in method.pair.teacher.parameters():
            p.add_(0.3 * torch.randn_like(p))
        student = method.pair.student(batch().unlabelled).softmax(1)
        teacher = method.pair.teacher(batch().unlabelled).softmax(1)
    loss = method.step(batch(), Progress(60, 100), generator(0)).losses["consistency"]
    torch.testing.assert_close(loss, ((student - teacher) ** 2).mean())


def test_consistency_rises_with_the_ramp():
    losses = [
        build(ramp=0.5).step(batch(), Progress(i, 100), generator(0)).losses["consistency"].item()
        for i in (0, 25, 50, 90)
    ]
    assert losses[0] < losses[1] < losses[2] == losses[3]
    assert abs(losses[0] / losses[3] - math.exp(-5)) < 1e-6


def test_gauges_tell_the_teachers_volumes_and_where_the_student_differs():
    method = build(noise=0.0)
    equal = method.step(batch(), Progress(60, 100), generator(0)).stats
    assert equal["gap"] == 0
    with torch.no_grad():
        method.pair.teacher.bias[2] = 1e6
    stats = method.step(batch(), Progress(60, 100), generator(0)).stats
    assert [stats[f"pseudo/{value}"] for value in range(3)] == [0, 0, 1]
    assert stats["gap"] > 0.5
    torch.testing.assert_close(stats["prior/1"], (batch().label == 1).float().mean())
