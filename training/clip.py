"""Trains the mini CLIP: `python -m training.clip`. Interrupt and run again: it goes on where it was.

Every caption that is true of a picture counts as its match. Half of the pictures are reconstructions by the mini
tokenizer, some with random tokens in between, so that the CLIP is not fooled by what the tokenizer makes of them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.tokenizer import default_bpe
from safetensors.torch import save_file
from torch import Tensor

from tokenopt_core import Tokenizer, load_tokenizer
from tokenopt_core.clip import MINI, mini_tokenizer
from training.captions import all_captions, full_caption, vocabulary
from training.loop import Training, rate, run
from training.tokenizer import CONFIG
from training.world import Scene, World, all_scenes, held_out, sample_scenes

ARCHITECTURE = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": CONFIG.image_size, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 0, "width": 128, "heads": 4, "layers": 2},
}
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """What the training does, and for how long."""

    steps: int = 1000
    batch: int = 64
    captions: int = 64
    learning_rate: float = 1e-3
    warmup: int = 60
    reconstructed: float = 0.5  # share of the pictures that went through the tokenizer
    damaged: float = 0.1  # share of the pictures that are decoded from partly random tokens, and match no caption
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
    """A crop, sometimes mirrored, blurred or noisy: what an optimization shows it, and what it must not rely on."""
    side = round(rng.uniform(0.7, 1.0) * images.shape[-1])
    y, x = (rng.randint(0, images.shape[-1] - side) for _ in range(2))
    out = F.interpolate(images[..., y : y + side, x : x + side], images.shape[-2:], mode="bilinear", antialias=True)
    if rng.random() < 0.5:
        out = out.flip(-1)
    if rng.random() < 0.2:
        out = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return out + rng.uniform(0, 0.04) * torch.randn_like(out)


def multi_positive_loss(images: Tensor, texts: Tensor, matches: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy both ways; a row's probability is shared among all its matches. (B, E), (P, E), (B, P)."""
    logits = scale * images @ texts.T
    total = torch.zeros(())
    for scores, true in ((logits, matches), (logits.T, matches.T)):
        rows = true.any(1)
        target = true[rows].float() / true[rows].sum(1, keepdim=True)
        total = total + F.cross_entropy(scores[rows], target)
    return total


class ClipTraining(Training):
    """The state of a run: all that a checkpoint holds."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, merges: Path) -> None:
        super().__init__(recipe.steps, recipe.seed)
        self.recipe = recipe
        self.world, self.tokenizer = World(CONFIG.image_size), tokenizer
        self.tokenize = mini_tokenizer(ARCHITECTURE["text_cfg"]["context_length"], merges)
        self.config = ARCHITECTURE | {
            "text_cfg": ARCHITECTURE["text_cfg"] | {"vocab_size": self.tokenize.vocab_size},
            "mean": MEAN,
            "std": STD,
            "words": vocabulary(),
        }
        self.model = build(self.config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), recipe.learning_rate, weight_decay=0.05, fused=True)
        self.captions = all_captions()

    def pictures(self, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        """Pictures of the scenes, part of them through the tokenizer; and which of them are worth a caption."""
        images, _ = self.world.render(scenes)
        through = torch.rand(len(scenes)) < self.recipe.reconstructed
        damaged = through & (torch.rand(len(scenes)) < self.recipe.damaged / self.recipe.reconstructed)
        with torch.no_grad():
            features = self.tokenizer.encode(images[through])
            spoiled = torch.rand(features.shape[:2]) < torch.rand(len(features), 1) * 0.6 + 0.4
            codes = self.tokenizer.lookup(torch.randint(self.tokenizer.codebook_size, features.shape[:2]))
            tokens = torch.where(
                (spoiled & damaged[through, None])[..., None], codes, self.tokenizer.quantize(features)
            )
            images[through] = self.tokenizer.decode(tokens, quantize=False).clamp(0, 1)
        return images, ~damaged

    def advance(self) -> float:
        """One training step; returns its loss."""
        scenes = sample_scenes(self.recipe.batch, self.rng)
        images, worth = self.pictures(scenes)
        images = torch.cat([augment(part, self.rng) for part in images.split(12)])
        captions = [full_caption(scene) for scene in scenes[: self.recipe.captions // 2]]
        captions += self.rng.choices(self.captions, k=self.recipe.captions - len(captions))
        captions = list(dict.fromkeys(captions))
        matches = torch.tensor([[c.true_of(s) for c in captions] for s in scenes]) & worth[:, None]
        texts = self.tokenize([caption.text(self.rng) for caption in captions])
        normalized = (images - MEAN[0]) / STD[0]
        picture, text, scale = self.model(normalized, texts)[:3]
        loss = multi_positive_loss(picture, text, matches, scale.clamp(max=50))
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
def accuracy(training: ClipTraining, reconstructed: bool, count: int = 384) -> tuple[float, float]:
    """How often the full caption of a picture is the best of all full captions: on seen and on held-out scenes."""
    training.model.eval()
    captions = [c for c in training.captions if c.subject and c.ground and c.lighting]
    texts = training.model.encode_text(training.tokenize([c.text() for c in captions]), normalize=True)
    rates = []
    for unseen in (False, True):
        scenes = random.Random(1).sample([s for s in all_scenes() if held_out(s) == unseen], count)
        images, _ = training.world.render(scenes)
        if reconstructed:
            images = training.tokenizer.decode(training.tokenizer.encode(images)).clamp(0, 1)
        embedded = training.model.encode_image((images - MEAN[0]) / STD[0], normalize=True)
        best = (embedded @ texts.T).argmax(1).tolist()
        rates.append(sum(captions[i] == full_caption(s) for i, s in zip(best, scenes, strict=True)) / count)
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
        lambda: "right on reconstructions {:.3f}, held-out {:.3f}".format(*accuracy(training, True)),
    )
    export(training, arguments.out)
    for reconstructed in (False, True):
        seen, unseen = accuracy(training, reconstructed)
        print(f"{'reconstructions' if reconstructed else 'renders'}: {seen:.3f} right, held-out {unseen:.3f}")


if __name__ == "__main__":
    main()
