"""Several pictures on one, each with a line below."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .plot import INK, PAPER

LEAST, MOST = 128, 256  # px: a tile's side
WIDEST = 4096  # px: the whole sheet, as far as tiles may shrink
LINE, GAP, FONT = 20, 8, 12  # px


def contact_sheet(images: Tensor, captions: Sequence[str]) -> Image.Image:
    """Pictures (B, 3, H, W) in about [0, 1] as tiles of a picture that is about square, row by row."""
    if images.ndim != 4 or not len(images) or len(captions) != len(images):
        raise ValueError(f"expected a caption for each picture, got {len(captions)} for {tuple(images.shape)}")
    columns = math.ceil(math.sqrt(len(images)))
    side = min(max(LEAST, min(MOST, images.shape[-1])), max(LEAST, WIDEST // columns - GAP))
    font = ImageFont.load_default(FONT)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (GAP + columns * (side + GAP), GAP + rows * (side + LINE + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = GAP + i % columns * (side + GAP), GAP + i // columns * (side + LINE + GAP)
        pixels = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        enlarged = side > images.shape[-1]
        tile = Image.fromarray(pixels).resize(
            (side, side), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
        )
        sheet.paste(tile, (x, y))
        draw.text((x + side / 2, y + side + LINE / 2), caption, INK, font, anchor="mm")
    return sheet
