"""The one place where a teacher follows its students."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def ema_update(teacher: nn.Module, students: Sequence[nn.Module], decay: float) -> None:
    """Move a teacher towards the mean of its students: `teacher = decay * teacher + (1 - decay) * mean`.

    Every float of the state takes part, buffers included, so that running statistics follow the
    weights; integers (counters) are copied from the first student. `decay=0` copies.
    """
    states = [student.state_dict() for student in students]
    floats: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    for name, mine in teacher.state_dict().items():
        if not mine.is_floating_point():
            mine.copy_(states[0][name])
            continue
        theirs = states[0][name] if len(states) == 1 else torch.stack([s[name] for s in states]).mean(0)
        floats.append(mine)
        targets.append(theirs)
    if decay == 0:
        torch._foreach_copy_(floats, targets)
    else:
        torch._foreach_lerp_(floats, targets, 1 - decay)
