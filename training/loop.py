"""What both trainings share: the learning rate's course, and a loop that can be interrupted and resumed."""

from __future__ import annotations

import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

CHECKPOINT_SECONDS = 60


class Training(ABC):
    """A run that can be saved and taken up again: a model, its optimizer, and where the random numbers stand."""

    parts: tuple[str, ...] = ("model", "optimizer")  # what has a state of its own
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.step, self.steps, self.seconds = 0, steps, 0.0
        self.rng = random.Random(seed)

    @abstractmethod
    def advance(self) -> float:
        """One training step; returns its loss."""

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must hold."""
        state = {part: getattr(self, part).state_dict() for part in self.parts}
        counters = {"step": self.step, "seconds": self.seconds}
        return state | counters | {"rng": self.rng.getstate(), "torch_rng": torch.get_rng_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up where the state was saved."""
        for part in self.parts:
            getattr(self, part).load_state_dict(state[part])
        self.step, self.seconds = state["step"], state["seconds"]
        self.rng.setstate(state["rng"])
        torch.set_rng_state(state["torch_rng"])


@contextmanager
def fast_arithmetic() -> Iterator[None]:
    """bfloat16 on processors with matrix units for it (AMX), three times as fast there; float32 on all others.

    Attention is written out: the gradient of the fused one takes half of a step's time on a CPU.
    """
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    fast = bool(torch.cpu._is_amx_tile_supported())
    with torch.autocast("cpu", torch.bfloat16, enabled=fast), sdpa_kernel(SDPBackend.MATH):
        yield


def rate(step: int, steps: int, warmup: int, final: float) -> float:
    """Linear warm-up, then a cosine from 1 to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def run(training: Training, checkpoint: Path, report: Callable[[], str]) -> None:
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
