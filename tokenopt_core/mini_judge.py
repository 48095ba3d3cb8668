"""The judge that ships with the package: a small network that reads what a picture of the mini world shows.

It has nothing in common with the mini CLIP but the world: no text, no tokenizer. For each attribute of a scene it gives
the probability of every value, and beside that whether the picture is one of this world at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .canvas import fit
from .prompts import parse_prompts
from .weights import load_strictly, read_config

FOLDER = Path(__file__).parent / "mini" / "judge"
# What the score rises by where a similarity would by 1, see `judging.Judge`: of renders that show two, and then all
# three things of a prompt, the mini CLIP's similarity rises by 0.26 to 0.41, this score by 2.0 to 2.8 nats.
SCALE = 8.0

Attributes = Mapping[str, Sequence[str]]


class SceneReader(nn.Module):
    """A convolutional network; every stage halves the picture. One head for each attribute, one for "real"."""

    def __init__(self, image_size: int, widths: Sequence[int], attributes: Attributes) -> None:
        super().__init__()
        self.image_size = image_size
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        sizes = zip((3, *widths[:-1]), widths, (5, *[3] * (len(widths) - 1)), strict=True)
        self.stages = nn.Sequential(*(_stage(inner, outer, kernel) for inner, outer, kernel in sizes))
        rest = widths[-1] * (image_size >> len(widths)) ** 2
        self.head = nn.Linear(rest, sum(map(len, self.attributes.values())))
        self.real = nn.Sequential(nn.Linear(rest, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures (B, 3, S, S) in [0, 1] -> by attribute log-probabilities (B, values); "real": logits (B,)."""
        seen = self.stages(2 * pictures - 1).flatten(1)
        parts = self.head(seen).float().split([len(values) for values in self.attributes.values()], 1)
        read = {name: part.log_softmax(1) for name, part in zip(self.attributes, parts, strict=True)}
        return read | {"real": self.real(seen).float()[:, 0]}


def _stage(inner: int, outer: int, kernel: int) -> nn.Module:
    convolution = nn.Conv2d(inner, outer, kernel, stride=2, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.ReLU())


@dataclass(frozen=True)
class Reading:
    """What the network reads in one picture."""

    values: dict[str, str]  # the most probable value of each attribute
    confidence: dict[str, float]  # its probability
    real: float  # probability that this is a clean picture of the mini world


class MiniJudge:
    """Scores pictures by what a prompt names of them, in nats: 0 if all of it is there without a doubt, else less."""

    name = "mini judge"
    scale = SCALE

    def __init__(self, model: SceneReader, phrases: Mapping[str, Sequence[str]]) -> None:
        self.model = model.eval().requires_grad_(False)
        self._phrases = {tuple(_words(phrase)): (name, value) for phrase, (name, value) in phrases.items()}
        self._longest = max(map(len, self._phrases))

    def __call__(self, images: Tensor, prompt: str) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] of any size.

        The mean log-probability of what the prompt names, plus that of being a clean picture of the mini world.
        ValueError for a prompt that names nothing of it.
        """
        prompts = [(self.named(text), weight) for text, weight in parse_prompts(prompt)]
        read = self._look(images)
        scores = torch.stack([self._fit(read, named) * weight for named, weight in prompts])
        return scores.sum(0) / sum(weight for _, weight in prompts) + F.logsigmoid(read["real"])

    def read(self, images: Tensor) -> list[Reading]:
        """What pictures (B, 3, H, W) in [0, 1] of any size show."""
        read = self._look(images)
        best = {name: read[name].exp().max(1) for name in self.model.attributes}
        return [
            Reading(
                {name: self.model.attributes[name][int(top.indices[i])] for name, top in best.items()},
                {name: float(top.values[i]) for name, top in best.items()},
                float(read["real"][i].sigmoid()),
            )
            for i in range(len(images))
        ]

    def named(self, prompt: str) -> list[tuple[str, str]]:
        """The attributes that a prompt names, with their values; of two phrases at one place the longer counts."""
        words, found, at = _words(prompt), [], 0
        while at < len(words):
            lengths = range(min(self._longest, len(words) - at), 0, -1)
            length = next((n for n in lengths if tuple(words[at : at + n]) in self._phrases), 0)
            if length:
                found.append(self._phrases[tuple(words[at : at + length])])
            at += length or 1
        if not found:
            known = "; ".join(f"{name}: {', '.join(values)}" for name, values in self.model.attributes.items())
            raise ValueError(
                f"the {self.name} finds nothing it could look for in the prompt {prompt[:80]!r}. It knows {known}. "
                "Connect a published CLIP as the judge of anything else"
            )
        return found

    def _fit(self, read: Mapping[str, Tensor], named: Sequence[tuple[str, str]]) -> Tensor:
        """The mean log-probability of some attributes' values, (B,)."""
        columns = [read[name][:, self.model.attributes[name].index(value)] for name, value in named]
        return torch.stack(columns).mean(0)

    @torch.no_grad()
    def _look(self, images: Tensor) -> dict[str, Tensor]:
        """What the network says of pictures of any size: of those that are no squares it sees the middle."""
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"expected pictures of shape (batch, 3, height, width), got {tuple(images.shape)}")
        device = next(self.model.parameters()).device
        return self.model(fit(images.detach().float(), None, self.model.image_size)[0].to(device))


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def load_mini_judge(folder: Path = FOLDER) -> MiniJudge:
    """The shipped judge, or another one of its kind: a folder with config.json and model.safetensors."""
    config = read_config(folder / "config.json")
    model = SceneReader(config["image_size"], config["widths"], config["attributes"])
    load_strictly(model, folder / "model.safetensors", torch.float32)
    return MiniJudge(model, config["phrases"])
