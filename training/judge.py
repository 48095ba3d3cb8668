"""A judge that no optimization can game: the nearest of all clean renders of the mini world.

It knows nothing of CLIP or of the tokenizer. A picture is read as the scene whose render it is nearest to; how near,
in dB, tells a clean picture from a patchy one that merely resembles something.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.world import Scene, World, all_scenes

CLEAN = 22.0  # dB: reconstructions are far above, random tokens and patchwork below


@dataclass(frozen=True)
class Verdict:
    """What a picture shows, and its peak signal-to-noise ratio against that scene's render."""

    scene: Scene
    psnr: float

    @property
    def clean(self) -> bool:
        return self.psnr >= CLEAN

    def agrees(self, **attributes: str) -> bool:
        """Whether the picture is clean and shows these attributes: `agrees(subject="fox", lighting="night")`."""
        return self.clean and all(getattr(self.scene, name) == value for name, value in attributes.items())


class Judge:
    """Compares with every scene there is; prepared once for a picture size."""

    def __init__(self, size: int) -> None:
        self._scenes = all_scenes()
        world = World(size)
        renders = [world.render(self._scenes[i : i + 256])[0].flatten(1) for i in range(0, len(self._scenes), 256)]
        self._renders = torch.cat(renders)  # (scenes, 3 * size * size)
        self._squares = self._renders.square().sum(1)

    def __call__(self, images: Tensor) -> list[Verdict]:
        """Reads pictures (B, 3, size, size)."""
        flat = images.clamp(0, 1).flatten(1).float()
        distances = self._squares - 2 * flat @ self._renders.T + flat.square().sum(1, keepdim=True)
        nearest = distances.argmin(1)
        errors = (self._renders[nearest] - flat).square().mean(1)
        return [
            Verdict(self._scenes[i], float(-10 * error.clamp(min=1e-10).log10()))
            for i, error in zip(nearest.tolist(), errors, strict=True)
        ]
