"""Judging results by a model that did not guide them (paper, Sections 5.1 and 5.2, Table 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .mini_judge import load_mini_judge
from .seeds import TextTower, embed_prompt

LEAST_RISE = 0.02  # of the guiding similarity that counts as one; the paper's edits make 0.09 to 0.47
# What the judge's similarity must rise by, as a share of what the guide's does. From Table 1, with the SigLIP's scale
# of about 117 taken out of its score: the adversarial pictures 0.03, token optimization 0.45 to 0.58.
LEAST_SHARE = 0.1


class Judge(Protocol):
    """Anything that is called like this is a judge; more is better.

    It may have a `name`, and a `scale`: how much its score differs for a similarity of 1; without it, any rise counts.
    """

    def __call__(self, images: Tensor, prompt: str, /) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1]."""
        ...


class Embedder(TextTower, Protocol):
    """Two towers, such as a `Clip`."""

    def embed_image(self, images: Tensor, /) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> (B, E), L2-normalised."""
        ...


# Judges that come with the package, which no CLIP is related to: name -> what loads it, see `as_judge`.
JUDGES: dict[str, Callable[[], Any]] = {"mini": load_mini_judge}


def load_judge(name: str) -> Judge:
    """One of the package's own judges."""
    if name not in JUDGES:
        raise ValueError(f"unknown judge {name!r}: expected {', '.join(JUDGES)}")
    return as_judge(JUDGES[name]())


def as_judge(model: Any) -> Judge:
    """What embeds texts and pictures, or scores by itself, as a judge."""
    return ClipJudge(model) if hasattr(model, "embed_image") and hasattr(model, "embed_text") else model


class ClipJudge:
    """Scores of a CLIP, its cosine similarities; of a SigLIP `similarity * exp(logit_scale) + logit_bias`."""

    def __init__(self, clip: Embedder) -> None:
        self._clip = clip
        towers: Any = getattr(clip, "model", None)
        bias = getattr(towers, "logit_bias", None)
        self.name = "CLIP score" if bias is None else "SigLIP score"
        self.scale = 1.0 if bias is None else float(towers.logit_scale.detach().double().exp())
        self.bias = 0.0 if bias is None else float(bias.detach())

    @torch.no_grad()
    def __call__(self, images: Tensor, prompt: str) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1], looked at as a whole."""
        return self._clip.embed_image(images) @ embed_prompt(self._clip, prompt) * self.scale + self.bias


def best_of(scores: Tensor, keep: int = 1) -> Tensor:
    """Which pictures (keep,) have the highest scores (B,), the best first; of equal ones the earlier picture.

    Raises ValueError for scores that are not finite, and for more pictures than there are.
    """
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if scores.ndim != 1 or bad:
        which = f" of picture {bad[0] + 1}" if bad else f"s of shape {tuple(scores.shape)}"
        raise ValueError(f"expected a finite number for each picture, got the score{which}: load the judge in float32")
    if not 1 <= keep <= len(scores):
        raise ValueError(f"the best {keep} of {len(scores)} pictures are to be kept: expected at most as many")
    return scores.cpu().sort(descending=True, stable=True).indices[:keep]


def is_adversarial(guide_rise: Tensor, judge_rise: Tensor, scale: float = 0.0) -> Tensor:
    """Which pictures (B,) please the guiding CLIP and not the judge: its score does not rise along with the similarity.

    guide_rise, judge_rise: after minus before, (B,). scale: of the judge.
    """
    return (guide_rise > LEAST_RISE) & (judge_rise <= LEAST_SHARE * scale * guide_rise)
