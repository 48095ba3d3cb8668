"""Panels of measured points, side by side: linear axes from zero, with a straight line to hold them against."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tokenopt_core.plot import COLOURS, GRID, INK, PAPER, ticks

LINE = "#9a9a9a"
FINER = 2  # drawn so many times larger and scaled down, for smooth lines


@dataclass(frozen=True)
class Panel:
    """What was measured at each x, and the straight line that best fits all but the last point (least squares)."""

    title: str
    across: str
    upwards: str
    points: Sequence[tuple[float, float]]

    def line(self, x: float) -> float:
        """What it would be at x if it grew as it does before the last point."""
        slope, start = linear_regression(*zip(*self.points[:-1], strict=True))
        return start + slope * x

    @property
    def against_line(self) -> float:
        """The last point as a share of the line's value there: 1 is linear, less is better."""
        x, y = self.points[-1]
        return y / self.line(x)


def draw(panels: Sequence[Panel], width: int = 420, height: int = 320) -> Image.Image:
    """A picture of all panels, each of `width` x `height` px."""
    picture = Image.new("RGB", (FINER * width * len(panels), FINER * height), PAPER)
    pen = ImageDraw.Draw(picture)
    for i, panel in enumerate(panels):
        _panel(pen, panel, FINER * i * width, FINER * width, FINER * height, COLOURS[i % len(COLOURS)])
    return picture.resize((width * len(panels), height), Image.Resampling.LANCZOS)


def _panel(pen: ImageDraw.ImageDraw, panel: Panel, start: int, width: int, height: int, colour: str) -> None:
    font, large = ImageFont.load_default(12 * FINER), ImageFont.load_default(14 * FINER)
    left, right, top, bottom = start + 56 * FINER, start + width - 22 * FINER, 56 * FINER, height - 46 * FINER
    most_x = panel.points[-1][0] * 1.04
    most_y = 1.08 * max(panel.line(panel.points[-1][0]), *(y for _, y in panel.points))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / most_x * (right - left), bottom - y / most_y * (bottom - top)

    pen.text((left, 8 * FINER), panel.title, INK, large)
    pen.text((left, 30 * FINER), panel.upwards, INK, font)
    pen.text(((left + right) / 2, height - 18 * FINER), panel.across, INK, font, anchor="ma")
    for value in ticks(0, most_y, 5):
        pen.line((*at(0, value), *at(most_x, value)), GRID, FINER)
        pen.text((left - 8 * FINER, at(0, value)[1]), f"{value:.4g}", INK, font, anchor="rm")
    for x, _ in panel.points:
        pen.line((*at(x, 0), at(x, 0)[0], bottom + 4 * FINER), INK, FINER)
    for x in _apart([x for x, _ in panel.points], (right - left) / most_x, 16 * FINER):
        pen.text((at(x, 0)[0], bottom + 7 * FINER), f"{x:g}", INK, font, anchor="ma")
    pen.line((left, top, left, bottom, right, bottom), INK, FINER)
    last = panel.points[-1][0]
    slope = panel.line(1) - panel.line(0)
    first = max(0.0, -panel.line(0) / slope) if slope > 0 else 0.0  # where it comes out of the axis below
    pen.line((*at(first, panel.line(first)), *at(last, panel.line(last))), LINE, FINER)
    pen.line([at(x, y) for x, y in panel.points], colour, 2 * FINER, joint="curve")
    for x, y in panel.points:
        across, up = at(x, y)
        pen.ellipse((across - 4 * FINER, up - 4 * FINER, across + 4 * FINER, up + 4 * FINER), colour)
    legend = "fits all but the last"
    end = right - font.getlength(legend) - 8 * FINER
    pen.line((end - 22 * FINER, 37 * FINER, end, 37 * FINER), LINE, FINER)
    pen.text((right, 37 * FINER), legend, INK, font, anchor="rm")


def _apart(values: Sequence[float], scale: float, room: float) -> list[float]:
    """Those of the values, from the last one down, whose labels do not touch."""
    kept: list[float] = []
    for value in reversed(values):
        if not kept or (kept[-1] - value) * scale >= room:
            kept.append(value)
    return kept
