"""The test-time optimization of tokens (paper, Section 4 and Algorithms A1 and A2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import allocator
from .ema import TokenAverage
from .gradient import Objective
from .graphs import Replay
from .guard import StepGuard
from .loss_protocols import Loss
from .regularizers import TokenRegularizer
from .schedules import DECAYS, Decay, NoiseSchedule, learning_rate
from .stopping import Watch
from .thrift import Thrift
from .tokenizer import Tokenizer

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Stopped = Literal["finished", "converged", "callback", "diverged"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class OptimizeConfig:
    """Settings of a run; the defaults are those of the paper's text-guided editing.

    seed: picture i of a batch draws its noise and crops from seed + i, so that a batch gives what single runs give.
    precision: what the models compute in; the features, the quantizer and Adam stay float32. "auto" is float32 on
        a CPU, on a GPU bfloat16 where it has it and float16 with a scaled gradient otherwise.
    patience, tolerance: a picture's run ends when its smoothed objective has not fallen by more than `tolerance` for
        `patience` iterations; 0 runs to the end (early stopping, which the paper leaves as future work).
    keep_best: the result is where the smoothed objective was lowest, instead of where the run ended.
    capture: on a GPU, runs of 50 iterations and more replay the models' passes as CUDA graphs; False never does.
    quantize: False optimises and decodes the quantized tokens as continuous ones (paper, Table 3, "without VQ").
    """

    iterations: int = 300
    learning_rate: float = 0.1
    decay: Decay = "constant"
    ema_decay: float = 0.98
    seed: int = 0
    precision: Precision = "auto"
    noise: NoiseSchedule = field(default_factory=NoiseSchedule)
    quantize: bool = True
    patience: int = 0
    tolerance: float = 1e-3
    keep_best: bool = False
    capture: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"the learning rate must be a finite number above 0, got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"the EMA decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.patience < 0 or not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(
                "early stopping takes a patience of at least 0 iterations and a finite tolerance of at least 0, got "
                f"{self.patience} and {self.tolerance}"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"unknown learning rate decay {self.decay!r}: expected one of {', '.join(DECAYS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}: expected one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Step:
    """What a callback sees after an iteration; everything is detached."""

    iteration: int  # from 0
    features: Tensor  # (B, N, D), averaged
    image: Tensor  # (B, 3, S, S), not clamped, decoded from the features before this iteration's step, not averaged
    losses: dict[str, Tensor]  # each (B,), on the device: reading them waits for it


@dataclass(frozen=True)
class Result:
    """What a run leaves: tensors are detached."""

    features: Tensor  # (B, N, D), averaged
    images: Tensor  # (B, 3, S, S) in [0, 1], decoded from `features`
    history: dict[str, Tensor]  # (iterations, B) each: "loss" without the regularizers, and each term by its name;
    # NaN after the iteration at which a picture's run ended before the others'
    stopped: Stopped
    skipped: Tensor  # (B,) int64: iterations without a step, since the loss or its gradient was not finite
    notes: tuple[str, ...]  # what the user should know: memory that ran short, steps that were skipped


class Reset(Protocol):
    """Changes the picture now and then while a run goes on, and with it the features (paper, Section 4.3)."""

    def due(self, iteration: int, /) -> bool:
        """Whether it is to be done after this iteration, counted from 0."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Decoded pictures (B, 3, S, S) -> those that are encoded in their place, in [0, 1]."""
        ...


Callback = Callable[[Step], bool | None]


def optimize(
    tokenizer: Tokenizer,
    features: Tensor,
    loss: Loss,
    config: OptimizeConfig | None = None,
    regularizers: Sequence[TokenRegularizer] = (),
    reset: Reset | None = None,
    callback: Callback | None = None,
    make_room: Callable[[], object] | None = None,
) -> Result:
    """Adam on the features (B, N, D) before quantization, so that the decoded pictures minimise `loss`.

    Runs where the features are; tokenizer and loss must be there too. A callback that returns True ends the run.
    When memory runs out, `make_room` is called and the iteration repeated in smaller pieces. A step whose loss or
    gradient is not finite is skipped; three in a row end a picture's run with its last good tokens.
    Raises ValueError for features that are not this tokenizer's or not finite, and for a loss of the wrong shape;
    FloatingPointError if no step was finite; torch's own error if memory does not suffice even for the smallest pieces.
    """
    config = config or OptimizeConfig()
    seed = _start(tokenizer, features, config)
    generators = [torch.Generator().manual_seed(config.seed + i) for i in range(len(seed))]
    compute, thrift = _precision(config, seed.device), Thrift(make_room)
    replay = Replay(seed.device, config.iterations, config.capture)
    objective = Objective(
        tokenizer, loss, regularizers, seed, config.quantize, generators, compute.context, thrift, replay
    )
    z = seed.clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=config.learning_rate, fused=z.is_cuda)
    guard = StepGuard(len(z), z.device, scaled=compute.dtype is torch.float16)
    average = TokenAverage(config.ema_decay)
    watch = Watch(len(z), z.device, config.patience, config.tolerance, config.keep_best)
    stopped: Stopped = "finished"
    history: list[dict[str, Tensor]] = []

    with allocator.kept(seed.device.type == "cpu"):
        for iteration in range(config.iterations):
            _set_learning_rate(adam, iteration, config)
            _add_noise(z, config.noise.at(iteration, config.iterations), generators)
            found = objective(z, guard.scale)
            z.grad, sound = guard.admit(found.gradient, found.objectives)
            _step(adam, z, sound)
            if reset and reset.due(iteration):
                _put_back(reset, objective, z, thrift)
            averaged = watch.update(average.update(z), found.objectives, guard.faulty)
            history.append({name: watch.running(value) for name, value in (found.losses | found.penalties).items()})
            if callback and callback(Step(iteration, averaged, found.images, history[-1])):
                stopped = "callback"
                break
            if watch.all_ended(iteration):
                stopped = watch.verdict
                break

    if not watch.good.any():
        raise FloatingPointError(_never_finite(history[-1]))
    averaged = watch.result(averaged)
    with torch.no_grad():
        images = thrift.over(objective.decode, averaged, "decoding the result").clamp(0, 1)
    curves = {
        name: torch.stack([step[name] for step in history[: int(watch.iterations)]]).float().cpu()
        for name in history[0]
    }
    notes = (*thrift.notes, *_faults(watch))
    return Result(averaged, images, curves, stopped, watch.skipped.cpu(), notes)


