import copy

import torch
from torch import nn

from medssl.ema import ema_update, lag


@torch.no_grad()
def test_teacher_reaches_a_still_student():
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    for _ in range(200):
        ema_update(teacher, [student], decay=0.9)
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_decay_zero_copies_and_decay_one_keeps():
    student, teacher = nn.BatchNorm3d(2), nn.BatchNorm3d(2)
    student(torch.randn(2, 2, 5, 6, 7))
    before = copy.deepcopy(teacher.state_dict())
    ema_update(teacher, [student], decay=1.0)
    assert torch.equal(teacher.running_mean, before["running_mean"])
    ema_update(teacher, [student], decay=0.0)
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value)


def test_float_buffers_follow_and_counters_are_copied():
    student, teacher = nn.BatchNorm3d(2), nn.BatchNorm3d(2)
    for _ in range(3):
        student(5 + torch.randn(2, 2, 5, 6, 7))
    ema_update(teacher, [student], decay=0.75)
    torch.testing.assert_close(teacher.running_mean, 0.25 * student.running_mean)
    assert teacher.num_batches_tracked == 3


def test_two_students_count_as_their_mean():
    one, two, teacher = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    start = teacher.weight.clone()
    ema_update(teacher, [one, two], decay=0.5)
    torch.testing.assert_close(teacher.weight, start / 2 + (one.weight + two.weight) / 4)


def test_same_students_twice_is_the_student_once():
    student, one, two = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    ema_update(one, [student], decay=0.9)
    ema_update(two, [student, student], decay=0.9)
    torch.testing.assert_close(one.weight, two.weight)


def test_lag_is_the_distance_to_the_mean_student_in_units_of_its_length():
    one, two, teacher = (nn.Linear(2, 1, bias=False) for _ in range(3))
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[2.0, 4.0]]))
        two.weight.copy_(torch.tensor([[4.0, 4.0]]))
        teacher.weight.copy_(torch.tensor([[3.0, 3.0]]))
    torch.testing.assert_close(lag(teacher, [one, two]), torch.tensor(1 / 5))
    assert one.weight.tolist() == [[2.0, 4.0]]
    ema_update(teacher, [one], decay=0)
    assert lag(teacher, [one]) == 0
