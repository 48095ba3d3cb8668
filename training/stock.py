"""What the network judge learns from beside renders: pictures that the tokenizer made well or badly, spoilt renders.

Everything here is made from the repository and a seed. The nearest render of all says what a picture is: near enough
to one, a picture of the world that shows this scene; far from all of them, none; between the two it is left out.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenopt_core as to
from training.captions import random_caption
from training.judge import Judge
from training.loop import fast_arithmetic
from training.world import ATTRIBUTES, Album, Scene, blurred, held_out, sample_scenes, values_of

REAL, FAKE = 28.0, 24.0  # dB against the nearest render: from the first on real, up to the second not
SURE, UNSURE = 5.0, 2.5  # the same of the dB by which any with another subject is farther
SPOILT = ("mixed", "faded", "pasted", "erased")  # what is wrong is all in one place, or faint but everywhere:
STRICTER = 4.0  # dB more are asked of those
COUNTS = {  # pictures of each kind
    "reconstructed": 160, "decoded": 96, "between": 160, "damaged": 96, "optimized": 96, "mixed": 288, "faded": 288,
    "pasted": 128, "erased": 64, "recoloured": 64, "degraded": 96, "textures": 48, "noise": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Stock:
    """Pictures and what they are."""

    pictures: Tensor  # (N, 3, S, S), bytes
    values: Tensor  # (N, attributes): what the nearest render shows, as numbers
    real: Tensor  # (N,): 1 for pictures of the world, 0 for what is none


class Maker:
    """Makes stocks, a different one from each seed; the caller's random numbers stay as they are."""

    def __init__(self, album: Album, judge: Judge, tokenizer: to.Tokenizer, clip: to.Clip) -> None:
        self.album, self.judge, self.tokenizer, self.clip = album, judge, tokenizer, clip

    @torch.no_grad()
    def make(self, seed: int) -> Stock:
        """All kinds of pictures; those that are neither real nor not, and held-out scenes, are left out."""
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        parts = [self.kind(name)(count).clamp(0, 1).mul(255).round().byte() for name, count in COUNTS.items()]
        pictures = torch.cat(parts)
        more = torch.tensor([STRICTER * (name in SPOILT) for name, count in COUNTS.items() for _ in range(count)])
        verdicts = [verdict for part in pictures.split(64) for verdict in self.judge(part.float() / 255)]
        psnr, margin = (torch.tensor(column) for column in zip(*((v.psnr, v.margin) for v in verdicts), strict=True))
        near = (psnr >= REAL + more) & (margin >= SURE + more)
        far = (psnr <= FAKE + more) | (margin <= UNSURE)
        seen = torch.tensor([not held_out(v.scene) for v in verdicts])
        kept = (near & seen) | far
        values = torch.tensor([values_of(v.scene) for v in verdicts])
        return Stock(pictures[kept], values[kept], near[kept].float())

    def kind(self, name: str) -> Callable[[int], Tensor]:
        """What makes pictures (count, 3, S, S) of a kind of `COUNTS`."""
        return getattr(self, name)

    def scenes(self, count: int) -> list[Scene]:
        return sample_scenes(count, self.rng)

    def pairs(self, count: int) -> tuple[list[Scene], list[Scene]]:
        """Scenes, and others: half of them differ in one attribute only."""
        first, second = self.scenes(count), self.scenes(count)
        return first, [self.varied(a) if self.rng.random() < 0.5 else b for a, b in zip(first, second, strict=True)]

    def varied(self, scene: Scene, name: str = "") -> Scene:
        """The same scene with one attribute changed, any if no name is given."""
        name = name or self.rng.choice(list(ATTRIBUTES))
        return replace(scene, **{name: self.rng.choice([k for k in ATTRIBUTES[name] if k != getattr(scene, name)])})

    def uniform(self, count: int, low: float, high: float) -> Tensor:
        """Random numbers (count, 1, 1, 1)."""
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    # what the tokenizer makes

    def encoded(self, scenes: list[Scene]) -> Tensor:
        """The tokens of renders, quantized."""
        pictures = self.album.pictures(scenes).split(32)
        with fast_arithmetic():
            return torch.cat([self.tokenizer.quantize(self.tokenizer.encode(part)) for part in pictures])

    def decode(self, tokens: Tensor, tokenizer: to.Tokenizer | None = None) -> Tensor:
        with fast_arithmetic():
            parts = [(tokenizer or self.tokenizer).decode(part, quantize=False).float() for part in tokens.split(32)]
        return torch.cat(parts)

    def reconstructed(self, count: int) -> Tensor:
        return self.decode(self.encoded(self.scenes(count)))

    def decoded(self, count: int) -> Tensor:
        """Random codes."""
        return self.decode(to.random_features(self.tokenizer, count, generator=self.generator, start="codes"))

    def between(self, count: int) -> Tensor:
        """Tokens on the way from one picture's to another's, all of them or one, and around them."""
        first, second = (self.encoded(scenes) for scenes in self.pairs(count))
        share = self.uniform(count, 0, 1)[..., 0].expand(-1, first.shape[1], -1).clone()
        single = torch.rand(count, 1, 1, generator=self.generator) < 0.5
        position = torch.randint(first.shape[1], (count, 1), generator=self.generator)
        share[(torch.arange(first.shape[1]) != position)[..., None] & single] = 0
        around = self.uniform(count, 0, 0.6)[..., 0] * self.normal(*first.shape) / math.sqrt(first.shape[2])
        return self.decode(torch.lerp(first, second, share) + around)

    def damaged(self, count: int) -> Tensor:
        """Reconstructions by decoders with noise on their weights."""
        done = []
        for part in self.encoded(self.scenes(count)).split(16):
            tokenizer, strength = copy.deepcopy(self.tokenizer), 0.01 + 0.15 * self.rng.random()
            for parameter in tokenizer.model.decoder.parameters():
                if parameter.ndim >= 2:  # not biases and gains
                    parameter.add_(strength * parameter.std() * self.normal(*parameter.shape))
            done.append(self.decode(part, tokenizer))
        return torch.cat(done)

    def optimized(self, count: int, batch: int = 8) -> Tensor:
        """The pictures on the way of short optimizations: toward a prompt, and toward nothing in particular."""
        runs = [self.attempt(batch, with_prompt=i % 2 == 1) for i in range(-(-count // (3 * batch)))]
        return torch.cat(runs)[:count]

    def attempt(self, batch: int, with_prompt: bool, iterations: int = 15) -> Tensor:
        """Pictures (3 * batch, 3, S, S) from the start, the middle and the end of one optimization."""
        scenes, seed = self.scenes(batch), self.rng.randrange(2**31)
        caption = random_caption(self.scenes(1)[0], self.rng).text(self.rng)
        toward = to.ClipLoss(self.clip, caption, crops=1) if with_prompt else self.anywhere()
        config = to.OptimizeConfig(
            iterations, learning_rate=self.rng.choice((0.1, 0.4, 1.5)), seed=seed, noise=to.NoiseSchedule(0.4),
            quantize=self.rng.random() < 0.5,
        )  # fmt: skip
        seen: list[Tensor] = []
        with torch.enable_grad():
            features = self.tokenizer.encode(self.album.pictures(scenes))
            to.optimize(self.tokenizer, features, toward, config, callback=lambda step: seen.append(step.image))
        return torch.cat([seen[1], seen[iterations // 2], seen[-1]])

    def anywhere(self) -> Callable[[Tensor], Tensor]:
        """A loss (B, 3, S, S) -> (B,) that wants coarse random colours."""
        wanted = F.interpolate(torch.rand(1, 3, 8, 8, generator=self.generator), self.tokenizer.image_size)
        return lambda images: (images - wanted).square().mean((1, 2, 3))

    # what is made of renders

    def mixed(self, count: int) -> Tensor:
        """Some squares, or one half, of another picture."""
        first, second = (self.album.pictures(scenes) for scenes in self.pairs(count))
        size, masks = first.shape[-1], []
        for i in range(count):
            cells = self.rng.choice((2, 4, 8)) if i % 2 else 2
            share = 0.15 + 0.5 * self.rng.random()
            cut = (torch.rand(1, 1, cells, cells, generator=self.generator) < share).float()
            if i % 2 == 0:
                half = torch.zeros(2, 2)
                half[0] = 1
                cut = (half if i % 4 else half.T)[None, None]
            masks.append(F.interpolate(cut, size))
        return torch.lerp(first, second, torch.cat(masks))

    def faded(self, count: int) -> Tensor:
        """Two pictures on top of each other; of half of them the subjects differ."""
        first, second = self.pairs(count)
        second[::2] = [self.varied(scene, "subject") for scene in first[::2]]
        return torch.lerp(self.album.pictures(first), self.album.pictures(second), self.uniform(count, 0.25, 0.75))

    def pasted(self, count: int) -> Tensor:
        """A second subject, whole or half transparent."""
        first, second = self.scenes(count), self.scenes(count)
        cover = self.album.masks(second) * self.uniform(count, 0.4, 1)
        return torch.lerp(self.album.pictures(first), self.album.pictures(second), cover)

    def erased(self, count: int) -> Tensor:
        """The subject away: there, the landscape is that of a picture with its subject elsewhere."""
        scenes = self.scenes(count)
        without = self.album.pictures([self.varied(scene, "place") for scene in scenes])
        cover = (F.max_pool2d(self.album.masks(scenes), 9, 1, 4) * self.uniform(count, 0.5, 1.5)).clamp(0, 1)
        return torch.lerp(self.album.pictures(scenes), without, cover)

    def recoloured(self, count: int) -> Tensor:
        """Colours exchanged, turned into others, too weak or too strong."""
        pictures = self.album.pictures(self.scenes(count))
        turn = torch.eye(3) + 0.35 * self.normal(count, 3, 3)
        turned = torch.einsum("bij,bjhw->bihw", turn, pictures - 0.5) + 0.5 + 0.15 * self.normal(count, 3, 1, 1)
        turned[::3] = pictures[::3][:, [1, 2, 0]]
        turned[1::6] = 1 - pictures[1::6]
        return turned

    def degraded(self, count: int) -> Tensor:
        """Blurred, coarse, noisy: from hardly to beyond recognition."""
        pictures = self.album.pictures(self.scenes(count))
        for i in range(count):
            image, strength = pictures[i : i + 1], self.rng.random()
            if i % 3 == 0:
                pictures[i] = blurred(image, 0.004 + 0.05 * strength)[0]
            elif i % 3 == 1:
                pictures[i] = F.interpolate(F.avg_pool2d(image, 2 ** (1 + i // 3 % 4)), image.shape[-1])[0]
            else:
                pictures[i] += 0.3 * strength * self.normal(*pictures[i].shape)
        return pictures

    def textures(self, count: int) -> Tensor:
        """Smooth noise of all grains, as strong as in photographs, and flat ellipses on top of half of them."""
        size, pictures = self.album.bytes.shape[-1], torch.zeros(count, 3, self.album.bytes.shape[-1], 1)
        for cells in (2, 4, 8, 16, 32, 64):
            grain = 1.5 / cells**0.7 * self.normal(count, 3, cells, cells)
            pictures = pictures + F.interpolate(grain, (size, size), mode="bicubic")
        pictures = 0.5 + self.uniform(count, 0.1, 0.4) * pictures
        y, x = torch.meshgrid(*[torch.linspace(0, 1, size)] * 2, indexing="ij")
        for image in pictures[::2]:
            for _ in range(self.rng.randrange(1, 12)):
                high, wide, top, left = (self.rng.uniform(a, b) for a, b in ((0.05, 0.3), (0.05, 0.3), (0, 1), (0, 1)))
                inside = ((y - top) / high) ** 2 + ((x - left) / wide) ** 2 < 1
                image[:, inside] = torch.rand(3, 1, generator=self.generator)
        return pictures

    def noise(self, count: int) -> Tensor:
        return torch.rand(count, *self.album.bytes.shape[1:], generator=self.generator)
