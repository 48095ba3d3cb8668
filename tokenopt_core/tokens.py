"""Operations on the tokens themselves: copy and paste, and features to start from without a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .presets import LONGEST_NAME, Presets, spelled
from .tokenizer import Tokenizer

Start = Literal["normal", "statistics", "codes"]
STARTS: tuple[Start, ...] = ("normal", "statistics", "codes")

_RANGE = re.compile(r"(\d+)\s*(?:-\s*(\d+))?")


def parse_positions(positions: str | Sequence[int], num_tokens: int, presets: Presets | None = None) -> list[int]:
    """Token positions from text such as "31" or "3, 7, 12-15", or from a list of ints; sorted, each once.

    presets: the names that may stand in the text beside numbers, "lighting, 7", and the positions of each.
    Raises ValueError for no position at all, an unknown name, a range that runs backwards and one beyond
    `num_tokens` - 1.
    """
    if isinstance(positions, str):
        ranges = _parse(positions, presets)
    else:
        ranges = [(int(position), int(position)) for position in positions]
    if not ranges:
        raise ValueError(f"no token positions given: expected numbers of 0 to {num_tokens - 1}, such as 3, 7, 12-15")
    found: set[int] = set()
    for first, last in ranges:
        beyond = next((position for position in (first, last) if not 0 <= position < num_tokens), None)
        if beyond is not None:  # before the numbers between them are written down
            raise ValueError(f"there is no token position {beyond}: this tokenizer has 0 to {num_tokens - 1}")
        found.update(range(first, last + 1))
    return sorted(found)


def _parse(text: str, presets: Presets | None) -> list[tuple[int, int]]:
    """The first and the last position of each range."""
    found: list[tuple[int, int]] = []
    for part in filter(None, (p.strip() for p in re.split(r"[,;\n]", text))):
        if any(c.isalpha() for c in part):
            found.extend((position, position) for position in _named(part, presets))
            continue
        match = _RANGE.fullmatch(part)
        if not match or len(part) > 20:
            raise ValueError(f"cannot read the token positions {part[:40]!r}: expected numbers and ranges: 3, 7, 12-15")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"the range {part} runs backwards: write {last}-{first}")
        if last - first > 100_000:
            raise ValueError(f"the range {part} is longer than any tokenizer's tokens")
        found.append((first, last))
    return found


def _named(name: str, presets: Presets | None) -> tuple[int, ...]:
    """The positions of an attribute."""
    if presets is None:
        raise ValueError(
            f"cannot read the token positions {name[:40]!r}: expected numbers and ranges: 3, 7, 12-15. Names of "
            "attributes are read only where the tokenizer is given, too: connect it"
        )
    if spelled(name) not in presets:
        known = f"it has {', '.join(presets)}" if presets else "it has none: give numbers and ranges: 3, 7, 12-15"
        raise ValueError(f"this tokenizer knows no attribute {name[:LONGEST_NAME]!r}: {known}")
    return presets[spelled(name)]


def copy_paste(
    target: Tensor,
    reference: Tensor,
    positions: str | Sequence[int],
    strength: float = 1.0,
    presets: Presets | None = None,
) -> Tensor:
    """The target's features with the reference's at some positions (paper, Section 3.3).

    target, reference: features (B, N, D) of one tokenizer; a batch of one goes with any other.
    positions: "3, 7, 12-15", or a list of ints; with `presets`, `tokenizer.presets` for instance, the text may name
        attributes, too: "lighting, 7".
    strength: 1 replaces; below 1 the two are mixed before quantization, 0 leaves the target.
    """
    if target.ndim != 3 or reference.ndim != 3 or target.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"target and reference do not fit: features of shape {tuple(target.shape)} and {tuple(reference.shape)} "
            "come from different tokenizers"
        )
    if 1 not in (len(target), len(reference)) and len(target) != len(reference):
        raise ValueError(
            f"{len(target)} targets and {len(reference)} references do not pair up: give as many of one as of the "
            "other, or one of either"
        )
    if not (math.isfinite(strength) and 0 <= strength <= 1):
        raise ValueError(f"the strength must be a number from 0 to 1, got {strength}")
    chosen = parse_positions(positions, target.shape[1], presets)
    count = max(len(target), len(reference))
    pasted = target.expand(count, -1, -1).clone()
    # torch.lerp is exact at both ends: a strength of 1 gives the reference's very numbers
    pasted[:, chosen] = torch.lerp(pasted[:, chosen], reference[:, chosen].to(pasted), strength)
    return pasted


def random_features(
    tokenizer: Tokenizer,
    batch: int,
    std: float = 0.3,
    generator: torch.Generator | None = None,
    start: Start = "normal",
) -> Tensor:
    """Features (batch, N, D) to start from without a picture (paper, Sections 4.2 and 5.5), on the CPU.

    start: "normal" draws each number from a normal distribution of this `std`. "statistics" draws it around the mean
        of its position and channel over real pictures, with `std` times the spread there; only for a tokenizer that
        comes with these statistics. "codes" draws codes at random (the paper's worse variant) and ignores `std`.
    Raises ValueError for a tokenizer that lacks what the start needs.
    """
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}: expected one of {', '.join(STARTS)}")
    if batch < 1:
        raise ValueError(f"the batch must be at least 1, got {batch}")
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"std must be a finite number of at least 0, got {std}")
    shape = (batch, tokenizer.num_tokens, tokenizer.feature_dim)
    if start == "codes":
        if tokenizer.codebook_size is None:
            raise ValueError(f"{tokenizer} is a VAE: it has no codes to draw from, start from normal noise")
        numbers = torch.randint(tokenizer.codebook_size, shape[:2], generator=generator)
        return tokenizer.lookup(numbers.to(next(tokenizer.parameters()).device)).float().cpu()
    noise = torch.randn(shape, generator=generator) * std
    if start == "normal":
        return noise
    if tokenizer.statistics is None:
        raise ValueError(f"{tokenizer} comes without statistics of its features: start from normal noise")
    mean, spread = (x.float().cpu() for x in tokenizer.statistics)
    return mean + noise * spread
