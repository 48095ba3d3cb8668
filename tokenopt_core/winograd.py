"""Group normalization, SiLU and a 3 x 3 convolution with frozen weights in one go on a CPU, strip by strip.

A strip of the picture is normalized, convolved and written while it lies in the processor's cache, and what stands
between is not kept for the gradient but computed again. A convolution takes a quarter of the products, by the minimal
filtering F(4 x 4, 3 x 3) of Lavin and Gray (arXiv 1509.09308); its transforms are matrix products, too.

The numbers are the same to rounding. Where this does not suit, each of the three goes its usual way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import linear

SIDE = 4  # of a tile of results
SEEN = SIDE + 2  # of the pixels that it depends on
PRODUCTS = SEEN**2  # a tile takes for each pair of channels, instead of 9 * 16
TILES = 128  # at once for each thread: enough to keep it busy, and few enough for its cache
SMALLEST = 32  # a picture's side; below, the transformed weights are more than the picture
AT_ONCE = 1 << 18  # numbers of what is only added up

# Four results of three taps are RESULTS ((TAPS w) * (PIXELS x)), of six pixels: interpolation at 0, 1, -1, 2, -2 and
# infinity. Both dimensions together are the Kronecker square.
_PIXELS = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
           [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
_TAPS = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
         [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
_RESULTS = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _both_ways(matrix: object) -> Tensor:
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one).float()


PIXELS, TAPS, RESULTS = (_both_ways(matrix) for matrix in (_PIXELS, _TAPS, _RESULTS))  # (36, 36), (36, 9), (16, 36)


def convolve_normed(x: Tensor, norm: nn.GroupNorm, convolution: nn.Conv2d) -> Tensor:
    """convolution(silu(norm(x))), for a 3 x 3 convolution with padding 1: (B, I, H, W) -> (B, O, H, W)."""
    if not _suits(x, norm, convolution):
        return convolution(F.silu(norm(x)))
    return _Normed.apply(x.permute(0, 2, 3, 1).contiguous(), norm, convolution).permute(0, 3, 1, 2)


def _suits(x: Tensor, norm: nn.GroupNorm, convolution: nn.Conv2d) -> bool:
    weights = (norm.weight, norm.bias, convolution.weight)
    return bool(
        type(x) is Tensor
        and x.device.type == "cpu"
        and min(x.shape[2:]) >= SMALLEST
        and not (x.shape[2] % SIDE or x.shape[3] % SIDE)
        and all(x.dtype is weight.dtype is torch.float32 and not weight.requires_grad for weight in weights)
        and not torch.is_autocast_enabled("cpu")
        and not linear.pays()  # where it does, matrix products are slower than oneDNN's convolutions
    )


class _Normed(torch.autograd.Function):
    """(B, H, W, I) -> (B, H, W, O); the weights are no inputs, since they get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: nn.GroupNorm, convolution: nn.Conv2d) -> Tensor:
        weight, bias = convolution.weight, convolution.bias
        normed = ctx.normed = _Normalization.of(x, norm)
        ctx.weight = weight
        ctx.save_for_backward(x)  # and let go as soon as this layer's gradient is there

        def prepare(i: int, rows: slice, into: Tensor) -> None:
            F.silu(normed.apply(i, x[i, rows], into), inplace=True)

        def finish(i: int, rows: slice, strip: Tensor) -> None:
            if bias is not None:
                strip.add_(bias)

        return _convolve(x, _taps(weight).transpose(1, 2), prepare, finish)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (x,), normed = ctx.saved_tensors, ctx.normed
        moments = _Moments(x)

        def prepare(i: int, rows: slice, into: Tensor) -> None:
            into.copy_(upstream[i, rows])

        def finish(i: int, rows: slice, strip: Tensor) -> None:
            before = normed.apply(i, x[i, rows])
            torch.ops.aten.silu_backward.grad_input(strip, before, grad_input=strip)
            moments.add(i, strip, x[i, rows], before)

        # the gradient of a convolution is one with the taps turned round
        gradient = _convolve(upstream, _taps(ctx.weight.flip(2, 3)), prepare, finish)
        return normed.derive(gradient, x, moments), None, None


def _taps(weight: Tensor) -> Tensor:
    """Taps (O, I, 3, 3) as they meet the pixels, (36, O, I)."""
    return (TAPS @ weight.permute(2, 3, 0, 1).reshape(9, -1)).unflatten(1, weight.shape[:2])


