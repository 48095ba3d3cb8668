"""Plug-in losses: callables from pictures (B, 3, H, W) in about [0, 1] to one number a picture, (B,)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .clip import Clip
from .crops import random_crops
from .loss_protocols import Loss, in_pieces, of_picture, uncropped, with_generators
from .prompts import parse_prompts

if TYPE_CHECKING:
    from typing_extensions import Self


class Similarity(nn.Module):
    """CLIP similarity of pictures to fixed embeddings, averaged over random crops: (B, 3, H, W) -> (B,).

    `crops=0` looks at the whole picture, unmirrored. `crop_scale` is a crop's side as a share of the picture's.
    """

    def __init__(self, clip: Clip, crops: int, crop_scale: float, flip: float) -> None:
        super().__init__()
        if crops < 0 or not 0 < crop_scale <= 1 or not 0 <= flip <= 1:
            raise ValueError(
                "a CLIP loss takes crops of at least 0, a crop_scale above 0 and at most 1 and a flip probability of "
                f"0 to 1, got {crops}, {crop_scale} and {flip}"
            )
        self._clip = (clip,)  # in a tuple: the loss uses the model, it does not own its weights
        self.crops, self.crop_scale, self.flip = crops, crop_scale, flip
        self._generators: Sequence[torch.Generator] = ()
        self._pieces = 1

    def with_generators(self, generators: Sequence[torch.Generator]) -> Self:
        """A copy that draws its crops from `generators`; the embeddings are shared."""
        bound = copy.copy(self)
        bound._generators = generators
        return bound

    def in_pieces(self, pieces: int) -> Self:
        """A copy that embeds its crops in so many pieces and keeps none of the activations."""
        divided = copy.copy(self)
        divided._pieces = pieces
        return divided

    def uncropped(self) -> Self:
        """A copy that looks at the whole picture, unmirrored."""
        whole = copy.copy(self)
        whole.crops = 0
        return whole

    def embed(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> their crops' embeddings (B * crops, E)."""
        if self.crops:
            images = random_crops(images, self.crops, self.crop_scale, self.flip, self._generators)
        embed = self._clip[0].embed_image
        if self._pieces == 1:
            return embed(images)
        parts = images.chunk(self._pieces)
        return torch.cat([checkpoint(embed, part, use_reentrant=False, preserve_rng_state=False) for part in parts])

    @staticmethod
    def compare(embedded: Tensor, target: Tensor, shares: Tensor, batch: int) -> Tensor:
        """(B * crops, E) against (P, E), weighted by (P,) -> (B,)."""
        similarities = embedded @ target.to(embedded).T @ shares.to(embedded)
        return similarities.view(batch, -1).mean(1)


class ClipLoss(Similarity):
    """Negative CLIP similarity to a prompt, averaged over random crops (paper, Sections 4.1 and 5.4).

    prompt: one, or several with weights: "a red apple:2 | at night" is two thirds apple.
    negative: with it the loss is `-sim(prompt) - (1 - guidance) * sim(negative)`: a guidance of 1 ignores it, and more
        pushes away from it.
    """

    text: Tensor
    shares: Tensor
    negative: Tensor | None
    negative_shares: Tensor | None

    def __init__(
        self,
        clip: Clip,
        prompt: str,
        negative: str = "",
        guidance: float = 1.0,
        crops: int = 8,
        crop_scale: float = 0.875,
        flip: float = 0.5,
    ) -> None:
        super().__init__(clip, crops, crop_scale, flip)
        if not math.isfinite(guidance):
            raise ValueError(f"a CLIP loss takes a finite guidance, got {guidance}")
        self.guidance = guidance
        text, shares = self._embed_text(clip, prompt)
        self.register_buffer("text", text)
        self.register_buffer("shares", shares)
        guided = negative.strip() and guidance != 1
        against = self._embed_text(clip, negative) if guided else (None, None)
        self.register_buffer("negative", against[0])
        self.register_buffer("negative_shares", against[1])

    @staticmethod
    def _embed_text(clip: Clip, text: str) -> tuple[Tensor, Tensor]:
        prompts, weights = zip(*parse_prompts(text), strict=True)
        shares = torch.tensor(weights)
        return clip.embed_text(prompts).detach(), shares / shares.sum()

    def forward(self, images: Tensor) -> Tensor:
        embedded = self.embed(images)
        loss = -self.compare(embedded, self.text, self.shares, len(images))
        if self.negative is not None and self.negative_shares is not None:
            unwanted = self.compare(embedded, self.negative, self.negative_shares, len(images))
            loss = loss - (1 - self.guidance) * unwanted
        return loss


class ImagePromptLoss(Similarity):
    """Negative CLIP similarity to pictures instead of a text: what they show, not where.

    pictures: (P, 3, H, W) in [0, 1], any size; of several the mean similarity counts.
    """

    target: Tensor
    shares: Tensor

    def __init__(
        self, clip: Clip, pictures: Tensor, crops: int = 8, crop_scale: float = 0.875, flip: float = 0.5
    ) -> None:
        super().__init__(clip, crops, crop_scale, flip)
        if pictures.ndim != 4 or pictures.shape[1] != 3 or not len(pictures):
            raise ValueError(f"an image prompt takes pictures of shape (P, 3, H, W), got {tuple(pictures.shape)}")
        with torch.no_grad():
            self.register_buffer("target", clip.embed_image(pictures))
        self.register_buffer("shares", torch.full((len(pictures),), 1 / len(pictures)))

    def forward(self, images: Tensor) -> Tensor:
        return -self.compare(self.embed(images), self.target, self.shares, len(images))


