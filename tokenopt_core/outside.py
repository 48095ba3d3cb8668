"""Pictures from outside the small world that a tokenizer knows: told by what comes back of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .weights import read_config

FILE = "world.json"  # beside the config.json of a tokenizer with a small world; by `python -m training.outside`
MOST_HIDDEN = 0.5  # share of a picture; where more is hidden, too little is left to compare
CORRELATION = 10.0  # dB that a correlation of 1 counts
FAINTEST = 1e-6  # squared: what differs by less counts as the same
LONGEST, MOST = 200, 100  # characters; dB


@dataclass(frozen=True)
class KnownWorld:
    """What a tokenizer knows, in words, and the likeness in dB below which a picture shows something else."""

    what: str
    least_likeness: float

    def strangers(self, images: Tensor, decoded: Tensor, known: Tensor) -> Tensor:
        """Which pictures (B, 3, S, S) are from outside, (B,) of bool, by what they are decoded to.

        known: (B or 1, 1, S, S), 1 where the encoder saw the picture and 0 where it was hidden. A picture that is
        hidden by more than half is never called a stranger.
        """
        known = known.expand(len(images), -1, -1, -1)
        seen = known.mean((1, 2, 3)) >= 1 - MOST_HIDDEN
        return seen & (likeness(images, decoded, known) < self.least_likeness)


def likeness(images: Tensor, decoded: Tensor, known: Tensor | None = None) -> Tensor:
    """How like pictures (B, 3, S, S) what they are decoded to is, (B,): on known pixels (B, 1, S, S), in dB.

    The peak signal-to-noise ratio, and up to 10 dB more for the correlation of the colours about their means. The
    ratio alone takes dark and flat pictures for well kept whatever they show, the correlation alone bare outlines.
    """
    weight = torch.ones_like(images[:, :1]) if known is None else known
    weight = weight / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)

    def mean(values: Tensor) -> Tensor:  # (B, 3, S, S) -> (B,)
        return (values * weight).sum((2, 3)).mean(1)

    decoded = decoded.clamp(0, 1)
    a, b = (x - (x * weight).sum((2, 3), keepdim=True) for x in (images, decoded))
    correlation = mean(a * b) / ((mean(a * a) + FAINTEST) * (mean(b * b) + FAINTEST)).sqrt()
    return -10 * (mean((images - decoded).square()) + FAINTEST).log10() + CORRELATION * correlation


def read_world(path: Path) -> KnownWorld | None:
    """What a file such as {"what": "a small world of ...", "least_likeness": 23.5} says; None if there is none.

    What else stands there, how it was measured for instance, is for people. Raises ValueError for other content.
    """
    if not path.is_file():
        return None
    entries = read_config(path)
    what, least = entries.get("what"), entries.get("least_likeness")
    if not isinstance(what, str) or not what.isprintable() or not 0 < len(what) <= LONGEST:
        raise ValueError(f'{path}: expected "what", a text of up to {LONGEST} characters, got {what!r:.60}')
    if isinstance(least, bool) or not isinstance(least, int | float) or abs(least) > MOST:
        raise ValueError(f'{path}: expected "least_likeness", a number of dB of up to {MOST}, got {least!r:.60}')
    return KnownWorld(what, float(least))
