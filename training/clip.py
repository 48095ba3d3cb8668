"""Trains the mini CLIP: `python -m training.clip`. Interrupt and run again: it goes on where it was.

Every caption that is true of a picture counts as its match. Half of the pictures are reconstructions by the mini
tokenizer, so that the CLIP is not fooled by what the tokenizer makes of them; some are decoded from random codes, and
are worth a caption only if they are near a render. Others are on the way from one scene to another and match the
captions of both, by their shares: so the similarity rises all along the way, which the test-time optimization needs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.tokenizer import default_bpe
from safetensors.torch import save_file
from torch import Tensor

from tokenopt_core import Tokenizer, load_tokenizer
from tokenopt_core.clip import MINI, mini_tokenizer
from training.captions import SPOKEN, Caption, full_caption, main_caption, random_caption, vocabulary
from training.judge import Judge
from training.loop import Training, fast_arithmetic, rate, run
from training.world import ATTRIBUTES, SIZE, Album, Scene, all_scenes, held_out, sample_scenes

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 36, "vocab_size": 0, "width": 128, "heads": 4, "layers": 2},
}
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """What the training does, and for how long."""

    steps: int = 3200
    batch: int = 64
    captions: int = 88
    learning_rate: float = 1e-3
    warmup: int = 100
    reconstructed: float = 0.5  # share of the pictures that went through the tokenizer
    faded: float = 0.3  # share that are on the way to another scene
    random: float = 0.1  # share that are decoded from random codes
    stock: int = 1024  # pictures of random codes
    seed: int = 0


def write_merges(path: Path) -> None:
    """Keeps of open_clip's byte-pair merges those that the world's words need, in their order."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    words = {f"{word}</w>": [*word[:-1], f"{word[-1]}</w>"] for word in vocabulary()}
    needed = []
    for merge in lines[1 : 49152 - 256 - 2 + 1]:
        pair = merge.split()
        used = False
        for parts in words.values():
            at = 0
            while at < len(parts) - 1:
                if parts[at : at + 2] == pair:
                    parts[at : at + 2], used = ["".join(pair)], True
                at += 1
        if used:
            needed.append(merge)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # no time stamp inside, so that the file is always the same
        file.write(gzip.compress("\n".join([lines[0], *needed]).encode(), mtime=0))


def augment(images: Tensor, rng: random.Random) -> Tensor:
    """A crop, sometimes blurred or noisy: what an optimization shows it, and what it must not rely on."""
    side = round(rng.uniform(0.86, 1.0) * images.shape[-1])
    y, x = (rng.randint(0, images.shape[-1] - side) for _ in range(2))
    out = F.interpolate(images[..., y : y + side, x : x + side], images.shape[-2:], mode="bilinear", antialias=True)
    return out + rng.uniform(0, 0.04) * torch.randn_like(out)


