"""Updates of teachers as moving averages of their students, and their distance from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update(teacher: nn.Module, students: Sequence[nn.Module], decay: float) -> None:
    """Move a teacher towards the mean of its students: `teacher = decay * teacher + (1 - decay) * mean`.

    All floating-point parameters and buffers take part, so that running statistics follow the weights; integers
    (counters) are copied from the first student. `decay=0` copies the mean. Teacher and students must have the same
    architecture.
    """
    floats, counters = _state(teacher)
    means, firsts = _mean_state(students)
    if decay == 0:
        torch._foreach_copy_(floats, means)
    else:
        torch._foreach_lerp_(floats, means, 1 - decay)
    for mine, theirs in zip(counters, firsts, strict=True):
        mine.copy_(theirs)


@torch.no_grad()
def lag(teacher: nn.Module, students: Sequence[nn.Module]) -> Tensor:
    """Return the distance between a teacher's weights and the mean of its students', relative to the norm of the mean.

    Buffers with floating-point numbers count as weights.
    """
    floats, (means, _) = _state(teacher)[0], _mean_state(students)
    apart = torch.stack(torch._foreach_norm(torch._foreach_sub(floats, means))).norm()
    length = torch.stack(torch._foreach_norm(means)).norm()
    return cast(Tensor, apart / length.clamp_min(1e-12))


def _mean_state(students: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Means of the students' floats, and the first student's integers; both are read-only."""
    states = [_state(student) for student in students]
    means, firsts = states[0]
    if len(states) > 1:
        means = list(torch._foreach_div(means, len(states)))
        for others, _ in states[1:]:
            torch._foreach_add_(means, others, alpha=1 / len(states))
    return means, firsts


def _state(net: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers of a network, the floats and the integers separately."""
    tensors = list(chain(net.parameters(), net.buffers()))
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
