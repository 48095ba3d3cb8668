"""A judge that no optimization can game: the nearest of all clean renders of the mini world.

It knows nothing of CLIP, of the tokenizer or of the other judge. A picture is read as the scene whose render it is
nearest to; how near that is, and how much nearer than any with another subject, tells a clean picture from a patchy
one that merely resembles something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenopt_core.canvas import fit
from training.world import Album, Scene

# Of 96 pictures of each kind: reconstructions have 29 to 44 dB against the nearest render, which is nearer than any of
# another subject by 4.4 dB and more. Of halves, squares and half cross-fades of two pictures 19 in 20 stay below 25.7
# and 4.7 dB; half cross-fades of two subjects reach 32.7 dB at night, but not more than 2.6 dB from the next subject.
CLEAN = 26.0  # dB against the nearest render
DISTINCT = 4.0  # dB by which that render is nearer than any of another subject
FINALISTS = 4  # renders of each subject that are compared pixel by pixel
BLOCK = 4  # px along the side of the squares whose means choose them


@dataclass(frozen=True)
class Verdict:
    """What a picture shows, and how clearly.

    psnr: peak signal-to-noise ratio against that scene's render, in dB. At night everything is dark and therefore near,
    which is what `margin` is for: how many dB worse the best scene with another subject fits.
    """

    scene: Scene
    psnr: float
    margin: float

    @property
    def clean(self) -> bool:
        return self.psnr >= CLEAN and self.margin >= DISTINCT

    def agrees(self, **attributes: str) -> bool:
        """Whether the picture is clean and shows these attributes: `agrees(subject="fox", lighting="night")`."""
        return self.clean and all(getattr(self.scene, name) == value for name, value in attributes.items())


class Judge:
    """Compares with every scene there is: by the means of small squares, then the best of each subject pixel by pixel.

    The difference of the means is never larger than that of the pixels, and what it leaves out, the grain within a
    square, is much alike in the renders of one subject.
    """

    def __init__(self, album: Album | None = None) -> None:
        self._album = album or Album()
        self._subjects = len({scene.subject for scene in self._album.scenes})  # in the album's order, as many of each
        parts = self._album.bytes.split(256)
        self._means = torch.cat([F.avg_pool2d(part.float() / 255, BLOCK).flatten(1) for part in parts])
        self._squares = self._means.square().sum(1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Verdict]:
        """Reads pictures (B, 3, H, W) in [0, 1]; others than the renders' size are resized."""
        pictures = fitted(images, self._album.bytes.shape[-1])
        finalists = self._finalists(pictures)
        return [self._verdict(picture, numbers) for picture, numbers in zip(pictures, finalists, strict=True)]

    def _finalists(self, pictures: Tensor) -> Tensor:
        """The numbers of the scenes to look at, (B, subjects, FINALISTS)."""
        means = F.avg_pool2d(pictures, BLOCK).flatten(1)
        distances = (self._squares - 2 * means @ self._means.T).unflatten(1, (self._subjects, -1))
        best = distances.topk(min(FINALISTS, distances.shape[2]), largest=False).indices
        return best + torch.arange(self._subjects)[:, None] * distances.shape[2]

    def _verdict(self, picture: Tensor, numbers: Tensor) -> Verdict:
        renders = self._album.bytes[numbers.flatten()].float().div_(255)
        errors = renders.sub_(picture).square_().mean((1, 2, 3)).clamp_(min=1e-10).view(numbers.shape)
        first, second = errors.amin(1).sort().values[:2].tolist()
        scene = self._album.scenes[int(numbers.flatten()[errors.argmin()])]
        return Verdict(scene, -10 * math.log10(first), 10 * math.log10(second / first))


def fitted(images: Tensor, size: int) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] on the CPU, in float32 and at `size` px: of others the middle square, resized."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"expected pictures of shape (batch, 3, height, width), got {tuple(images.shape)}")
    return fit(images.detach().float().cpu(), None, size)[0]