@dataclass(frozen=True)
class _Compute:
    """The dtype of the models' arithmetic on one device."""

    device: torch.device
    dtype: torch.dtype

    @contextmanager
    def context(self) -> Iterator[None]:
        half = self.dtype is not torch.float32
        with (
            torch.autocast(self.device.type, self.dtype, cache_enabled=False) if half else nullcontext(),
            self._attention(),
        ):
            yield

    def _attention(self) -> AbstractContextManager[None]:
        """Fused attention's gradient adds up in no fixed order on a GPU, whatever PyTorch is told; this one's does."""
        if self.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()


def _precision(config: OptimizeConfig, device: torch.device) -> _Compute:
    if config.precision != "auto":
        return _Compute(device, getattr(torch, config.precision))
    if device.type != "cuda":
        return _Compute(device, torch.float32)
    return _Compute(device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def _start(tokenizer: Tokenizer, features: Tensor, config: OptimizeConfig) -> Tensor:
    """The features to start from, quantized once if the run is without VQ."""
    seed = tokenizer.check(features).detach()
    if not len(seed):
        raise ValueError("there is nothing to optimise: the batch of features is empty")
    if not torch.isfinite(seed).all():
        raise ValueError("the features to start from hold values that are not finite (NaN or infinity)")
    return seed if config.quantize else tokenizer.quantize(seed).detach()


def _set_learning_rate(adam: torch.optim.Adam, iteration: int, config: OptimizeConfig) -> None:
    for group in adam.param_groups:
        group["lr"] = learning_rate(iteration, config.iterations, config.learning_rate, config.decay)


@torch.no_grad()
def _add_noise(z: Tensor, std: float, generators: Sequence[torch.Generator]) -> None:
    """Noise that stays: it is added to the variable, not to a copy of it."""
    if std > 0:
        noise = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators])
        z.add_(noise.to(z), alpha=std)


@torch.no_grad()
def _step(adam: torch.optim.Adam, z: Tensor, sound: Tensor) -> None:
    """Adam's step for the pictures whose gradient is sound, (B,); the momentum moves no other."""
    before = z.detach().clone()
    adam.step()
    z.copy_(torch.where(sound[:, None, None], z, before))


@torch.no_grad()
def _put_back(reset: Reset, objective: Objective, z: Tensor, thrift: Thrift) -> None:
    """Overwrites the variable with the features of the changed picture; Adam's moments are kept."""
    images = thrift.over(objective.decode, z, "a token reset")
    features = thrift.over(objective.encode, reset(images), "a token reset")
    z.copy_(torch.where(torch.isfinite(features).flatten(1).all(1)[:, None, None], features, z))


def _never_finite(losses: dict[str, Tensor]) -> str:
    broken = [name for name, value in losses.items() if name != "loss" and not torch.isfinite(value).any()]
    what = f"the loss {' and '.join(broken)} was" if broken else "the loss or its gradient was"
    return (
        f"{what} never a finite number (NaN or infinity): nothing could be optimised. Another precision may help; if "
        "not, a model's file, a picture or a loss is broken"
    )


def _faults(watch: Watch) -> list[str]:
    """What is to be said of pictures whose numbers were not finite; logged, too."""
    notes = []
    for i, skipped in enumerate(watch.skipped.tolist()):
        if skipped:
            times = "1 iteration" if skipped == 1 else f"{skipped} iterations"
            note = f"picture {i + 1}: the loss or its gradient was not finite in {times}, which were skipped"
            notes.append(note + ("; it keeps the last good tokens" if watch.diverged[i] else ""))
            logging.getLogger(__name__).warning("TokenOpt: %s", notes[-1])
    return notes
