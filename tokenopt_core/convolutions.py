"""Two kinds of convolution with frozen weights that a CPU computes faster in another form.

The weights keep their names and shapes, and the numbers are the same to rounding. Other devices, weights that are
trained, and half precision, whose rounding would differ, go the usual way. `benchmarks/operations.py` measures both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import linear

# What a doubled row's four neighbours see of the three taps: the sums of those that fall on the same pixel.
_SEEN = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def convolve_doubled(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A 3 x 3 convolution with padding 1 of the picture doubled by repeating: (B, I, H, W) -> (B, O, 2 H, 2 W).

    Of the nine pixels that a tap looks at, only four differ: a transposed convolution of the small picture, with 4 x 4
    sums of the taps, is the same with four ninths of the products.
    """
    weight, bias = convolution.weight, convolution.bias
    if not _suits(x, weight):
        return convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    # the order in memory stays as it is, since what follows computes otherwise in the other
    order = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return F.conv_transpose2d(x, _sums(weight).contiguous(memory_format=order), bias, stride=2, padding=1)


def _sums(weight: Tensor) -> Tensor:
    """Taps (O, I, 3, 3) -> those of the transposed convolution (I, O, 4, 4).

    Anew each time: they take a few thousandths of an iteration, and so can never be those of other weights.
    """
    seen = _SEEN.to(weight)
    sums = weight.flatten(2) @ torch.kron(seen, seen).T
    return sums.unflatten(2, (4, 4)).transpose(0, 1)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return bool(
        x.device.type == "cpu"
        and x.dtype is weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
    )


class Patches(nn.Conv2d):
    """A convolution whose steps are as wide as its kernel, with the weights of another: the product of each patch.

    (B, I, H, W) -> (B, O, H / h, W / w). PyTorch's gradient of such a convolution is slow, that of a product is not.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        inside, outside = convolution.in_channels, convolution.out_channels
        size, bias = convolution.kernel_size, convolution.bias is not None
        super().__init__(inside, outside, size, size, bias=bias, device="meta")  # type: ignore[arg-type]
        self.load_state_dict(convolution.state_dict(), assign=True)
        self.requires_grad_(convolution.weight.requires_grad)

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.kernel_size
        divided = not (images.shape[-2] % height or images.shape[-1] % width)
        if not (divided and _suits(images, self.weight)):
            return super().forward(images)
        patches = images.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def embed_patches_by_products(tower: nn.Module) -> None:
    """Replaces a vision transformer's embedding of its patches, open_clip's or timm's, by `Patches`."""
    for holder, name in ((tower, "conv1"), (getattr(getattr(tower, "trunk", None), "patch_embed", None), "proj")):
        convolution = getattr(holder, name, None)
        if type(convolution) is nn.Conv2d and _cuts_patches(convolution):
            setattr(holder, name, Patches(convolution))


def _cuts_patches(convolution: nn.Conv2d) -> bool:
    plain = convolution.dilation == (1, 1) and convolution.groups == 1
    return plain and convolution.stride == convolution.kernel_size and convolution.padding in ((0, 0), "valid")
