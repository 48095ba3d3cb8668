"""When a picture's run has converged, and where it was best: early stopping and keep-best."""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTHING = 0.9  # of the objective: random crops make it noisy


class Watch:
    """Follows the smoothed objective of each picture of a batch; each is stopped and kept on its own.

    patience: iterations without a fall of more than `tolerance` after which a picture has converged; 0: never.
    """

    def __init__(self, patience: int, tolerance: float, keep_best: bool) -> None:
        self._patience, self._tolerance, self._keep_best = patience, tolerance, keep_best
        self._smoothed: Tensor | None = None  # (B,), as are all below
        self._reached: Tensor  # what later objectives must undercut by more than the tolerance
        self._waited: Tensor
        self._ended: Tensor  # pictures whose run is over
        self._ended_before: Tensor
        self._kept: Tensor | None = None  # (B, N, D): the features of pictures that ended
        self._lowest: Tensor
        self._best: Tensor | None = None  # (B, N, D)
        self.all_converged = False

    def update(self, features: Tensor, objective: Tensor) -> Tensor:
        """Takes in averaged features (B, N, D) and objectives (B,); returns the features, converged ones frozen."""
        if not self._patience and not self._keep_best:
            return features
        if self._smoothed is None:
            self._smoothed = objective.clone()
            self._reached = self._lowest = torch.full_like(objective, torch.inf)
            self._waited = torch.zeros_like(objective)
            self._ended = self._ended_before = torch.zeros_like(objective, dtype=torch.bool)
        self._smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * objective
        if self._kept is not None:
            features = torch.where(self._ended[:, None, None], self._kept, features)
        if self._keep_best:
            better = (self._smoothed < self._lowest) & ~self._ended
            self._lowest = torch.where(better, self._smoothed, self._lowest)
            best = features if self._best is None else self._best
            self._best = torch.where(better[:, None, None], features, best)
        if self._patience:
            fell = self._smoothed < self._reached - self._tolerance
            self._reached = torch.where(fell, self._smoothed, self._reached)
            self._waited = torch.where(fell, 0, self._waited + 1)
            self._ended_before = self._ended
            self._ended = self._ended | (self._waited >= self._patience)
            self._kept = features
            self.all_converged = bool(self._ended.all())
        return features

    def running(self, values: Tensor) -> Tensor:
        """Values (B,) of this iteration, NaN for pictures whose run was over before it."""
        return values.masked_fill(self._ended_before, torch.nan) if self._patience else values

    def result(self, features: Tensor) -> Tensor:
        """The features (B, N, D) that the run leaves."""
        return features if self._best is None else self._best
