"""Trains small tokenizers of several kinds, for the paper's tables: `python -m training.variants [NAME ...]`.

All are 64 px, told nothing of what a token should mean, and trained alike but for half the batch of the convolutional
one, whose steps take four times as long; they differ in the number of tokens, in the size of the codebook and in the
kind of token (codes, continuous, a grid). Interrupt and run again: it goes on where it
was. `python benchmarks/evidence.py --only variants` compares them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokenopt_core as to
from tokenopt_core.titok import GridConfig, MaskgitVQGAN, TiTokConfig, Transformer
from tokenopt_core.weights import load_strictly
from training.tokenizer import Recipe, TokenizerTraining, reconstruction_loss, train
from training.world import sample_scenes

FOLDER = Path(".cache/training/variants")
SMALL = TiTokConfig(
    image_size=64,
    num_tokens=8,
    token_dim=12,
    codebook_size=64,
    encoder=Transformer(192, 3, 3),
    decoder=Transformer(256, 4, 4),
    l2_normalize=True,
)
GRID = GridConfig(64, (32, 32, 64, 64, 128), token_dim=12, codebook_size=64, l2_normalize=True)
RECIPE = Recipe(steps=3_000, quantize_from=800, average_from=800)


@dataclass(frozen=True)
class VaeRecipe(Recipe):
    """With what a VAE has beside: the weight of the divergence from a normal distribution, mean over the numbers."""

    divergence: float = 1e-3


class VaeTraining(TokenizerTraining):
    """Continuous tokens: a mean and a log variance each, of which one sample is decoded (Kingma and Welling, 2014)."""

    recipe: VaeRecipe

    def loss(self) -> Tensor:
        scenes = sample_scenes(self.recipe.batch, self.rng)
        images, masks = self.album.pictures(scenes), self.album.masks(scenes)
        mean, log_variance = self.features(images).chunk(2, dim=-1)
        log_variance = log_variance.clamp(-20, 10)
        tokens = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return self.recipe.divergence * divergence + reconstruction_loss(self.decode(tokens), images, masks)


class GridTraining(TokenizerTraining):
    """The 2D VQGAN: convolutions, and a token for each square of 16 px."""

    config: GridConfig

    def start(self) -> nn.Module:
        return MaskgitVQGAN(self.config)

    def description(self) -> dict[str, Any]:
        return {"grid": asdict(self.config)}


def variants() -> dict[str, TiTokConfig | GridConfig]:
    """By name; "tokens x codes" of those with a codebook."""
    sizes = ((4, 64), (8, 64), (16, 64), (8, 16), (8, 512))
    found: dict[str, TiTokConfig | GridConfig] = {
        f"vq {n} x {k}": replace(SMALL, num_tokens=n, codebook_size=k) for n, k in sizes
    }
    return found | {"vae 8": replace(SMALL, codebook_size=None, l2_normalize=False), "2D vq 16 x 64": GRID}


def training_of(name: str, steps: int) -> TokenizerTraining:
    """A run from its start."""
    config, recipe = variants()[name], replace(RECIPE, steps=steps)
    if isinstance(config, GridConfig):
        return GridTraining(config, replace(recipe, batch=RECIPE.batch // 2))
    if config.codebook_size is None:
        return VaeTraining(config, VaeRecipe(steps=steps, average_from=RECIPE.average_from))
    return TokenizerTraining(config, recipe)


def load(folder: Path) -> to.Tokenizer:
    """A trained one; raises what `tokenopt_core.load_tokenizer` raises."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "grid" not in config:
        return to.load_tokenizer(folder)
    shape = config["grid"] | {"channels": tuple(config["grid"]["channels"])}
    model = MaskgitVQGAN(GridConfig(**shape))
    load_strictly(model, folder / "model.safetensors", torch.float32)
    return to.Tokenizer(model, folder.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(variants()), help="all if left out")
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for name in arguments.names:
        print(name, flush=True)
        train(training_of(name, arguments.steps), arguments.folder / f"{name}.pt", arguments.folder / name)


if __name__ == "__main__":
    main()
