"""Steps with numbers that are not finite are not made."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_SCALE = 2.0**16  # where float16 starts; an eighth of it after each overflow, since each costs an iteration


class StepGuard:
    """Keeps each picture of a batch from a step whose loss or gradient is not finite.

    scaled: whether the loss is multiplied by `scale` (B,) before it is differentiated, since gradients of float16
        would underflow. Each picture has its own, so that a batch gives what single runs give. All stays on the device.
    """

    def __init__(self, batch: int, device: torch.device, scaled: bool) -> None:
        self.scale = torch.full((batch,), LARGEST_SCALE if scaled else 1.0, device=device)
        self.faulty = torch.zeros(batch, dtype=torch.bool, device=device)  # no step now, and not for want of scale

    def admit(self, gradient: Tensor, objectives: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient (B, N, D) without its scale, zero where it may not be used; which pictures (B,) may step."""
        gradient = gradient / self.scale[:, None, None]
        sound_loss = torch.isfinite(objectives)
        sound = sound_loss & torch.isfinite(gradient).flatten(1).all(1)
        overflow = sound_loss & ~sound & (self.scale > 1)
        self.faulty = ~sound & ~overflow
        self.scale = torch.where(overflow, self.scale / 8, self.scale)
        return gradient.masked_fill(~sound[:, None, None], 0), sound
