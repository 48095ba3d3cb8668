"""Trains a tokenizer that nobody tells what its tokens should mean: `python -m training.tokenizer`.

Interrupt and run again: it goes on where it was. A TiTok with an RGB decoder is trained end to end on pictures of the
mini world. Noise on the features before the code is looked up makes neighbouring codes decode alike, which the
test-time optimization relies on. The shipped tokenizer has the same shape and is trained by `training.roles`; this one
stands beside it in the evidence, for what emerges by itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenopt_core.titok import TiTok, TiTokConfig, Transformer, build
from training.loop import Training, fast_arithmetic, rate, run
from training.world import SIZE, Album, held_out, sample_scenes

CONFIG = TiTokConfig(
    image_size=SIZE,
    num_tokens=7,
    token_dim=12,
    codebook_size=64,
    encoder=Transformer(192, 3, 3),
    decoder=Transformer(256, 4, 4),
    l2_normalize=True,
)


@dataclass(frozen=True)
class Recipe:
    """What the training does, and for how long."""

    steps: int = 12_000
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 150
    final_rate: float = 0.03  # share of the learning rate that the cosine ends at
    quantize_from: int = 2_000  # before it the features pass as they are; at it the codes are found by k-means
    feature_noise: float = 0.4  # in units of 1 / sqrt(token_dim)
    commitment: float = 0.25
    code_decay: float = 0.99
    weight_decay: float = 0.01
    weight_ema: float = 0.999
    average_from: int = 2_000
    seed: int = 0


def initialize(model: TiTok, grid: int) -> None:
    """Xavier weights, sine-cosine positions and an identity output convolution: what small ViTs need to start fast."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "embedding" not in name and "token" not in name:
            nn.init.xavier_uniform_(parameter.data.view(len(parameter), -1))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "embedding" in name or "token" in name:
            nn.init.normal_(parameter, std=0.5)
    for part in (model.encoder, model.decoder):
        part.positional_embedding.data[1:] = 0.7 * sine_cosine(grid, part.positional_embedding.shape[1])
    # the tokens must be heard beside the positions, or the decoder settles on the mean picture
    nn.init.normal_(model.decoder.decoder_embed.weight, std=0.5)  # of a unit vector: outputs of the same size
    nn.init.dirac_(model.decoder.conv_out.weight)
    nn.init.constant_(model.decoder.ffn.get_parameter("0.bias"), 0.5)


