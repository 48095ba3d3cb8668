"""Seeds: pictures to start from, picked by their similarity to a prompt (paper, Section 5.2)."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

from .prompts import parse_prompts

Pick = Literal["most similar", "top percent", "random"]
PICKS: tuple[Pick, ...] = ("most similar", "top percent", "random")


class TextTower(Protocol):
    """What puts prompts where pictures are, such as a `Clip`."""

    def embed_text(self, prompts: list[str], /) -> Tensor:
        """Prompts -> (P, E), L2-normalised."""
        ...


def embed_prompt(clip: TextTower, prompt: str) -> Tensor:
    """A prompt as one vector (E,); of several with weights ("a fox:2 | at night") the weighted mean of their vectors.

    Its product with a picture's embedding is the weighted mean of the similarities, as in `ClipLoss`.
    """
    prompts = parse_prompts(prompt)
    weights = torch.tensor([weight for _, weight in prompts], dtype=torch.float64)
    shares = (weights / weights.sum()).float()
    text = clip.embed_text([text for text, _ in prompts]).detach().float()
    return shares.to(text.device) @ text


def pick_seeds(
    similarities: Tensor,
    count: int = 1,
    mode: Pick = "most similar",
    percent: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which pictures (count,) to start from by their similarities (M,), the most similar first; none twice.

    "top percent" draws from the most similar `percent` of them, from `count` at least; "random" from all. Of equal
    similarities the earlier picture comes first. Raises ValueError for what cannot be drawn.
    """
    if mode not in PICKS:
        raise ValueError(f"unknown way to pick {mode!r}: expected one of {', '.join(PICKS)}")
    if similarities.ndim != 1 or not torch.isfinite(similarities).all():
        raise ValueError("expected a finite similarity for each picture, and some are none: load the CLIP in float32")
    if not 1 <= count <= len(similarities):
        raise ValueError(f"{count} pictures are to be picked out of {len(similarities)}: expected at most as many")
    if not 0 <= percent <= 100:
        raise ValueError(f"the top percent must be from 0 to 100, got {percent}")
    ranked = similarities.cpu().sort(descending=True, stable=True).indices
    if mode == "most similar":
        return ranked[:count]
    share = percent / 100 if mode == "top percent" else 1.0
    # 0.07 * 100 is a little more than 7: what is meant is 7
    pool = max(count, math.ceil(round(share * len(ranked), 6)))
    drawn = torch.randperm(pool, generator=generator)[:count]
    return ranked[drawn.sort().values]
