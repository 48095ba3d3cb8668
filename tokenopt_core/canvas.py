"""Any picture in, the same picture out: the square that a tokenizer sees, and its way back into the original.

Pictures are (B, 3, H, W) in [0, 1], masks (B, 1, H, W): above 0 is to be changed, 0 stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["crop", "pad", "mask"]
MODES: tuple[Mode, ...] = ("crop", "pad", "mask")


MOST_PADDING = 16  # times the picture itself; of squares of this many px and more, smaller ones are no trouble
PADDED = 2048


class Square(NamedTuple):
    """A square in pixels of the original; where it was padded, it reaches beyond the picture."""

    top: int
    left: int
    side: int


@dataclass(frozen=True)
class Placement:
    """Where the squares of a batch lie in originals of `height` x `width` px, one square a picture."""

    height: int
    width: int
    squares: tuple[Square, ...]


def fit(
    images: Tensor, mask: Tensor | None, size: int, mode: Mode = "crop", context: float = 0.5
) -> tuple[Tensor, Tensor, Placement]:
    """Squares (B, 3, size, size) and their masks (B, 1, size, size) out of pictures and masks of any size.

    "crop" takes the middle square, "pad" the whole picture with its edge pixels repeated, "mask" the square around
    what the mask marks, larger than that by `context` as a share of its side and moved to lie inside the picture. It is
    padded only where the marked area is itself longer than the picture's shorter side. One mask may serve all
    pictures; without a mask, everything is marked.

    Raises:
        ValueError: an unknown mode, a size below 1, a negative context, as many masks as fit neither one nor each
            picture, a mask of another size than the pictures, in mode "mask" one that marks nothing, or a picture so
            long that its square would be nearly all padding.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
    if size < 1 or not (math.isfinite(context) and context >= 0):
        raise ValueError(f"expected a size of at least 1 px and a context of at least 0, got {size} and {context}")
    if mask is None and mode == "mask":
        raise ValueError("the mode mask needs a mask to put the square around: give one, or choose crop or pad")
    height, width = images.shape[-2:]
    masks = None if mask is None else _masks_for(mask, len(images), height, width)
    if masks is not None and mode == "mask":
        squares = tuple(_around(marked > 0, context, i) for i, marked in enumerate(masks[:, 0]))
    else:
        side = min(height, width) if mode == "crop" else max(height, width)
        squares = (Square((height - side) // 2, (width - side) // 2, side),) * len(images)
    longest = max(square.side for square in squares)
    if longest >= PADDED and longest**2 > MOST_PADDING * height * width:
        raise ValueError(
            f"the square around a picture of {width} x {height} px would be {longest} px wide and nearly all of it "
            "padding: choose the mode crop, or cut the picture first"
        )
    pictures = torch.cat([resize(_cut(image, square), size) for image, square in zip(images, squares, strict=True)])
    if masks is None:
        marks = torch.ones_like(pictures[:, :1])
    else:
        marks = torch.cat([resize(_cut(m, square), size, "bilinear") for m, square in zip(masks, squares, strict=True)])
    return pictures, marks, Placement(height, width, squares)


def stitch(
    original: Tensor, edited: Tensor, placement: Placement, mask: Tensor | None = None, feather: int = 0
) -> Tensor:
    """The originals, (B, 3, H, W), with the edited squares, (B, 3, S, S) of any S, back in their place.

    Only what the mask marks inside the square changes, by as much as the mask says; without a mask, the square. Every
    other pixel keeps its bits. Over the first `feather` px from the border of that area inwards the edit fades in along
    a Gaussian; at the border of the picture itself it does not. One original, square or mask serves a whole batch of
    edits.

    Raises:
        ValueError: pictures, masks and placement that do not belong together, by number or by size, edits that are not
            square, or a negative feather.
    """
    height, width = original.shape[-2:]
    if (height, width) != (placement.height, placement.width):
        raise ValueError(
            f"the square was cut out of a picture of {placement.width} x {placement.height} px, the original has "
            f"{width} x {height}: give the picture that it was cut out of"
        )
    if edited.shape[-1] != edited.shape[-2]:
        raise ValueError(f"the edited picture must be square, got {edited.shape[-1]} x {edited.shape[-2]} px")
    batch = len(edited)
    for name, count in (("original pictures", len(original)), ("fitted pictures", len(placement.squares))):
        if count not in (1, batch):
            raise ValueError(f"expected {count} edited pictures, one for each of the {name}, got {batch}")
    if feather < 0:
        raise ValueError(f"the feather is a number of px of at least 0, got {feather}")
    if mask is not None:
        mask = _masks_for(mask, batch, height, width)
    squares = placement.squares * (batch if len(placement.squares) == 1 else 1)
    result = original.expand(batch, -1, -1, -1).clone()
    for i, (top, left, side) in enumerate(squares):
        rows, columns = _seen(top, side, height), _seen(left, side, width)
        inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        new = resize(edited[i : i + 1].float().clamp(0, 1), side)[..., inside[0], inside[1]]
        marked = torch.ones_like(new[:, :1]) if mask is None else mask[i : i + 1, :, rows, columns].float().clamp(0, 1)
        borders = (columns.start == 0, columns.stop == width, rows.start == 0, rows.stop == height)
        weight = marked * fade(marked > 0, feather, borders) if feather else marked
        old = result[i : i + 1, :, rows, columns]
        old.copy_(torch.where(weight > 0, torch.lerp(old.float(), new, weight), old))
    return result


def resize(images: Tensor, size: int, mode: Literal["bicubic", "bilinear"] = "bicubic") -> Tensor:
    """(B, C, S, S) -> (B, C, size, size) in [0, 1], antialiased; squares of that size are left as they are."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode=mode, antialias=True).clamp(0, 1)


def fade(area: Tensor, feather: int, borders: tuple[bool, bool, bool, bool]) -> Tensor:
    """Weights for an area, (B, 1, H, W) of bool: near 0 at its edge, 1 from `feather` px inside on, 0 outside.

    On a straight edge that is the integral of a Gaussian of standard deviation feather / 2 px. `borders` (left, right,
    top, bottom) says beyond which sides the area goes on instead of ending.
    """
    if all(borders) and area.all():
        return area.float()
    offsets = torch.arange(-feather, feather + 1, device=area.device) / feather
    kernel = torch.softmax(-2 * offsets.square(), 0)
    blurred = F.pad(area.float(), [feather * goes_on for goes_on in borders], mode="replicate")
    blurred = F.pad(blurred, [feather * (not goes_on) for goes_on in borders])
    for axis in (-1, -2):  # shifted sums: many times as fast as a convolution of a single large channel
        length = blurred.shape[axis] - 2 * feather
        shifted = [blurred.narrow(axis, i, length) for i in range(len(kernel))]
        blurred = shifted[0] * kernel[0]
        for part, share in zip(shifted[1:], kernel[1:].tolist(), strict=True):
            blurred.add_(part, alpha=share)
    return (2 * blurred - 1).clamp(0, 1)


def _masks_for(mask: Tensor, batch: int, height: int, width: int) -> Tensor:
    """The masks, one a picture."""
    if len(mask) not in (1, batch):
        raise ValueError(f"expected a single mask or one for each of the {batch} pictures, got {len(mask)} masks")
    if mask.shape[-2:] != (height, width):
        raise ValueError(
            f"expected a mask of the picture's {width} x {height} px, got {mask.shape[-1]} x {mask.shape[-2]}"
        )
    return mask.expand(batch, -1, -1, -1)


def _around(marked: Tensor, context: float, index: int) -> Square:
    """The square around what is marked, (H, W) of bool, grown by `context` and moved into the picture."""
    rows, columns = (marked.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        raise ValueError(
            f"the mask of picture {index + 1} is empty: the mode mask needs a marked area to put the square around; "
            "mark what is to be changed, or choose crop or pad"
        )
    height, width = marked.shape
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    # context never pads: it stops at the picture's shorter side; a longer area does pad, so that the square covers it
    side = round(min(longest * (1 + context), max(longest, min(height, width))))
    top = _start(rows[0] + rows[-1] + 1, side, height)
    return Square(top, _start(columns[0] + columns[-1] + 1, side, width), side)


def _start(ends: int, side: int, length: int) -> int:
    """Where a square begins on an axis: around the middle of an area, whose ends' sum is given, and inside."""
    if side >= length:
        return (length - side) // 2
    return min(max((ends - side) // 2, 0), length - side)


def _cut(image: Tensor, square: Square) -> Tensor:
    """(C, H, W) -> (1, C, side, side) in [0, 1]; beyond the picture its edge pixels are repeated."""
    top, left, side = square
    height, width = image.shape[-2:]
    inside = image[None, :, _seen(top, side, height), _seen(left, side, width)].float().clamp(0, 1)
    beyond = (-left, left + side - width, -top, top + side - height)
    return F.pad(inside, [max(0, length) for length in beyond], mode="replicate")


def _seen(start: int, side: int, length: int) -> slice:
    """What of a square is inside the picture, on one axis."""
    return slice(max(start, 0), min(start + side, length))
