"""Trains the shipped tokenizer: `python -m training.roles`. Interrupt and run again: it goes on where it was.

It is supervised: each token is told which attribute of the scene it has to carry. The codes are given, sixteen
orthogonal ones; every code means some value of the attribute at every position, so that any tokens are a picture. The
decoder learns the picture of every combination, and between two codes the cross-fade of their pictures. In the last
third of the run it is shown pairs, a scene and the same on its way to another, and must change by the way's share of
the whole change: so the gradient at a code points to the others, which the test-time optimization relies on. The
encoder learns to name the codes, also of pictures that are partly hidden. `training.tokenizer` trains one of the same
kind that is told nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenopt_core.titok import TiTokConfig, Transformer
from training import tokenizer
from training.loop import rate
from training.tokenizer import Codebook, TokenizerTraining, reconstruction_loss, train
from training.world import ATTRIBUTES, SIZE, Scene, held_out, sample_scenes, values_of

CODES = 16
CONFIG = TiTokConfig(
    image_size=SIZE,
    num_tokens=len(ATTRIBUTES),
    token_dim=CODES,
    codebook_size=CODES,
    encoder=Transformer(192, 3, 3),
    decoder=Transformer(256, 4, 4),
    l2_normalize=True,
)


@dataclass(frozen=True)
class Recipe(tokenizer.Recipe):
    """What the training does, and for how long."""

    steps: int = 7_800
    paired_from: int = 5_400  # from here on pairs are shown, and the learning rate starts again
    paired_rate: float = 0.5  # with this share of it
    slope: float = 0.5  # weight of the pairs' change
    nearest: float = 0.08  # how near to a scene its pair may be, as a share of the way
    learning_rate: float = 1.5e-3
    feature_noise: float = 0.3  # on the tokens, in units of 1 / sqrt(token_dim)
    faded: float = 0.3  # share of the pictures that are on the way to another
    named: int = 16  # pictures a step that the encoder learns from
    hidden: float = 0.4  # share of those of which a part is hidden
    sharpness: float = 16.0  # of the encoder's choice among the codes
    average_from: int = 500


def orthogonal_codes(count: int, seed: int) -> Tensor:
    """As many unit vectors at right angles, in no direction in particular, (count, count)."""
    q, _ = torch.linalg.qr(torch.randn(count, count, generator=torch.Generator().manual_seed(seed)))
    return q.T.contiguous()


def meanings(count: int) -> Tensor:
    """Which value of its attribute each code stands for, by position: (attributes, count)."""
    return torch.stack([torch.arange(count) % len(kinds) for kinds in ATTRIBUTES.values()])


class RolesTraining(TokenizerTraining):
    """The decoder learns from codes, the encoder from pictures; both at once."""

    recipe: Recipe
    codebook: Codebook

    def __init__(self, config: TiTokConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        self.codebook = Codebook(orthogonal_codes(CODES, recipe.seed), recipe.code_decay)
        self.meanings = meanings(CODES)

    def loss(self) -> Tensor:
        paired = self.step >= self.recipe.paired_from
        return (self.pairs() if paired else self.decoding()) + self.naming()

    def rate(self) -> float:
        """A cosine to `paired_from`, and a second one to the end."""
        recipe = self.recipe
        if self.step < recipe.paired_from:
            return rate(self.step, min(self.steps, recipe.paired_from), recipe.warmup, recipe.final_rate)
        step, steps = self.step - recipe.paired_from, self.steps - recipe.paired_from
        return recipe.paired_rate * rate(step, steps, recipe.warmup, recipe.final_rate)

    def codes_of(self, values: Tensor) -> Tensor:
        """Values (B, attributes) -> tokens (B, attributes, D); where several codes mean the same, any of them."""
        fits = self.meanings == values[..., None]
        numbers = fits.float().flatten(0, 1).multinomial(1).view(values.shape)
        return self.codebook.codes[numbers]

    def decoding(self) -> Tensor:
        """Tokens of scenes, some on the way to another value of one attribute, against their pictures."""
        recipe = self.recipe
        scenes = sample_scenes(recipe.batch, self.rng)
        tokens = self.codes_of(torch.tensor([values_of(s) for s in scenes]))
        images, masks = self.album.pictures(scenes), self.album.masks(scenes)
        for i, scene in enumerate(scenes[: round(recipe.faded * len(scenes))]):
            position = self.rng.randrange(len(ATTRIBUTES))
            other = self.neighbour(scene, position)
            if held_out(other):
                continue
            share = self.rng.random()
            code = self.codes_of(torch.tensor([values_of(other)]))[0, position]
            tokens[i, position] = torch.lerp(tokens[i, position], code, share)
            images[i] = torch.lerp(images[i], self.album.pictures([other])[0], share)
            masks[i] = torch.maximum(masks[i], self.album.masks([other])[0])
        noise = recipe.feature_noise * tokens.shape[-1] ** -0.5
        return reconstruction_loss(self.decode(tokens + noise * torch.randn_like(tokens)), images, masks)

    def pairs(self) -> Tensor:
        """Scenes, and each on its way to another value of one attribute: both pictures, and the change."""
        recipe = self.recipe
        scenes, others, positions = list[Scene](), list[Scene](), list[int]()
        while len(scenes) < recipe.batch // 2:
            scene, position = sample_scenes(1, self.rng)[0], self.rng.randrange(len(ATTRIBUTES))
            other = self.neighbour(scene, position)
            if not held_out(other):
                scenes.append(scene)
                others.append(other)
                positions.append(position)
        start = self.codes_of(torch.tensor([values_of(s) for s in scenes]))
        end = self.codes_of(torch.tensor([values_of(s) for s in others]))
        moved = F.one_hot(torch.tensor(positions), len(ATTRIBUTES)).bool()[..., None]
        shares = torch.empty(len(scenes), 1, 1).uniform_(recipe.nearest, 1)
        on_the_way = torch.where(moved, torch.lerp(start, end, shares), start)
        images, targets, share = self.album.pictures(scenes), self.album.pictures(others), shares[..., None]
        masks = self.album.masks(scenes)
        both = torch.cat([images, torch.lerp(images, targets, share)])
        decoded = self.decode(torch.cat([start, on_the_way]))  # no noise: it would hide where on the way they are
        change = (decoded[len(scenes) :] - decoded[: len(scenes)]) / share
        wide = torch.cat([masks, torch.maximum(masks, self.album.masks(others))])
        return reconstruction_loss(decoded, both, wide) + recipe.slope * (change - (targets - images)).square().mean()

    def neighbour(self, scene: Scene, position: int) -> Scene:
        """The scene with another value of one attribute."""
        name, kinds = list(ATTRIBUTES.items())[position]
        return replace(scene, **{name: self.rng.choice([k for k in kinds if k != getattr(scene, name)])})

    def naming(self) -> Tensor:
        """What the encoder makes of pictures, against the codes that mean their attributes."""
        recipe = self.recipe
        scenes = sample_scenes(recipe.named, self.rng)
        values = torch.tensor([values_of(s) for s in scenes])
        images = self.album.pictures(scenes)
        hide(images[: round(recipe.hidden * len(images))])
        z = self.encode(images + 0.02 * torch.randn_like(images))
        scores = (recipe.sharpness * z @ self.codebook.codes.T).log_softmax(-1)
        fits = self.meanings == values[..., None]
        named = -scores.masked_fill(~fits, -torch.inf).logsumexp(-1).mean()
        nearest = self.codebook.codes[scores.masked_fill(~fits, -torch.inf).argmax(-1)]
        return 0.1 * named + recipe.commitment * (z - nearest).square().sum(-1).mean()


def hide(images: Tensor) -> None:
    """Fills a box of each picture (B, 3, S, S) with grey or with the colours around it, in place."""
    size = images.shape[-1]
    for image in images:
        high, wide = (int(n) for n in torch.randint(size // 8, size // 2 + size // 8, (2,)))
        y, x = int(torch.randint(size - high + 1, ())), int(torch.randint(size - wide + 1, ()))
        colour = torch.full((3,), 0.5) if torch.rand(()) < 0.3 else image.mean((1, 2))
        if torch.rand(()) < 0.4:  # what a coarse blur leaves of it and its surroundings
            rim = image[:, max(0, y - 4) : y + high + 4, max(0, x - 4) : x + wide + 4]
            colour = F.interpolate(F.avg_pool2d(rim[None], 8, ceil_mode=True), (high, wide), mode="bilinear")[0]
            image[:, y : y + high, x : x + wide] = colour
        else:
            image[:, y : y + high, x : x + wide] = colour[:, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--checkpoint", type=Path, default=Path(".cache/training/tokenizer.pt"))
    parser.add_argument("--out", type=Path, default=Path("tokenopt_core/mini/tokenizer"))
    arguments = parser.parse_args()
    train(RolesTraining(CONFIG, Recipe(steps=arguments.steps)), arguments.checkpoint, arguments.out)


if __name__ == "__main__":
    main()
