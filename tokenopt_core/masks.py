"""Masks (B, 1, H, W): 1 is to be invented, 0 is known, in between is a soft edge (paper, Section 4.3)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Fill = Literal["grey", "blur", "noise"]
FILLS: tuple[Fill, ...] = ("grey", "blur", "noise")
ROUNDING = 1e-5  # of a blurred mask
NARROWEST = 0.05  # px: a neighbour's share in a blur as narrow as this is 0 in float32
NOISE_STD = 0.25  # of the noise fill, around grey


def gaussian_blur(images: Tensor, std: float) -> Tensor:
    """Gaussian blur of (B, C, H, W), its standard deviation in pixels; edges are replicated. 0 changes nothing."""
    if std < NARROWEST:
        return images
    reach = math.ceil(3 * std)
    x = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (x / std) ** 2)
    kernel = kernel / kernel.sum()
    flat = images.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))
    return flat.view_as(images)


def soften(mask: Tensor, feather: float) -> Tensor:
    """The mask with a soft edge: a Gaussian blur of standard deviation `feather` in pixels (paper, appendix C.1)."""
    if not (math.isfinite(feather) and feather >= 0):
        raise ValueError(f"the feather must be a finite number of pixels of at least 0, got {feather}")
    soft = gaussian_blur(mask, feather)
    soft = torch.where(soft < ROUNDING, 0, soft)  # far from the edge nothing changes, to the last bit
    return torch.where(soft > 1 - ROUNDING, 1, soft)


def check_fill(fill: str) -> None:
    """ValueError for a fill that does not exist."""
    if fill not in FILLS:
        raise ValueError(f"unknown fill {fill!r}: expected one of {', '.join(FILLS)}")


def fill_hole(images: Tensor, mask: Tensor, fill: Fill = "grey", seed: int = 0) -> Tensor:
    """Pictures (B, 3, H, W) whose masked part is replaced, blended along the mask's soft edge.

    fill: "grey"; "blur", the colours of the surroundings carried inward; or "noise" around grey, picture i of the
        batch from seed + i.
    """
    check_fill(fill)
    if fill == "grey":
        filling = torch.full_like(images, 0.5)
    elif fill == "noise":
        draws = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed + i))
                 for i in range(len(images))]  # fmt: skip
        filling = (0.5 + NOISE_STD * torch.stack(draws)).clamp(0, 1).to(images)
    else:
        filling = _surroundings(images, mask)
    return torch.lerp(images, filling, mask.expand(len(images), 1, *images.shape[-2:]))


def _surroundings(images: Tensor, mask: Tensor) -> Tensor:
    """Known colours spread into the hole: blurs of growing width, each filling what the narrower ones left open."""
    known = (mask < 0.01).to(images).expand(len(images), 1, *images.shape[-2:])
    filling, covered = images * known, known
    size = max(images.shape[-2:])
    std = max(1.0, size / 64)
    while std < size:
        weight = gaussian_blur(known, std)
        colours = gaussian_blur(images * known, std) / weight.clamp(min=1e-6)
        share = (weight * 20).clamp(0, 1) * (1 - covered)
        filling, covered = filling + share * colours, covered + share
        std *= 2
    mean = (images * known).mean((2, 3), keepdim=True) / known.mean((2, 3), keepdim=True).clamp(min=1e-6)
    nothing_known = (known.amax((1, 2, 3), keepdim=True) == 0).to(images)
    return (filling + (1 - covered) * (mean + 0.5 * nothing_known)).clamp(0, 1)
