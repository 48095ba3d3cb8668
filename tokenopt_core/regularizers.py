"""Penalties on the features themselves (paper, Algorithm A2, in green)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Toward = Literal["seed", "zero"]
TOWARD: tuple[Toward, ...] = ("seed", "zero")


@dataclass(frozen=True)
class TokenRegularizer:
    """`weight` times the mean squared distance of the features to where they started ("seed"), or to zero."""

    toward: Toward = "seed"
    weight: float = 0.02

    def __post_init__(self) -> None:
        if self.toward not in TOWARD:
            raise ValueError(f"a regularizer pulls toward one of {', '.join(TOWARD)}, got {self.toward!r}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"a regularizer's weight must be a finite number of at least 0, got {self.weight}")

    @property
    def name(self) -> str:
        """What the loss history calls this term."""
        return f"toward {self.toward}"

    def __call__(self, features: Tensor, seed: Tensor) -> Tensor:  # (B, N, D), (B, N, D) -> (B,)
        distance = features - seed if self.toward == "seed" else features
        return self.weight * distance.square().mean((1, 2))
