"""The one place where a teacher follows its students, and how far behind it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update(teacher: nn.Module, students: Sequence[nn.Module], decay: float) -> None:
    """Move a teacher towards the mean of its students: `teacher = decay * teacher + (1 - decay) * mean`.

    Every float of the state takes part, buffers included, so that running statistics follow the
    weights; integers (counters) are copied from the first student. `decay=0` copies. Teacher and
    students have the same architecture.
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
    """Distance between a teacher's floats and the mean of its students', relative to the length of the latter."""
    floats, (means, _) = _state(teacher)[0], _mean_state(students)
    apart = torch.stack(torch._foreach_norm(torch._foreach_sub(floats, means))).norm()
    length = torch.stack(torch._foreach_norm(means)).norm()
    return cast(Tensor, apart / length.clamp_min(1e-12))


def _mean_state(students: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Means of the students' floats, not to be written to, and the first one's integers."""
    states = [_state(student) for student in students]
    means, firsts = states[0]
    if len(states) > 1:
        means = list(torch._foreach_div(means, len(states)))
        for others, _ in states[1:]:
            torch._foreach_add_(means, others, alpha=1 / len(states))
    return means, firsts


def _state(net: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Floats and integers of a network's parameters and buffers."""
    tensors = list(chain(net.parameters(), net.buffers()))
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
