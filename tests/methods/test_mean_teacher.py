import torch
from by_hand import MIDWAY, RISE, TinyNet, assert_step, batch, part_ways, segmentation, squares
from torch import nn

from medssl.methods import METHODS
from medssl.parts.sample import Progress
from medssl.parts.schedules import generator, normal
from medssl.run import parse_method


def build(make=lambda **changes: nn.Conv3d(1, 3, 3, padding=1), **settings):
    torch.manual_seed(0)
    return METHODS["mean_teacher"](parse_method({"name": "mean_teacher", **settings}), make)


def test_losses_are_those_of_the_equations():
    method, data = part_ways(build(TinyNet, consistency_weight=0.7, ramp=0.5, noise=0.2).train()), batch()
    student, teacher = method.pair.student, method.pair.teacher
    labelled, unlabelled = student(torch.cat([data.image, data.unlabelled])).split([2, 3])
    noise = (0.2 * normal(data.unlabelled, data.seeds)).clamp(-0.4, 0.4)
    target = teacher(data.unlabelled + noise).softmax(1)
    expected = {
        "supervised": segmentation(labelled, data.label),
        "consistency": 0.7 * RISE * squares(unlabelled.softmax(1), target.detach()).mean(),
    }
    assert_step(method.step(data, MIDWAY, generator(0)).losses, expected, [student])


def test_teacher_copies_the_student_after_the_first_update():
    method = build()
    decays = [method.followers(Progress(i, 1000))[0].decay for i in (0, 1, 9, 500)]
    assert decays == [0.0, 0.5, 0.9, 0.99]


def test_noise_is_clipped_at_twice_its_deviation():
    method, image = build(noise=0.1), torch.zeros(2, 1, 9, 8, 7)
    noise = method.noisy(image, (1, 2))
    assert noise.abs().max().item() <= 0.2 + 1e-7
    assert 0.08 < noise.std().item() < 0.12


def test_gauges_tell_the_teachers_volumes_and_where_the_student_differs():
    method = build(noise=0.0)
    equal = method.step(batch(), MIDWAY, generator(0)).stats
    assert equal["gap"] == 0
    with torch.no_grad():
        method.pair.teacher.bias[2] = 1e6
    stats = method.step(batch(), MIDWAY, generator(0)).stats
    assert [stats[f"pseudo/{value}"] for value in range(3)] == [0, 0, 1]
    assert stats["gap"] > 0.5
    torch.testing.assert_close(stats["prior/1"], (batch().label == 1).float().mean())
