"""The one place where a teacher follows its students."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

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
    states = [_state(student) for student in students]
    means, firsts = states[0]
    if len(states) > 1:
        means = list(torch._foreach_div(means, len(states)))
        for others, _ in states[1:]:
            torch._foreach_add_(means, others, alpha=1 / len(states))
    if decay == 0:
        torch._foreach_copy_(floats, means)
    else:
        torch._foreach_lerp_(floats, means, 1 - decay)
    for mine, theirs in zip(counters, firsts, strict=True):
        mine.copy_(theirs)


def _state(net: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Floats and integers of a network's parameters and buffers."""
    tensors = list(chain(net.parameters(), net.buffers()))
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
