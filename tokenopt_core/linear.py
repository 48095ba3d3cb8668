"""Large linear layers with frozen weights on a CPU, through oneDNN.

PyTorch hands them to a BLAS that leaves a third of some processors' speed unused (MKL on AMD's with AVX-512); oneDNN,
which already does the convolutions, does not. PyTorch has the call, but only for inference: the gradient is added here,
with respect to the input alone. On Intel's processors MKL is as fast forward and faster backward, and keeps the layers.
`benchmarks/operations.py` measures both.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 1 << 19  # weights a layer must have: below, as in mini, both are equally fast


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, faster where that is possible: (..., I), (O, I), (O,) -> (..., O)."""
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    return _Frozen.apply(x, weight, bias) if x.requires_grad and torch.is_grad_enabled() else product(x, weight, bias)


class Linear(nn.Linear):
    """A linear layer of that kind, with the weights of another."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.load_state_dict(layer.state_dict(), assign=True)
        self.requires_grad_(layer.weight.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return product(upstream.contiguous(), ctx.weight.T, None), None, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias in oneDNN, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _suits(x: Tensor, weight: Tensor) -> bool:
    return bool(
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype is weight.dtype is torch.float32
        and weight.numel() >= SMALLEST
        and not weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and available()
        and pays()
    )


@cache
def available() -> bool:
    """Whether this PyTorch has oneDNN, and its call is the one that is known."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0])
    try:
        return bool(torch.equal(product(x, weight, bias), torch.tensor([[13.0, 27.0]])))
    except (AttributeError, RuntimeError, TypeError):
        return False


@cache
def pays() -> bool:
    """Whether oneDNN is expected to be faster than PyTorch's BLAS: unless that is MKL on a processor of its maker."""
    return not (torch.backends.mkl.is_available() and "GenuineIntel" in _processor())


def _processor() -> str:
    """What the system says of the processor; its maker is named on Linux and Windows."""
    described = Path("/proc/cpuinfo")
    return described.read_text(encoding="utf-8", errors="replace") if described.is_file() else platform.processor()
