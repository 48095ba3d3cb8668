"""The judges of the evidence: the nearest of all renders and a network, and what both of them say.

They share nothing but the world. Neither is asked while tokens, settings or seeds of a reported run are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenopt_core.mini_judge import MiniJudge, Reading, load_mini_judge
from training.judge import Judge, Verdict
from training.world import Album

REAL = 0.5  # the network's probability, from which on it takes a picture for one of the mini world


@dataclass(frozen=True)
class Opinion:
    """What both judges say of one picture."""

    nearest: Verdict
    network: Reading

    @property
    def clean(self) -> bool:
        """Whether both call it a clean picture of the world, so that no render is too far from it either."""
        return self.nearest.clean and self.network.real >= REAL

    def shows(self, name: str) -> str | None:
        """The value of an attribute that both read; None where they differ."""
        value = getattr(self.nearest.scene, name)
        return value if self.network.values[name] == value else None

    def agrees(self, **attributes: str) -> bool:
        """Whether the picture is clean and both read these values: `agrees(subject="fox", lighting="night")`."""
        return self.clean and all(self.shows(name) == value for name, value in attributes.items())


class Panel:
    """Both judges; the network is the shipped one, if no other is given."""

    def __init__(self, album: Album | None = None, network: MiniJudge | None = None) -> None:
        self.judge = Judge(album)
        self.network = network or load_mini_judge()

    def __call__(self, images: Tensor) -> list[Opinion]:
        """Looks at pictures (B, 3, H, W) in [0, 1]."""
        return [Opinion(*pair) for pair in zip(self.judge(images), self.network.read(images), strict=True)]
