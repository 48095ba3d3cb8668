"""When a picture's run is over, and where it was best: early stopping, keep-best, and runs that go wrong."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

SMOOTHING = 0.9  # of the objective: random crops make it noisy
FAULTS = 3  # iterations in a row without a finite loss and gradient, after which a picture is given up
LOOK_EVERY = 10  # iterations between two looks whether all is over, where a look waits for the device


class Watch:
    """Follows the smoothed objective of each picture of a batch; each is stopped and kept on its own.

    patience: iterations without a fall of more than `tolerance` after which a picture has converged; 0: never.
    """

    def __init__(self, batch: int, device: torch.device, patience: int, tolerance: float, keep_best: bool) -> None:
        self._patience, self._tolerance, self._keep_best = patience, tolerance, keep_best

        def each(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((batch,), value, dtype=dtype, device=device)

        self._smoothed = each(torch.inf)
        self._reached = each(torch.inf)  # what later objectives must undercut by more than the tolerance
        self._lowest = each(torch.inf)
        self._waited, self._faults = each(0, torch.int64), each(0, torch.int64)
        self._ended, self._ended_before = each(0, torch.bool), each(0, torch.bool)
        self._kept: Tensor | None = None  # (B, N, D): the features of pictures that ended
        self._best: Tensor | None = None  # (B, N, D)
        self.diverged = each(0, torch.bool)  # given up after faults in a row
        self.good, self.skipped = each(0, torch.int64), each(0, torch.int64)  # steps that were made, that were not
        self.iterations = torch.zeros((), dtype=torch.int64, device=device)  # until the last picture ended

    def update(self, features: Tensor, objectives: Tensor, faulty: Tensor) -> Tensor:
        """Takes in averaged features (B, N, D), objectives (B,) and which pictures could not step (B,).

        Returns the features, those of pictures that ended frozen.
        """
        self._ended_before = self._ended
        running = ~self._ended
        self.iterations = self.iterations + running.any()
        self.good = self.good + (running & ~faulty)
        self.skipped = self.skipped + (running & faulty)
        self._faults = torch.where(faulty, self._faults + 1, 0)
        self.diverged = self.diverged | (running & (self._faults >= FAULTS))
        self._smooth(objectives, faulty)
        if self._kept is not None:
            features = torch.where(self._ended[:, None, None], self._kept, features)
        if self._keep_best:
            better = (self._smoothed < self._lowest) & running
            self._lowest = torch.where(better, self._smoothed, self._lowest)
            best = features if self._best is None else self._best
            self._best = torch.where(better[:, None, None], features, best)
        self._ended = self._ended | self.diverged | self._converged()
        self._kept = features
        return features

    def _smooth(self, objectives: Tensor, faulty: Tensor) -> None:
        smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * objectives
        smoothed = torch.where(torch.isinf(self._smoothed), objectives, smoothed)
        self._smoothed = torch.where(faulty, self._smoothed, smoothed)

    def _converged(self) -> Tensor:
        if not self._patience:
            return torch.zeros_like(self._ended)
        fell = self._smoothed < self._reached - self._tolerance
        self._reached = torch.where(fell, self._smoothed, self._reached)
        self._waited = torch.where(fell, 0, self._waited + 1)
        return self._waited >= self._patience

    def running(self, values: Tensor) -> Tensor:
        """Values (B,) of this iteration, NaN for pictures whose run was over before it."""
        return values.masked_fill(self._ended_before, torch.nan)

    def all_ended(self, iteration: int) -> bool:
        """Whether every picture's run is over; on a GPU it is looked at only now and then."""
        if self._ended.device.type != "cpu" and (iteration + 1) % LOOK_EVERY:
            return False
        return bool(self._ended.all())

    @property
    def verdict(self) -> Literal["converged", "diverged"]:
        """Why all have ended."""
        return "diverged" if bool(self.diverged.any()) else "converged"

    def result(self, features: Tensor) -> Tensor:
        """The features (B, N, D) that the run leaves."""
        return features if self._best is None else self._best
