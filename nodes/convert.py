"""Between ComfyUI's tensors and the core's: layouts, checks, the gradient context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def to_bchw(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, C) -> (B, 3, H, W) in [0, 1], a copy; alpha is dropped."""
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or not image.numel():
        raise ValueError(f"expected pictures of shape (batch, height, width, 3), got {tuple(image.shape)}")
    if not torch.isfinite(image).all():
        raise ValueError("the picture holds values that are not numbers (NaN or infinity): the file or the node it "
                         "comes from is broken")  # fmt: skip
    return image[..., :3].permute(0, 3, 1, 2).float().clone(memory_format=torch.contiguous_format).clamp_(0, 1)


def to_bhwc(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> IMAGE (B, H, W, 3) in [0, 1], on the CPU."""
    return images.detach().clamp(0, 1).permute(0, 2, 3, 1).float().cpu().contiguous()


def fit_square(images: Tensor, size: int) -> Tensor:
    """The middle square of (B, 3, H, W), resized to (B, 3, size, size); a picture that fits is left as it is."""
    if images.shape[-2:] == (size, size):
        return images
    side = min(images.shape[-2:])
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    square = images[..., top : top + side, left : left + side]
    return F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def to_pil(image: Tensor) -> Image.Image:
    """One picture (3, H, W), as a preview."""
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
