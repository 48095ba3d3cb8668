"""Masks (B, 1, H, W): 1 is to be invented, 0 is known, in between is a soft edge (paper, Section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Fill = Literal["grey", "blur", "noise", "best"]
FILLS: tuple[Fill, ...] = ("grey", "blur", "noise")
CHOICES: tuple[Fill, ...] = (*FILLS, "best")
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
    if fill not in CHOICES:
        raise ValueError(f"unknown fill {fill!r}: expected one of {', '.join(CHOICES)}")


def fill_hole(
    images: Tensor,
    mask: Tensor,
    fill: Fill = "grey",
    seed: int = 0,
    reconstruct: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Pictures (B, 3, H, W) whose masked part is replaced, blended along the mask's soft edge.

    fill: "grey"; "blur", the colours of the surroundings carried inward; "noise" around grey, picture i of the batch
        from seed + i; or "best": for each picture the one of them from which `reconstruct` gets nearest to what is
        known (mean absolute difference).
    reconstruct: what a tokenizer makes of pictures, (B, 3, H, W) to the same. Which filling misleads an encoder least
        depends on what is hidden: grey leaves a background's subject alone, blur goes on with half a subject.
    """
    check_fill(fill)
    if fill == "best":
        if reconstruct is None:
            raise ValueError("the best fill is found by what a tokenizer makes of each: expected `reconstruct`")
        return _best(images, mask, seed, reconstruct)
    if fill == "grey":
        filling = torch.full_like(images, 0.5)
    elif fill == "noise":
        draws = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed + i))
                 for i in range(len(images))]  # fmt: skip
        filling = (0.5 + NOISE_STD * torch.stack(draws)).clamp(0, 1).to(images)
    else:
        filling = _surroundings(images, mask)
    return torch.lerp(images, filling, mask.expand(len(images), 1, *images.shape[-2:]))


def _best(images: Tensor, mask: Tensor, seed: int, reconstruct: Callable[[Tensor], Tensor]) -> Tensor:
    """Of each picture's fillings the one that is reconstructed best where the picture is known; of equals the first."""
    tried = torch.stack([fill_hole(images, mask, fill, seed) for fill in FILLS])
    errors = [((reconstruct(filled).to(images) - images).abs() * (1 - mask)).mean((1, 2, 3)) for filled in tried]
    chosen = torch.stack(errors).nan_to_num(nan=math.inf).argmin(0)
    return tried[chosen, torch.arange(len(images), device=images.device)]


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
