"""Trains the judge that ships: `python -m training.judge_network`. Interrupt and run again: it goes on where it was.

A small convolutional network learns to name the attributes of pictures of the mini world and to refuse what is none:
a part of each batch are renders, the rest is of a stock of pictures that the tokenizer made well or badly and of
spoilt renders (`training.stock`), a new one for each chapter of the training. Needs the tokenizer and the CLIP in
place, which make the bad pictures; it is told nothing of either.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import tokenopt_core as to
from tokenopt_core.mini_judge import FOLDER, SceneReader
from training.captions import WORDS
from training.judge import Judge
from training.loop import Training, fast_arithmetic, rate, run
from training.stock import Maker
from training.world import ATTRIBUTES, SIZE, Album, blurred, held_out, sample_scenes, values_of

WIDTHS = (16, 32, 64, 128, 192)
SHIFT = 2  # px, of the pictures in any direction


@dataclass(frozen=True)
class Recipe:
    """What the training does, and for how long."""

    chapters: int = 8
    steps_a_chapter: int = 220
    batch: int = 64
    renders: float = 0.4  # share of a batch; the rest is of the stock
    learning_rate: float = 3e-3
    warmup: int = 60
    final_rate: float = 0.02  # share of the learning rate that the cosine ends at
    weight_decay: float = 0.02
    smoothing: float = 0.01  # of what the network is told, so that it never claims to be certain
    real_weight: float = 2.0  # of the output "real", beside six attributes
    seed: int = 77


class JudgeTraining(Training):
    """The state of a run: all that a checkpoint holds. The stock is made again from the chapter's number."""

    model: SceneReader

    def __init__(self, recipe: Recipe, tokenizer: to.Tokenizer, clip: to.Clip) -> None:
        super().__init__(recipe.chapters * recipe.steps_a_chapter, recipe.seed)
        self.recipe = recipe
        self.model = SceneReader(SIZE, WIDTHS, ATTRIBUTES).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.album = Album()
        self.maker = Maker(self.album, Judge(self.album), tokenizer, clip)
        self.chapter = -1

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (B, 3, S, S), their attributes as numbers (B, attributes), and 1 for real ones, else 0, (B,)."""
        count = round(self.recipe.renders * self.recipe.batch)
        scenes = sample_scenes(count, self.rng)
        chosen = torch.randint(len(self.stock.real), (self.recipe.batch - count,))
        pictures = torch.cat([self.album.pictures(scenes), self.stock.pictures[chosen].float() / 255])
        values = torch.cat([torch.tensor([values_of(scene) for scene in scenes]), self.stock.values[chosen]])
        return disturbed(pictures, self.rng), values, torch.cat([torch.ones(count), self.stock.real[chosen]])

    def loss(self) -> Tensor:
        """Attributes of the real pictures, and which these are."""
        recipe = self.recipe
        pictures, values, real = self.batch()
        with fast_arithmetic():
            read = self.model(pictures.contiguous(memory_format=torch.channels_last))
        named = torch.zeros(())
        for name, column in zip(ATTRIBUTES, values.T, strict=True):
            error = F.nll_loss(read[name], column, reduction="none") * (1 - recipe.smoothing)
            error = error - recipe.smoothing * read[name].mean(1)
            named = named + (error * real).sum() / real.sum()
        told = real * (1 - 2 * recipe.smoothing) + recipe.smoothing
        return named + recipe.real_weight * F.binary_cross_entropy_with_logits(read["real"], told)

    def advance(self) -> float:
        """One training step; returns its loss."""
        recipe = self.recipe
        if self.step // recipe.steps_a_chapter != self.chapter:
            self.chapter = self.step // recipe.steps_a_chapter
            self.stock = self.maker.make(1000 * recipe.seed + self.chapter)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate(self.step, self.steps, recipe.warmup, recipe.final_rate)
        self.model.train()
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def report(self, count: int = 288) -> str:
        """How many renders of held-out combinations it reads right, and how many of them it takes for real."""
        scenes = random.Random(1).sample([s for s in self.album.scenes if held_out(s)], count)
        self.model.eval()
        read = self.model(self.album.pictures(scenes))
        values = torch.tensor([values_of(scene) for scene in scenes])
        right = torch.stack([read[name].argmax(1) for name in ATTRIBUTES], 1) == values
        real = f"{float((read['real'] > 0).float().mean()):.3f}"
        return f"held-out renders: all read right {float(right.all(1).float().mean()):.3f}, taken for real {real}"


def disturbed(pictures: Tensor, rng: random.Random) -> Tensor:
    """Pictures a little moved, brighter or darker, noisy, and some of them blurred, as no loss to what they show."""
    count, size = len(pictures), pictures.shape[-1]
    if rng.random() < 0.7:
        some = torch.rand(count) < 0.4
        pictures[some] = blurred(pictures[some], rng.uniform(0.002, 0.007))
    padded = F.pad(pictures, [SHIFT] * 4, mode="replicate")
    offsets = torch.randint(2 * SHIFT + 1, (count, 2)).tolist()
    pictures = torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, offsets, strict=True)])
    pictures *= 1 + 0.05 * (2 * torch.rand(count, 1, 1, 1) - 1)
    pictures += 0.02 * (2 * torch.rand(count, 1, 1, 1) - 1)
    pictures += 0.02 * torch.rand(count, 1, 1, 1) * torch.randn_like(pictures)
    coarse = F.interpolate(torch.randn(count, 3, size // 8, size // 8), size)
    pictures += 0.02 * torch.rand(count, 1, 1, 1) * coarse
    return pictures.clamp_(0, 1).mul_(255).round_().div_(255)


def phrases() -> dict[str, tuple[str, str]]:
    """What a prompt may say -> the attribute and its value; a value's own name too, where it can mean nothing else."""
    known = {phrase: (name, value) for name, kinds in WORDS.items() for value, said in kinds.items() for phrase in said}
    plain = {value: (name, value) for name, values in ATTRIBUTES.items() if name != "focus" for value in values}
    return plain | known


def export(training: JudgeTraining, folder: Path) -> None:
    """Writes config.json and model.safetensors (float16)."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {"steps_done": training.step, "seconds": round(training.seconds)}
    config = {
        "image_size": SIZE, "widths": WIDTHS, "attributes": ATTRIBUTES, "phrases": phrases(),
        "training": asdict(training.recipe) | done,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = training.model.state_dict().items()
    kept = {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in state}
    save_file(kept, folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chapters", type=int, default=Recipe.chapters)
    parser.add_argument("--tokenizer", default="mini", help="a name or a folder: what makes good and bad pictures")
    parser.add_argument("--checkpoint", type=Path, default=Path(".cache/training/judge.pt"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    recipe = Recipe(chapters=arguments.chapters)
    training = JudgeTraining(recipe, to.load_tokenizer(arguments.tokenizer), to.load_clip("mini"))
    run(training, arguments.checkpoint, training.report)
    export(training, arguments.out)
    print(training.report())


if __name__ == "__main__":
    main()
