"""How the token noise and the learning rate change over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]
SHAPES: tuple[Shape, ...] = ("cosine", "linear", "constant")
Decay = Literal["constant", "cosine"]
DECAYS: tuple[Decay, ...] = ("constant", "cosine")


@dataclass(frozen=True)
class NoiseSchedule:
    """Standard deviation of the noise added to the features each iteration (paper, Algorithm A2, in blue).

    It goes from `start` to `end` while the first `until` of the run passes, then stays at `end`. "cosine" is the
    paper's shape; "constant" stays at `start` and drops to `end`.
    """

    start: float = 0.0
    end: float = 0.0
    until: float = 2 / 3
    shape: Shape = "cosine"

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"the noise {name} must be a finite number of at least 0, got {getattr(self, name)}")
        if not 0 < self.until <= 1:
            raise ValueError(f"the noise's until is a share of the run, above 0 and at most 1, got {self.until}")
        if self.shape not in SHAPES:
            raise ValueError(f"unknown noise shape {self.shape!r}: expected one of {', '.join(SHAPES)}")

    def at(self, iteration: int, iterations: int) -> float:
        """The standard deviation at one iteration, counted from 0."""
        progress = min(1.0, iteration / max(1, iterations - 1) / self.until)
        kept = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "constant": float(progress < 1),
        }[self.shape]
        return self.end + (self.start - self.end) * kept


def learning_rate(iteration: int, iterations: int, start: float, decay: Decay) -> float:
    """The learning rate at one iteration: as published ("constant"), or falling to 0 along half a cosine."""
    if decay == "constant":
        return start
    return start * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
