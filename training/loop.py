"""What both trainings share: the learning rate's course, and a loop that can be interrupted and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

CHECKPOINT_SECONDS = 60


class Resumable(Protocol):
    """The state of a training run."""

    step: int
    steps: int
    seconds: float

    def advance(self) -> float:
        """One training step; returns its loss."""

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must hold."""

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up where the state was saved."""


def rate(step: int, steps: int, warmup: int, final: float) -> float:
    """Linear warm-up, then a cosine from 1 to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def run(training: Resumable, checkpoint: Path, report: Callable[[], str]) -> None:
    """Trains to the end, from the checkpoint if there is one; saves and prints a report every minute."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        training.restore(torch.load(checkpoint, weights_only=True))
    print(f"from step {training.step} to {training.steps}", flush=True)
    saved, losses = time.monotonic(), []
    while training.step < training.steps:
        losses.append(training.advance())
        elapsed = time.monotonic() - saved
        if elapsed > CHECKPOINT_SECONDS or training.step == training.steps:
            training.seconds += elapsed
            part = checkpoint.with_suffix(".part")
            torch.save(training.state(), part)
            part.replace(checkpoint)
            mean = sum(losses) / len(losses)
            print(f"step {training.step}  loss {mean:.4f}  {training.seconds:.0f} s  {report()}", flush=True)
            saved, losses = time.monotonic(), []
