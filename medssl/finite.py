"""Count the training steps whose losses or gradients are not finite, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medssl.device import Readback
from medssl.parts import processes

PATIENCE = 5
"""Steps in a row with a non-finite loss or gradient before a run is stopped."""


class Watch:
    """Counts on the device how many steps in a row were not finite, so that no step waits for the answer."""

    def __init__(self, device: torch.device) -> None:
        self.in_a_row = torch.zeros((), device=device)
        self.all, self.steps = torch.zeros((), device=device), 0
        self.most = torch.zeros((), device=device)
        self.step = torch.zeros((), device=device)
        self.names: tuple[str, ...] = ()
        self.losses = torch.zeros(0, device=device)
        self._last_look: Readback | None = None

    def note(self, step: int, losses: dict[str, Tensor], norms: Sequence[Tensor]) -> Tensor:
        """Count a step; return 1 if a loss or gradient norm is not finite in any process, else 0, as a scalar on the
        device."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        if tuple(losses) != self.names:
            self.names, self.losses = tuple(losses), torch.zeros_like(values)
        judged = sum(norms, values.sum())
        bad = (processes.total((~judged.isfinite()).float()) > 0).float()
        self.in_a_row = (self.in_a_row + 1) * bad
        self.all += bad
        self.steps += 1
        self.most = torch.maximum(self.most, self.in_a_row)
        self.step = torch.where(bad > 0, step, self.step)
        self.losses = torch.where(bad > 0, values, self.losses)
        return bad

    def skipped(self) -> Tensor:
        """Return the share of steps since the last call that were not finite, as a scalar on the device."""
        share = self.all / max(1, self.steps)
        self.all, self.steps = torch.zeros_like(self.all), 0
        return share

    def found(self, *, wait: bool = False) -> tuple[int, dict[str, float]] | None:
        """Return number and losses of the last bad step if PATIENCE of them came in a row, otherwise None.

        Args:
            wait: wait for the present state; without it, on a GPU, the answer is that of the call before.
        """
        now = Readback(torch.cat([self.most[None], self.step[None], self.losses]))
        look, self._last_look = (now if wait or not self.most.is_cuda else self._last_look), now
        if look is None:
            return None
        most, step, *losses = look.tolist()
        return (int(step), dict(zip(self.names, losses, strict=False))) if most >= PATIENCE else None
