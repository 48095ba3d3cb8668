"""Rows of numbers over token positions, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .plot import GRID, INK, PAPER

MARK = "#d62728"
HOT = (8, 48, 107)  # the colour of the greatest value; PAPER is that of 0
ROW, HEAD, MARGIN, FONT = 34, 26, 12, 13  # px
LONGEST_LABEL = 360  # px
WIDE, NARROW, READABLE = 38, 10, 32  # px: a cell with few positions, the least, and the least that holds a number


def draw_heatmap(
    names: Sequence[str], values: Tensor, marked: Sequence[Sequence[int]] = (), caption: str = ""
) -> Image.Image:
    """One row a name over the positions: values (R, N) of at least 0, each row in shades of its own greatest.

    The greatest value stands at the row's end, shares of it in the cells where they are wide enough. Rows that are not
    finite stay empty. marked: positions of each row that get a frame.
    """
    if values.ndim != 2 or not values.numel() or len(names) != len(values):
        raise ValueError(f"expected a row of values for each of {len(names)} names, got {tuple(values.shape)}")
    font = ImageFont.load_default(FONT)
    labels = [_shortened(name, font) for name in names]
    left = MARGIN + round(max(map(font.getlength, labels))) + 10
    count = values.shape[1]
    cell = max(NARROW, min(WIDE, 1400 // count))
    right = left + cell * count
    bottom = MARGIN + HEAD + ROW * len(labels)
    size = (right + 90, bottom + (HEAD if caption else 0) + MARGIN)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    every = 1 if cell >= READABLE * 0.6 else 5
    for position in range(0, count, every):
        draw.text((left + (position + 0.5) * cell, MARGIN + HEAD - 6), str(position), INK, font, anchor="ms")
    for row, (label, shares, marks) in enumerate(
        zip(labels, values.double().cpu(), [*marked, *[()] * len(labels)], strict=False)
    ):
        top = MARGIN + HEAD + row * ROW
        draw.text((left - 10, top + ROW / 2), label, INK, font, anchor="rm")
        _row(draw, font, (left, top, cell), shares, marks)
    if caption:
        draw.text((left, bottom + 8), caption, INK, font)
    return picture


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _row(
    draw: ImageDraw.ImageDraw, font: Font, place: tuple[int, int, int], values: Tensor, marks: Sequence[int]
) -> None:
    left, top, cell = place
    count, greatest = len(values), float(values.max())
    known = bool(values.isfinite().all())
    for i, value in enumerate(values.tolist()):
        box = (left + i * cell, top, left + (i + 1) * cell, top + ROW)
        share = max(0.0, value / greatest) if known and greatest > 0 else 0.0
        draw.rectangle(box, _shade(share), GRID)
        if known and cell >= READABLE:
            ink = PAPER if share > 0.5 else INK
            draw.text((box[0] + cell / 2, top + ROW / 2), f"{share:.2f}", ink, font, anchor="mm")
    for i in marks if known else ():
        draw.rectangle((left + i * cell, top, left + (i + 1) * cell, top + ROW), None, MARK, 2)
    note = f"{greatest:.3g}" if known else "-"
    draw.text((left + count * cell + 8, top + ROW / 2), note, INK, font, anchor="lm")


def _shade(share: float) -> str:
    paper = (255, 255, 255)
    return "#" + "".join(f"{round(p + (h - p) * share):02x}" for p, h in zip(paper, HOT, strict=True))


def _shortened(label: str, font: Font) -> str:
    label = " ".join(label.split())
    if font.getlength(label) <= LONGEST_LABEL:
        return label
    while label and font.getlength(label + " ...") > LONGEST_LABEL:
        label = label[:-1]
    return label + " ..."
