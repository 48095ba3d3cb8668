"""The models' passes as CUDA graphs: one launch for a forward pass and one for its gradient, instead of a thousand.

At the sizes of these models a GPU computes faster than Python can tell it what to do. What is captured is the way
through one frozen model; losses, quantizer and Adam stay ordinary code, so that any loss can be plugged in, and the
graphs outlive a run: they belong to the model and are used again as long as its weights stay where they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
Capture = Callable[[Function, Tensor], Function]

CAPTURE_FROM = 50  # iterations a run must have for a capture to pay: it costs about as much as ten
SHAPES = 4  # captures a model keeps; each holds the activations of one forward pass


class Captures:
    """What was captured of one model, for the place where its weights lie."""

    def __init__(self) -> None:
        self._weights: tuple[object, ...] = ()
        self.functions: dict[object, Function | None] = {}  # None: this one cannot be captured

    def check(self, model: nn.Module) -> None:
        """Forgets everything if the weights were moved or changed: a graph reads them at their addresses."""
        weights = tuple((t.data_ptr(), t._version) for t in (*model.parameters(), *model.buffers()))
        if weights != self._weights:
            self._weights = weights
            self.functions.clear()

    def make_room(self, used: set[object]) -> bool:
        """Whether one more may be captured; for it the oldest goes that this run has not used."""
        if len(self.functions) < SHAPES:
            return True
        oldest = next((key for key in self.functions if key not in used), None)
        self.functions.pop(oldest, None)
        return oldest is not None


class Replay:
    """One run's use of graphs.

    wanted: whether to replay at all. iterations: how many the run has.
    """

    def __init__(self, device: torch.device, iterations: int, wanted: bool) -> None:
        self._capture = CAPTURE.get(device.type)
        self._may_capture = iterations >= CAPTURE_FROM
        self._uses: dict[object, int] = {}
        self._used: dict[nn.Module, set[object]] = {}
        self.suspended = self._capture is None or not wanted  # True: everything is computed as usual

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """While an iteration is computed, the passes through its models come here."""
        self._uses.clear()
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def __call__(self, model: nn.Module, function: Function, x: Tensor) -> Tensor:
        if self.suspended or not (torch.is_grad_enabled() and x.requires_grad):
            return function(x)
        captures = _captures.setdefault(model, Captures())
        if model not in self._used:
            captures.check(model)
        shape = (function.__name__, x.shape, x.dtype, x.device, *_modes(x.device))
        # a second use in the same iteration must not overwrite what the first one's gradient still needs
        use = self._uses[model, shape] = self._uses.get((model, shape), -1) + 1
        key = (*shape, use)
        used = self._used.setdefault(model, set())
        if key not in captures.functions and self._may_capture and captures.make_room(used):
            captures.functions[key] = self._try(function, x)
        used.add(key)
        replay = captures.functions.get(key)
        # a copy: the graph writes its next result where this one lies
        return function(x) if replay is None else replay(x).clone()

    def _try(self, function: Function, x: Tensor) -> Function | None:
        assert self._capture is not None
        try:
            replay = self._capture(function, x)
            _compare(function, replay, x)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logging.getLogger(__name__).warning("TokenOpt: goes on without a CUDA graph, slower (%s)", reason)
            return None
        return replay


_captures: WeakKeyDictionary[nn.Module, Captures] = WeakKeyDictionary()
_current: ContextVar[Replay | None] = ContextVar("replay", default=None)


def capture_cuda(function: Function, x: Tensor) -> Function:
    """`function` as a pair of CUDA graphs, for tensors of x's shape that require a gradient."""
    sample = x.detach().clone().requires_grad_(True)
    graphed: Any = torch.cuda.make_graphed_callables(function, (sample,))
    return graphed


CAPTURE: dict[str, Capture] = {"cuda": capture_cuda}  # by the kind of device; others compute as usual


def through(model: nn.Module, function: Function, x: Tensor) -> Tensor:
    """`function(x)`, a pass through the frozen `model`, replayed if a run that replays is going on."""
    replay = _current.get()
    return function(x) if replay is None else replay(model, function, x)


def release(model: nn.Module | None = None) -> None:
    """Frees the graphs of a model, or of all: each holds the activations of a forward pass on the GPU."""
    if model is None:
        _captures.clear()
    else:
        _captures.pop(model, None)


def _modes(device: torch.device) -> tuple[object, ...]:
    """What changes the kernels that are captured, beside the input."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return autocast, torch.are_deterministic_algorithms_enabled()


def _compare(function: Function, replay: Function, x: Tensor) -> None:
    """RuntimeError unless the captured pass gives the picture and the gradient that the ordinary one gives."""
    autocast, _ = _modes(x.device)
    exact = x.dtype in (torch.float32, torch.float64) and not autocast
    results = []
    for way in (function, replay):
        leaf = x.detach().clone().requires_grad_(True)
        out = way(leaf)
        upstream = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
        results.append((out.detach().clone(), torch.autograd.grad(out, leaf, upstream)[0].clone()))
    for what, wanted, got in zip(("result", "gradient"), *results, strict=True):
        difference = float((got - wanted).float().abs().max() / wanted.float().abs().max().clamp(min=1e-12))
        # what differs is the order of sums; a wrong capture is off by its whole size
        if not difference < (1e-3 if exact else 5e-2):
            raise RuntimeError(f"the captured {what} is off by {difference:.2g} of its size")
