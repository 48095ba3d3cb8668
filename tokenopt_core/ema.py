"""Exponential moving average of the tokens (paper, appendix C.1)."""

from __future__ import annotations

from torch import Tensor


class TokenAverage:
    """`average = decay * average + (1 - decay) * features`; the first update copies, there is no bias correction."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.value: Tensor | None = None

    def update(self, features: Tensor) -> Tensor:
        """Takes in features (B, N, D) and returns the new average, detached."""
        features = features.detach()
        self.value = features.clone() if self.value is None else self.value.lerp(features, 1 - self.decay)
        return self.value