class MaskedL1Loss(nn.Module):
    """Mean absolute difference over the known pixels (paper, Section 4.3): (B, 3, H, W) -> (B,).

    target: (1 or B, 3, H, W) in [0, 1].
    mask: (1 or B, 1, H, W): 1 = to be invented, 0 = known; a soft edge counts in part.
    Raises ValueError for shapes that do not fit, and for a mask that leaves no pixel known.
    """

    target: Tensor
    known: Tensor

    def __init__(self, target: Tensor, mask: Tensor) -> None:
        super().__init__()
        fits = target.ndim == mask.ndim == 4 and target.shape[1] == 3 and mask.shape[1] == 1
        if not fits or target.shape[2:] != mask.shape[2:] or (len(mask) not in (1, len(target)) and len(target) != 1):
            raise ValueError(
                "a masked L1 loss takes pictures (B, 3, H, W) and masks (B, 1, H, W) of the same size, got "
                f"{tuple(target.shape)} and {tuple(mask.shape)}"
            )
        if not (torch.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
            raise ValueError("a mask's values must be from 0 (known) to 1 (to be invented)")
        known = 1 - mask
        if (known.sum((1, 2, 3)) == 0).any():
            raise ValueError("the mask is white everywhere: no pixel is known, there is nothing to compare")
        self.register_buffer("target", target.detach().clone())
        self.register_buffer("known", known.detach().clone())

    def of_picture(self, picture: int, count: int) -> MaskedL1Loss:
        """The loss of one picture of a batch of `count`, whose target and mask go with any number of pictures."""
        if len(self.target) not in (1, count) or len(self.known) not in (1, count):
            compared = max(len(self.target), len(self.known))
            raise ValueError(
                f"the masked L1 loss compares with {compared} pictures, but there are {count}: give one, or one for "
                "each of them"
            )
        one = copy.copy(self)  # its buffers are those of the original until they are replaced
        one._buffers = {
            name: kept if kept is None or len(kept) == 1 else kept[picture : picture + 1]
            for name, kept in self._buffers.items()
        }
        return one

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != self.target.shape[2:] or len(self.target) not in (1, len(images)):
            raise ValueError(
                f"the masked L1 loss compares with {len(self.target)} pictures of {_size(self.target)}, but "
                f"{len(images)} of {_size(images)} are optimised: fit the picture and its mask to the tokenizer first"
            )
        known = self.known.to(images)
        difference = (images - self.target.to(images)).abs().mean(1, keepdim=True)
        return (difference * known).sum((1, 2, 3)) / known.sum((1, 2, 3))


def _size(images: Tensor) -> str:
    return f"{images.shape[-1]} x {images.shape[-2]} px"


class WeightedSum:
    """Several losses as one: `[(name, weight, loss), ...]`; the names appear in the loss history."""

    def __init__(self, terms: Sequence[tuple[str, float, Loss]]) -> None:
        if not terms:
            raise ValueError("a weighted sum needs at least one loss")
        for name, weight, _ in terms:
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} must be a finite number, got {weight}")
        names = [name for name, _, _ in terms]
        if len(set(names)) < len(names):
            raise ValueError(f"the losses of a weighted sum need different names, got {', '.join(names)}")
        if not any(weight for _, weight, _ in terms):
            raise ValueError("every loss has weight 0: there is nothing to minimise, give at least one more than that")
        self._terms = tuple(terms)

    def with_generators(self, generators: Sequence[torch.Generator]) -> WeightedSum:
        """The same sum with every random part drawing from `generators`."""
        return WeightedSum([(name, weight, with_generators(loss, generators)) for name, weight, loss in self._terms])

    def in_pieces(self, pieces: int) -> WeightedSum:
        """The same sum with every part that can be divided in so many pieces."""
        return WeightedSum([(name, weight, in_pieces(loss, pieces)) for name, weight, loss in self._terms])

    def uncropped(self) -> WeightedSum:
        """The same sum with every part that looks at crops looking at whole pictures."""
        return WeightedSum([(name, weight, uncropped(loss)) for name, weight, loss in self._terms])

    def of_picture(self, picture: int, count: int) -> WeightedSum:
        """The same sum for one picture of a batch of `count`."""
        return WeightedSum([(name, weight, of_picture(loss, picture, count)) for name, weight, loss in self._terms])

    @property
    def crops(self) -> int:
        """The most crops of a picture that any of the losses looks at."""
        return max(int(getattr(loss, "crops", 1)) for _, _, loss in self._terms)

    def terms(self, images: Tensor) -> dict[str, Tensor]:
        """Each loss times its weight, (B,), by name."""
        return {name: weight * loss(images) for name, weight, loss in self._terms}

    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack(list(self.terms(images).values())).sum(0)