def multi_positive_loss(images: Tensor, texts: Tensor, matches: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy both ways; a row's probability is shared among its matches. (B, E), (P, E), weights (B, P)."""
    logits = scale * images @ texts.T
    total = torch.zeros(())
    for scores, true in ((logits, matches.float()), (logits.T, matches.T.float())):
        rows = true.sum(1) > 0
        total = total + F.cross_entropy(scores[rows], true[rows] / true[rows].sum(1, keepdim=True))
    return total


def neighbour(scene: Scene, rng: random.Random) -> Scene:
    """The same scene but for one attribute."""
    name = rng.choice(list(ATTRIBUTES))
    return replace(scene, **{name: rng.choice([v for v in ATTRIBUTES[name] if v != getattr(scene, name)])})


class ClipTraining(Training):
    """The state of a run: all that a checkpoint holds."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, merges: Path) -> None:
        super().__init__(recipe.steps, recipe.seed)
        self.recipe = recipe
        self.album, self.tokenizer = Album(), tokenizer
        self.tokenize = mini_tokenizer(ARCHITECTURE["text_cfg"]["context_length"], merges)
        self.config = ARCHITECTURE | {
            "text_cfg": ARCHITECTURE["text_cfg"] | {"vocab_size": self.tokenize.vocab_size},
            "mean": MEAN,
            "std": STD,
            "words": vocabulary(),
        }
        self.model: Any = build(self.config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), recipe.learning_rate, weight_decay=0.05, fused=True)
        self.reconstructions = self.reconstruct()
        self.stock, self.stock_scenes = self.random_pictures()

    @torch.no_grad()
    def reconstruct(self) -> Tensor:
        """The whole album through the tokenizer, as bytes."""
        done = []
        for part in self.album.bytes.split(64):
            with fast_arithmetic():
                images = self.tokenizer.decode(self.tokenizer.encode(part.float() / 255))
            done.append(images.clamp(0, 1).mul(255).round().byte())
        return torch.cat(done)

    @torch.no_grad()
    def random_pictures(self) -> tuple[Tensor, list[Scene | None]]:
        """Pictures of random codes, and the scene that they show; None where it is no clean one, or held out."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        shape = (self.recipe.stock, self.tokenizer.num_tokens)
        codes = torch.randint(self.tokenizer.codebook_size or 1, shape, generator=generator)
        parts = [self.tokenizer.decode(self.tokenizer.lookup(c), quantize=False).clamp(0, 1) for c in codes.split(64)]
        judge = Judge(self.album)
        verdicts = [verdict for part in parts for verdict in judge(part)]
        shown = [v.scene if v.clean and not held_out(v.scene) else None for v in verdicts]
        return torch.cat(parts), shown

    def pictures(self, scenes: list[Scene]) -> Tensor:
        """Pictures of the scenes, part of them through the tokenizer."""
        numbers = torch.tensor([self.album.number[scene] for scene in scenes])
        through = torch.rand(len(scenes)) < self.recipe.reconstructed
        shown = torch.where(through.view(-1, 1, 1, 1), self.reconstructions[numbers], self.album.bytes[numbers])
        return shown.float() / 255

    def batch(self) -> tuple[Tensor, list[dict[Scene, float]]]:
        """Pictures, and of which scenes they are, with their shares."""
        recipe = self.recipe
        scenes = sample_scenes(recipe.batch, self.rng)
        images = self.pictures(scenes)
        shares = [{scene: 1.0} for scene in scenes]
        for i in range(round(recipe.faded * recipe.batch)):
            other = neighbour(scenes[i], self.rng) if self.rng.random() < 0.7 else sample_scenes(1, self.rng)[0]
            if held_out(other) or other == scenes[i]:
                continue
            share = self.rng.random()
            images[i] = torch.lerp(images[i], self.pictures([other])[0], share)
            shares[i] = {scenes[i]: 1 - share, other: share}
        for i in range(recipe.batch - round(recipe.random * recipe.batch), recipe.batch):
            number = self.rng.randrange(len(self.stock))
            scene = self.stock_scenes[number]
            images[i], shares[i] = self.stock[number], {scene: 1.0} if scene else {}
        return images, shares

    def asked(self, scenes: list[Scene]) -> list[Caption]:
        """Every caption of one attribute alone, true captions of the scenes, and some that are nearly true."""
        captions = {Caption(**{name: value}): None for name in SPOKEN for value in ATTRIBUTES[name]}
        while len(captions) < self.recipe.captions:
            scene = self.rng.choice(scenes)
            scene = neighbour(scene, self.rng) if self.rng.random() < 0.4 else scene
            kind = self.rng.random()
            said = full_caption(scene) if kind < 0.25 else random_caption(scene, self.rng)
            captions[main_caption(scene) if kind > 0.6 else said] = None
        return list(captions)

    def advance(self) -> float:
        """One training step; returns its loss."""
        images, shares = self.batch()
        images = torch.cat([augment(part, self.rng) for part in images.split(8)])
        captions = self.asked([next(iter(of)) for of in shares if of])
        matches = torch.tensor([[sum(w for s, w in of.items() if c.true_of(s)) for c in captions] for of in shares])
        texts = self.tokenize([caption.text(self.rng) for caption in captions])
        with fast_arithmetic():
            picture, text, scale = self.model((images - MEAN[0]) / STD[0], texts)[:3]
        picture, text, scale = picture.float(), text.float(), scale.float().clamp(max=50)
        loss = multi_positive_loss(picture, text, matches, scale)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * rate(self.step, self.steps, self.recipe.warmup, final=0.01)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())


def build(config: dict) -> CLIP:
    """The model of a config, with fresh weights."""
    return CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])


@torch.no_grad()
def accuracy(training: ClipTraining, reconstructed: bool, count: int = 288) -> tuple[float, float]:
    """How often the full caption of a picture is the best of all full captions: on seen and on held-out scenes."""
    training.model.eval()
    scenes = all_scenes()
    captions = list(dict.fromkeys(full_caption(scene) for scene in scenes))
    texts = training.model.encode_text(training.tokenize([c.text() for c in captions]), normalize=True)
    source = training.reconstructions if reconstructed else training.album.bytes
    rates = []
    for unseen in (False, True):
        numbers = random.Random(1).sample([i for i, s in enumerate(scenes) if held_out(s) == unseen], count)
        images = (source[numbers].float() / 255 - MEAN[0]) / STD[0]
        best = (training.model.encode_image(images, normalize=True) @ texts.T).argmax(1).tolist()
        rates.append(sum(captions[b] == full_caption(scenes[n]) for b, n in zip(best, numbers, strict=True)) / count)
    training.model.train()
    return rates[0], rates[1]


def export(training: ClipTraining, folder: Path) -> None:
    """Writes config.json and model.safetensors (float16) beside the merges."""
    (folder / "config.json").write_text(json.dumps(training.config, indent=2) + "\n")
    save_file({k: v.half().contiguous() for k, v in training.model.state_dict().items()}, folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--tokenizer", default="mini")
    parser.add_argument("--checkpoint", type=Path, default=Path(".cache/training/clip.pt"))
    parser.add_argument("--out", type=Path, default=MINI)
    arguments = parser.parse_args()
    merges = arguments.out / "merges.txt.gz"
    write_merges(merges)
    training = ClipTraining(Recipe(steps=arguments.steps), load_tokenizer(arguments.tokenizer), merges)
    run(
        training,
        arguments.checkpoint,
        lambda: "right on reconstructions {:.3f}, held-out {:.3f}".format(*accuracy(training, True, 96)),
    )
    export(training, arguments.out)
    for reconstructed in (False, True):
        seen, unseen = accuracy(training, reconstructed)
        print(f"{'reconstructions' if reconstructed else 'renders'}: {seen:.3f} right, held-out {unseen:.3f}")


if __name__ == "__main__":
    main()
