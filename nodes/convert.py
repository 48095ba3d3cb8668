"""Between ComfyUI's tensors and the core's: layouts, checks, the gradient context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


@contextmanager
def gradients() -> Iterator[None]:
    """Undoes the executor's inference mode, so that modules built, loaded and run inside can be differentiated.

    Tensors that come from outside are inference tensors: clone them inside before they meet a gradient. Synchronous
    nodes only: the flag belongs to the thread, and an await inside would leak it into another node.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


def as_bchw(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, C) -> (B, 3, H, W) on the CPU, the values as they are; alpha is dropped."""
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or not image.numel():
        raise ValueError(f"expected pictures of shape (batch, height, width, 3), got {tuple(image.shape)}")
    if not torch.isfinite(image).all():
        raise ValueError("the picture holds values that are not numbers (NaN or infinity): the file or the node it "
                         "comes from is broken")  # fmt: skip
    return image[..., :3].permute(0, 3, 1, 2).cpu()  # started with --gpu-only, ComfyUI hands some over on the GPU


def to_bchw(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, C) -> (B, 3, H, W) in [0, 1], a copy; alpha is dropped."""
    return as_bchw(image).float().clone(memory_format=torch.contiguous_format).clamp_(0, 1)


def to_mask(mask: Tensor, images: Tensor) -> Tensor:
    """MASK (B, H, W) or (H, W) -> (1 or B, 1, H, W) in [0, 1], a copy; resized, as ComfyUI does, to `images`' size."""
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or not mask.numel():
        raise ValueError(f"expected masks of shape (batch, height, width), got {tuple(mask.shape)}")
    if not torch.isfinite(mask).all():
        raise ValueError("the mask holds values that are not numbers (NaN or infinity)")
    if len(mask) not in (1, len(images)) and len(images) != 1:
        raise ValueError(f"{len(mask)} masks do not pair up with {len(images)} pictures: give one, or one a picture")
    mask = mask[:, None].float().cpu().clone()
    if mask.shape[2:] != images.shape[2:]:
        mask = F.interpolate(mask, images.shape[2:], mode="bilinear")
    return mask.clamp_(0, 1)


def to_bhwc(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> IMAGE (B, H, W, 3) in [0, 1], on the CPU."""
    return images.detach().clamp(0, 1).permute(0, 2, 3, 1).float().cpu().contiguous()


def from_pil(picture: Image.Image) -> Tensor:
    """A picture of Pillow's as IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def to_pil(image: Tensor) -> Image.Image:
    """One picture (3, H, W), as a preview."""
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
