"""Sheets of small pictures: what was there, what came out, and what the judges say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tokenopt_core.plot import INK, PAPER

SIDE, GAP, LINE, FRAME = 96, 6, 14, 3  # px
RIGHT, WRONG = "#2e8b57", "#c0392b"
QUALITY = 82
LETTERS = 17  # as many fit below a tile


@dataclass(frozen=True)
class Tile:
    """A picture (3, S, S) in [0, 1] and a line or two below it; framed if the judges had a say: green is right."""

    picture: Tensor
    caption: str = ""
    right: bool | None = None


def draw(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Tiles in rows."""
    lines = max([1, *(tile.caption.count("\n") + 1 for row in rows for tile in row)])
    high = SIDE + GAP + lines * LINE
    width, height = GAP + max(map(len, rows)) * (SIDE + GAP), GAP + len(rows) * (high + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, row in enumerate(rows):
        for place, tile in enumerate(row):
            left, top = GAP + place * (SIDE + GAP), GAP + number * (high + GAP)
            sheet.paste(_thumbnail(tile.picture), (left, top))
            if tile.right is not None:
                colour = RIGHT if tile.right else WRONG
                pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=colour, width=FRAME)
            text = "\n".join(line[:LETTERS] for line in tile.caption.split("\n"))
            pen.multiline_text(
                (left + SIDE / 2, top + SIDE + 2), text, INK, font, anchor="ma", align="center", spacing=2
            )
    return sheet


def _thumbnail(picture: Tensor) -> Image.Image:
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def save(rows: Sequence[Sequence[Tile]], target: Path) -> None:
    draw(rows).save(target, "JPEG", quality=QUALITY, optimize=True)
