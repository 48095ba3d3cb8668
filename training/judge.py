"""A judge that no optimization can game: the nearest of all clean renders of the mini world.

It knows nothing of CLIP or of the tokenizer. A picture is read as the scene whose render it is nearest to; how near
that is, and how much nearer than any with another subject, tells a clean picture from a patchy one that merely
resembles something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.world import SUBJECTS, Scene, World, all_scenes

CLEAN = 22.0  # dB against the nearest render: reconstructions have 25 to 34
DISTINCT = 4.0  # dB by which that render is nearer than any of another subject: reconstructions have 5 to 13


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
    """Compares with every scene there is; prepared once for a picture size."""

    def __init__(self, size: int) -> None:
        self._scenes = sorted(all_scenes(), key=lambda scene: SUBJECTS.index(scene.subject))
        world = World(size)
        renders = [world.render(self._scenes[i : i + 256])[0].flatten(1) for i in range(0, len(self._scenes), 256)]
        self._renders = torch.cat(renders)  # (scenes, 3 * size * size)
        self._squares = self._renders.square().sum(1)

    def __call__(self, images: Tensor) -> list[Verdict]:
        """Reads pictures (B, 3, size, size)."""
        flat = images.clamp(0, 1).flatten(1).float()
        distances = self._squares - 2 * flat @ self._renders.T + flat.square().sum(1, keepdim=True)
        errors = (distances / flat.shape[1]).clamp(min=1e-10)
        best_of_subject = errors.unflatten(1, (len(SUBJECTS), -1)).amin(2).sort(1).values  # (B, subjects)
        return [
            Verdict(self._scenes[nearest], -10 * math.log10(first), 10 * math.log10(second / first))
            for nearest, (first, second) in zip(errors.argmin(1).tolist(), best_of_subject[:, :2].tolist(), strict=True)
        ]
