"""Measures a tokenizer's features, mini's by default, over pictures of the mini world: `python -m training.statistics`.

Mean and standard deviation of each position and channel, which Random Features starts from.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from safetensors.torch import save_file

import tokenopt_core as to
from tokenopt_core.loading import MINI, STATISTICS
from training.world import World, sample_scenes

PICTURES = 2048


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=MINI / "tokenizer", help="of the tokenizer; default: mini's")
    folder = parser.parse_args().folder
    tokenizer = to.load_tokenizer(folder)
    world, rng = World(tokenizer.image_size), random.Random(0)
    chunks = [tokenizer.encode(world.render(sample_scenes(64, rng))[0]) for _ in range(PICTURES // 64)]
    features = torch.cat(chunks)
    save_file({"mean": features.mean(0), "std": features.std(0)}, folder / STATISTICS)
    rms = features.square().mean().sqrt()
    print(f"{len(features)} pictures: spread {features.std(0).mean():.2f}, root mean square {rms:.2f}")


if __name__ == "__main__":
    main()
