"""Token reset: now and then the known pixels are put back and the picture encoded anew (paper, Algorithm A2, red)."""

from __future__ import annotations

import torch
from torch import Tensor

from .losses import MaskedL1Loss


class TokenReset:
    """Every `every` iterations the known pixels of the original are put back into the decoded picture.

    images: the original (1 or B, 3, H, W) in [0, 1].
    mask: (1 or B, 1, H, W): 1 = to be invented, 0 = known; a soft edge blends.
    """

    def __init__(self, images: Tensor, mask: Tensor, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"a token reset is due every 1 or more iterations, got {every}")
        checked = MaskedL1Loss(images, mask)  # the same shapes, the same demands on them
        self._original, self._known, self.every = checked.target, checked.known, every

    def due(self, iteration: int) -> bool:
        """Whether to reset after this iteration, counted from 0."""
        return (iteration + 1) % self.every == 0

    def __call__(self, images: Tensor) -> Tensor:
        """Decoded pictures (B, 3, H, W) -> the same with the known pixels put back, in [0, 1]."""
        if images.shape[2:] != self._original.shape[2:] or len(self._original) not in (1, len(images)):
            raise ValueError(
                f"the token reset holds pictures of shape {tuple(self._original.shape)}, but {tuple(images.shape)} are "
                "optimised: fit the picture and its mask to the tokenizer first"
            )
        return torch.lerp(images.clamp(0, 1), self._original.to(images), self._known.to(images))
