"""The convolutional VQGAN of MaskGIT (Chang et al., 2022): pictures to a grid of features, and back.

Alone it is the paper's 2D baseline; its decoder is also the second stage of the first TiTok models.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..convolutions import convolve_doubled
from ..winograd import convolve_normed
from .config import PIXEL_CODES

BLOCKS = 2  # residual blocks per resolution


@dataclass(frozen=True)
class GridConfig:
    """The shape of a VQGAN; the defaults are the published one's.

    channels: per resolution, from the finest; each of the others is half the one before.
    """

    image_size: int = 256
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    token_dim: int = 256
    codebook_size: int = PIXEL_CODES
    l2_normalize: bool = False

    @property
    def grid(self) -> int:
        """Tokens along one side of the picture."""
        return self.image_size // 2 ** (len(self.channels) - 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two convolutions; where the width changes, the skip is a 1 x 1 convolution of their output."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = _norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.nin_shortcut = (
            nn.Conv2d(channels_out, channels_out, 1, bias=False) if channels_in != channels_out else None
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H, W)
        y = convolve_normed(x, self.norm1, self.conv1)
        y = convolve_normed(y, self.norm2, self.conv2)
        # of y, not of x as elsewhere: the published weights were trained so
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


class Level(nn.Module):
    """The residual blocks of one resolution, and in the decoder the convolution that follows doubling it."""

    def __init__(self, channels_in: int, channels_out: int, upsample: bool = False) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * BLOCKS
        self.block = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.upsample_conv = nn.Conv2d(channels_out, channels_out, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is not None:
            x = convolve_doubled(x, self.upsample_conv)
        return x


class PixelEncoder(nn.Module):
    """Pictures (B, 3, H, W) -> features (B, D, H / 16, W / 16)."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        channels, top = config.channels, config.channels[-1]
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        widths = (channels[0], *channels)
        self.down = nn.ModuleList(Level(a, b) for a, b in pairwise(widths))
        self.mid = nn.ModuleList(ResidualBlock(top, top) for _ in range(BLOCKS))
        self.norm_out = _norm(top)
        self.conv_out = nn.Conv2d(top, config.token_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for number, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if number else x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class PixelDecoder(nn.Module):
    """Features (B, D, H, W) -> pictures (B, 3, 16 H, 16 W)."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        channels, top = config.channels, config.channels[-1]
        self.conv_in = nn.Conv2d(config.token_dim, top, 3, padding=1)
        self.mid = nn.ModuleList(ResidualBlock(top, top) for _ in range(BLOCKS))
        widths = (*channels, top)  # level i takes what level i + 1 puts out
        self.up = nn.ModuleList(Level(widths[i + 1], widths[i], upsample=i > 0) for i in range(len(channels)))
        self.norm_out = _norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.conv_in(features)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return convolve_normed(x, self.norm_out, self.conv_out)
