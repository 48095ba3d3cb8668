"""Plug-in losses: callables from pictures (B, 3, H, W) in about [0, 1] to one number a picture, (B,)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .clip import Clip


class Loss(Protocol):
    """Anything that is called like this is a loss; smaller is better."""

    def __call__(self, images: Tensor, /) -> Tensor: ...


@runtime_checkable
class RandomLoss(Protocol):
    """A loss that draws random numbers, and can be told where from."""

    def with_generators(self, generators: Sequence[torch.Generator]) -> Loss:
        """The same loss, drawing for picture i of the batch from `generators[i]` (on the CPU)."""
        ...


@runtime_checkable
class NamedLosses(Protocol):
    """A loss that is a sum, and can say what of."""

    def terms(self, images: Tensor) -> dict[str, Tensor]:
        """Each part's weighted values (B,) by name; their sum is the loss."""
        ...


def with_generators(loss: Loss, generators: Sequence[torch.Generator]) -> Loss:
    """`loss` drawing from these generators, one a picture; a loss without random numbers comes back as it is."""
    return loss.with_generators(generators) if isinstance(loss, RandomLoss) else loss


def random_crops(
    images: Tensor, count: int, scale: float, flip: float, generators: Sequence[torch.Generator] = ()
) -> Tensor:
    """`count` random crops a picture: (B, 3, H, W) -> (B * count, 3, scale * H, scale * W).

    Places are uniform; each crop is mirrored with probability `flip`. Crops of one picture lie side by side. Without
    generators, one a picture, PyTorch's global one is drawn from.
    """
    height, width = (max(1, round(scale * side)) for side in images.shape[-2:])
    crops = []
    sources: Sequence[torch.Generator | None] = generators or [None] * len(images)
    for image, generator in zip(images, sources, strict=True):
        # drawn on the CPU, so that the same seed gives the same crops on every device and no iteration waits
        draws = torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist()
        for down, along, mirror in draws:
            y = int(down * (image.shape[-2] - height + 1))
            x = int(along * (image.shape[-1] - width + 1))
            crop = image[:, y : y + height, x : x + width]
            crops.append(crop.flip(-1) if mirror < flip else crop)
    return torch.stack(crops)


class ClipLoss(nn.Module):
    """Negative CLIP similarity to a prompt, averaged over random crops (paper, Sections 4.1 and 5.4).

    With a negative prompt: `-sim(prompt) - (1 - guidance) * sim(negative)`, so a guidance of 1 ignores it and more
    pushes away from it. `crops=0` looks at the whole picture, unmirrored. `crop_scale` is a crop's side as a share of
    the picture's.
    """

    text: Tensor
    negative: Tensor | None

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
        super().__init__()
        if not prompt.strip():
            raise ValueError("the prompt is empty: say what the picture should show")
        if crops < 0 or not 0 < crop_scale <= 1 or not 0 <= flip <= 1 or not math.isfinite(guidance):
            raise ValueError(
                "a CLIP loss takes crops of at least 0, a crop_scale above 0 and at most 1, a flip probability of 0 "
                f"to 1 and a finite guidance, got {crops}, {crop_scale}, {flip} and {guidance}"
            )
        self._clip = (clip,)  # in a tuple: the loss uses the model, it does not own its weights
        self.guidance, self.crops, self.crop_scale, self.flip = guidance, crops, crop_scale, flip
        self.register_buffer("text", clip.embed_text([prompt]).detach())
        guided = negative.strip() and guidance != 1
        self.register_buffer("negative", clip.embed_text([negative]).detach() if guided else None)
        self._generators: Sequence[torch.Generator] = ()

    def with_generators(self, generators: Sequence[torch.Generator]) -> ClipLoss:
        """A copy that draws its crops from `generators`; the text embeddings are shared."""
        bound = copy.copy(self)
        bound._generators = generators
        return bound

    def forward(self, images: Tensor) -> Tensor:
        views = images
        if self.crops:
            views = random_crops(images, self.crops, self.crop_scale, self.flip, self._generators)
        embedded = self._clip[0].embed_image(views)
        loss = -self._similarity(embedded, self.text, len(images))
        if self.negative is not None:
            loss = loss - (1 - self.guidance) * self._similarity(embedded, self.negative, len(images))
        return loss

    @staticmethod
    def _similarity(embedded: Tensor, text: Tensor, batch: int) -> Tensor:  # (B * crops, E), (1, E) -> (B,)
        return (embedded @ text.to(embedded).T).view(batch, -1).mean(1)


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
        self._terms = tuple(terms)

    def with_generators(self, generators: Sequence[torch.Generator]) -> WeightedSum:
        """The same sum with every random part drawing from `generators`."""
        return WeightedSum([(name, weight, with_generators(loss, generators)) for name, weight, loss in self._terms])

    def terms(self, images: Tensor) -> dict[str, Tensor]:
        """Each loss times its weight, (B,), by name."""
        return {name: weight * loss(images) for name, weight, loss in self._terms}

    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack(list(self.terms(images).values())).sum(0)