def sine_cosine(grid: int, width: int) -> Tensor:
    """Two-dimensional sine-cosine positions, (grid * grid, width)."""
    frequencies = 100.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(grid).float()[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([line.repeat_interleave(grid, 0), line.repeat(grid, 1)], 1)


class Codebook:
    """The unit-length codes while they are being learned: exponential averages of the features that chose them."""

    def __init__(self, codes: Tensor, decay: float) -> None:
        self.codes, self.decay = codes, decay
        self.counts, self.sums = torch.ones(len(codes)), codes.clone()

    @classmethod
    def from_features(cls, features: Tensor, count: int, decay: float) -> Codebook:
        """k-means on the unit sphere."""
        codes = features[torch.randperm(len(features))[:count]]
        for _ in range(12):
            nearest = (features @ codes.T).argmax(1)
            sums = torch.zeros_like(codes).index_add_(0, nearest, features)
            empty = sums.norm(dim=1) < 1e-6
            codes = F.normalize(torch.where(empty[:, None], codes, sums), dim=1)
        return cls(codes, decay)

    @torch.no_grad()
    def update(self, features: Tensor, indices: Tensor, revive: bool) -> None:
        """Moves each code toward its features, (M, D) and (M,); `revive` gives codes out of use a feature each."""
        self.counts.mul_(self.decay).index_add_(0, indices, torch.full((len(indices),), 1 - self.decay))
        self.sums.mul_(self.decay).index_add_(0, indices, (1 - self.decay) * features)
        if revive:
            dead = (self.counts < 0.01).nonzero().flatten()
            chosen = features[torch.randint(len(features), (len(dead),))]
            self.sums[dead], self.counts[dead] = 0.05 * chosen, 0.05
        self.codes = F.normalize(self.sums, dim=1)


def quantize(z: Tensor, codebook: Codebook, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features (B, N, D) -> straight-through codes, their indices (B, N) and the commitment loss."""
    noisy = F.normalize(z.detach() + noise / math.sqrt(z.shape[-1]) * torch.randn_like(z), dim=-1)
    indices = (noisy @ codebook.codes.T).argmax(-1)
    codes = codebook.codes[indices]
    return z + (codes - z).detach(), indices, (z - codes).square().sum(-1).mean()


def reconstruction_loss(decoded: Tensor, images: Tensor, masks: Tensor) -> Tensor:
    """Squares, absolute values and gradients of the error; the subject counts three times."""
    weight = 1 + 2 * masks
    error = decoded - images
    edges = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return 4 * (error.square() * weight).mean() + 0.5 * (error.abs() * weight).mean() + 0.25 * edges


class TokenizerTraining(Training):
    """The state of a run: all that a checkpoint holds."""

    parts = ("model", "optimizer", "ema")
    model: Any  # a TiTok, or what a subclass starts with

    def __init__(self, config: Any, recipe: Recipe) -> None:
        super().__init__(recipe.steps, recipe.seed)
        self.recipe, self.config = recipe, config
        self.album = Album(config.image_size)
        self.model = self.start()
        self.ema = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.weight_ema)
        )
        trained = [p for n, p in self.model.named_parameters() if not n.startswith("quantize")]
        self.optimizer = torch.optim.AdamW(
            trained, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
        )
        self.codebook: Codebook | None = None

    def start(self) -> nn.Module:
        """The model with its first weights."""
        model = build(self.config)
        initialize(model, self.config.grid)
        return model

    def description(self) -> dict[str, Any]:
        """What config.json says of the model."""
        return self.config.to_dict()

    def features(self, images: Tensor) -> Tensor:
        """Pictures -> features (B, N, F)."""
        with fast_arithmetic():
            return self.model.encode(images).float()

    def encode(self, images: Tensor) -> Tensor:
        """Pictures -> features of unit length (B, N, D)."""
        return F.normalize(self.features(images), dim=-1)

    def decode(self, tokens: Tensor) -> Tensor:
        with fast_arithmetic():
            return self.model.decode(tokens).float()

    @torch.no_grad()
    def start_codebook(self) -> None:
        parts = (self.album.pictures(sample_scenes(self.recipe.batch, self.rng)) for _ in range(24))
        features = torch.cat([self.encode(part).flatten(0, 1) for part in parts])
        self.codebook = Codebook.from_features(features, self.config.codebook_size, self.recipe.code_decay)

    def loss(self) -> Tensor:
        """What the pictures of one step cost."""
        recipe = self.recipe
        if self.step == recipe.quantize_from:
            self.start_codebook()
        scenes = sample_scenes(recipe.batch, self.rng)
        images, masks = self.album.pictures(scenes), self.album.masks(scenes)
        tokens, loss = self.encode(images), torch.zeros(())
        if self.codebook is not None:
            features = tokens.detach().flatten(0, 1)
            tokens, indices, commitment = quantize(tokens, self.codebook, recipe.feature_noise)
            loss = recipe.commitment * commitment
            self.codebook.update(features, indices.flatten(), revive=self.step % 20 == 0)
        return loss + reconstruction_loss(self.decode(tokens), images, masks)

    def rate(self) -> float:
        """The learning rate's share at this step."""
        return rate(self.step, self.steps, self.recipe.warmup, self.recipe.final_rate)

    def advance(self) -> float:
        """One training step; returns its loss."""
        recipe = self.recipe
        loss = self.loss()
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * self.rate()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if self.step >= recipe.average_from:
            self.ema.update_parameters(self.model)
        self.step += 1
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        return super().state() | {"codebook": vars(self.codebook) if self.codebook else None}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if state["codebook"]:
            self.codebook = Codebook(state["codebook"]["codes"], state["codebook"]["decay"])
            vars(self.codebook).update(state["codebook"])

    @torch.no_grad()
    def finished(self) -> Any:
        """The averaged model with its codes, its features scaled to unit root mean square."""
        model: Any = copy.deepcopy(self.ema.module)
        if self.codebook is not None:
            model.quantize.embedding.weight.copy_(self.codebook.codes)
        if self.codebook is None:  # of a VAE: its means are near unit size as they are
            return model
        features = model.encode(self.album.pictures(sample_scenes(256, random.Random(self.recipe.seed + 1))))
        for parameter in model.encoder.conv_out.parameters():
            parameter /= features.square().mean().sqrt()
        return model


@torch.no_grad()
def psnr(training: TokenizerTraining, unseen: bool, count: int = 512) -> float:
    """Peak signal-to-noise ratio of reconstructions in dB, mean over pictures seen in training or held out of it."""
    model, album = training.finished(), training.album
    scenes = random.Random(1).sample([s for s in album.scenes if held_out(s) == unseen], min(count, 288))
    values = []
    for i in range(0, len(scenes), 32):
        images = album.pictures(scenes[i : i + 32])
        decoded = model.decode(model.quantize(model.encode(images))).clamp(0, 1)
        values.append(-10 * (decoded - images).square().mean((1, 2, 3)).log10())
    return float(torch.cat(values).mean())


def export(training: TokenizerTraining, folder: Path) -> None:
    """Writes config.json and model.safetensors (float16), the layout of a published tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model = training.finished()
    config = training.description()
    config["training"] = asdict(training.recipe) | {"steps_done": training.step, "seconds": round(training.seconds)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")


def train(training: TokenizerTraining, checkpoint: Path, folder: Path) -> None:
    """Runs to the end, from the checkpoint if there is one, and writes the tokenizer."""

    def report(count: int = 288) -> str:
        return f"PSNR {psnr(training, False, count):.2f}, held out {psnr(training, True, count):.2f} dB"

    run(training, checkpoint, lambda: report(32))
    export(training, folder)
    print(report())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--checkpoint", type=Path, default=Path(".cache/training/unsupervised.pt"))
    parser.add_argument("--out", type=Path, default=Path(".cache/training/unsupervised"))
    arguments = parser.parse_args()
    train(TokenizerTraining(CONFIG, Recipe(steps=arguments.steps)), arguments.checkpoint, arguments.out)


if __name__ == "__main__":
    main()
