"""The loss history as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK, GRID = "#ffffff", "#303030", "#e0e0e0"
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 30, 26  # px around a panel's curves


def plot_history(history: Mapping[str, Tensor], width: int = 768, height: int = 200) -> Image.Image:
    """Each term (iterations, B) in a panel of `width` x `height` px of its own scale, one below the other.

    Of a batch, the mean is drawn strong and each picture faint. Values that are not finite leave gaps.
    """
    if not history or any(curve.ndim != 2 or not curve.numel() for curve in history.values()):
        raise ValueError("the loss history is empty: there is nothing to plot")
    if width < 200 or height < 100:
        raise ValueError(f"a plot needs at least 200 x 100 px, got {width} x {height}")
    picture = Image.new("RGB", (width, height * len(history)), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for i, (name, curve) in enumerate(history.items()):
        box = (LEFT, i * height + TOP, width - RIGHT, (i + 1) * height - BOTTOM)
        _panel(draw, font, box, name, curve.detach().double().cpu(), COLOURS[i % len(COLOURS)])
    return picture


Box = tuple[int, int, int, int]  # left, top, right, bottom


def _panel(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, box: Box, name: str, curve: Tensor,
    colour: str,
) -> None:  # fmt: skip
    left, top, right, bottom = box
    low, high = _limits(curve)
    draw.text((left, top - 20), name, INK, font)
    for value in ticks(low, high, 4):
        y = bottom - (value - low) / (high - low) * (bottom - top)
        draw.line((left, y, right, y), GRID)
        draw.text((left - 8, y), f"{value:.4g}", INK, font, anchor="rm")
    last = max(1, len(curve) - 1)
    for value in ticks(0, last, 6):
        x = left + value / last * (right - left)
        draw.line((x, bottom, x, bottom + 4), INK)
        draw.text((x, bottom + 6), f"{value:.0f}", INK, font, anchor="ma")
    draw.line((left, top, left, bottom, right, bottom), INK)

    def line(values: Tensor, ink: str, thickness: int) -> None:
        piece: list[tuple[float, float]] = []
        for i, value in enumerate([*values.tolist(), math.nan]):
            if math.isfinite(value):
                piece.append((left + i / last * (right - left), bottom - (value - low) / (high - low) * (bottom - top)))
                continue
            if len(piece) == 1:
                x, y = piece[0]
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), ink)
            elif piece:
                draw.line(piece, ink, thickness, joint="curve")
            piece = []

    if curve.shape[1] > 1:
        faint = "#" + "".join(f"{(int(colour[k : k + 2], 16) + 3 * 255) // 4:02x}" for k in (1, 3, 5))
        for values in curve.T:
            line(values, faint, 1)
    line(curve.nanmean(1), colour, 2)


def _limits(curve: Tensor) -> tuple[float, float]:
    """The least and the greatest value with a little room; never the same."""
    finite = curve[torch.isfinite(curve)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    room = 0.05 * (high - low) or max(abs(low) * 0.1, 1e-6)
    return low - room, high + room


def ticks(low: float, high: float, about: int) -> list[float]:
    """About so many round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