def _convolve(
    x: Tensor,
    taps: Tensor,
    prepare: Callable[[int, slice, Tensor], None],
    finish: Callable[[int, slice, Tensor], None],
) -> Tensor:
    """A convolution with padding 1 by taps (36, I, O): (B, H, W, I) -> (B, H, W, O).

    prepare: given a picture's number, rows, and where their pixels (rows, W, I) are to be written to.
    finish: given a picture's number, rows, and their results (rows, W, O), which it may change.
    """
    batch, height, width, inputs = x.shape
    outputs, across = taps.shape[2], width // SIDE
    most = SIDE * max(1, min(TILES * torch.get_num_threads() // across, height // SIDE))  # rows of a strip
    results = x.new_empty(batch, height, width, outputs)
    padded = x.new_zeros(most + 2, width + 2, inputs)
    size = PRODUCTS * most // SIDE * across * max(inputs, outputs)
    here, there = x.new_empty(size), x.new_empty(size)  # one step reads the one and writes the other
    for i in range(batch):
        for top in range(0, height, most):
            end = min(top + most, height)
            first, last = max(top - 1, 0), min(end + 1, height)
            padded[0].zero_(), padded[end - top + 1].zero_()  # what is not there if a border is
            prepare(i, slice(first, last), padded[first - top + 1 : last - top + 1, 1:-1])
            down = (end - top) // SIDE
            tiles = down * across
            seen = padded[: end - top + 2].unfold(0, SEEN, SIDE).unfold(1, SEEN, SIDE).permute(3, 4, 0, 1, 2)
            pixels = _part(here, PRODUCTS, tiles * inputs)
            pixels.view(seen.shape).copy_(seen)
            met = torch.mm(PIXELS, pixels, out=_part(there, PRODUCTS, tiles * inputs))
            met = torch.bmm(met.view(PRODUCTS, tiles, inputs), taps, out=_part(here, PRODUCTS, tiles, outputs))
            found = torch.mm(RESULTS, met.view(PRODUCTS, -1), out=_part(there, SIDE**2, tiles * outputs))
            strip = results[i, top:end]
            strip.view(down, SIDE, across, SIDE, outputs).copy_(
                found.view(SIDE, SIDE, down, across, outputs).permute(2, 0, 3, 1, 4)
            )
            finish(i, slice(top, end), strip)
    return results


def _part(memory: Tensor, *shape: int) -> Tensor:
    return memory[: torch.Size(shape).numel()].view(shape)


class _Moments:
    """For each picture and channel of x (B, H, W, C) the sum of some values, and of their products with others."""

    def __init__(self, x: Tensor) -> None:
        self.sums, self.products = x.new_zeros(2, len(x), x.shape[3], dtype=torch.float64)

    def add(self, i: int, values: Tensor, others: Tensor, scratch: Tensor) -> None:
        """Of a part (..., C) of picture i; `scratch` is as large and is overwritten."""
        axes = tuple(range(values.ndim - 1))
        self.sums[i] += values.sum(axes)
        self.products[i] += torch.mul(values, others, out=scratch).sum(axes)


@dataclass(frozen=True)
class _Normalization:
    """What a group normalization does to pictures with these means and deviations: x * scale + shift."""

    norm: nn.GroupNorm
    mean: Tensor  # (B, C) in float64, of the channel's group
    inverse_deviation: Tensor  # likewise
    scale: Tensor  # (B, C)
    shift: Tensor  # (B, C)

    @classmethod
    def of(cls, x: Tensor, norm: nn.GroupNorm) -> _Normalization:
        moments, channels = _Moments(x), x.shape[3]
        scratch = x.new_empty(max(1, AT_ONCE // channels), channels)
        for i, picture in enumerate(x.flatten(1, 2)):
            for part in picture.split(len(scratch)):
                moments.add(i, part, part, scratch[: len(part)])
        mean = _group_mean(moments.sums, norm, x)
        variance = _group_mean(moments.products, norm, x) - mean.square()
        inverse_deviation = (variance.clamp(min=0) + norm.eps).rsqrt()
        scale = inverse_deviation * norm.weight
        return cls(norm, mean, inverse_deviation, scale.float(), (norm.bias - mean * scale).float())

    def apply(self, i: int, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The normalized values of a part (..., C) of picture i."""
        return torch.addcmul(self.shift[i], x, self.scale[i], out=out)

    def derive(self, upstream: Tensor, x: Tensor, moments: _Moments) -> Tensor:
        """The gradient with respect to x (B, H, W, C), written over the one with respect to the normalized values.

        moments: of `upstream`, with x.
        """
        weight, mean, inverse = self.norm.weight, self.mean, self.inverse_deviation
        mean_gradient = _group_mean(weight * moments.sums, self.norm, x)
        # of the gradient times the normalized values
        mean_product = (_group_mean(weight * moments.products, self.norm, x) - mean * mean_gradient) * inverse
        slope = -mean_product * inverse.square()
        shift = -mean_gradient * inverse - slope * mean
        scratch = x.new_empty(max(1, AT_ONCE // x[0, 0].numel()), *x.shape[2:])
        for i, (given, picture) in enumerate(zip(upstream, x, strict=True)):
            for part, pixels in zip(given.split(len(scratch)), picture.split(len(scratch)), strict=True):
                rest = torch.addcmul(shift[i].float(), pixels, slope[i].float(), out=scratch[: len(part)])
                torch.addcmul(rest, part, self.scale[i], out=part)
        return upstream


def _group_mean(sums: Tensor, norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Sums over each channel's pixels (B, C) -> the mean over its group, for each channel, (B, C)."""
    groups = sums.unflatten(1, (norm.num_groups, -1))
    count = groups.shape[2] * x.shape[1] * x.shape[2]
    return (groups.sum(2, keepdim=True) / count).expand_as(groups).flatten(1)
