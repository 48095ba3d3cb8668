"""What the judges of the mini world make of pictures that are known: `python benchmarks/judges.py --n 128 --seed 0`.

Clean renders and their reconstructions by the tokenizer are the ceiling of what any edit can reach; unedited inputs,
asked for an edit that nobody made, and random tokens, asked for a random scene, are the floor. Halves, squares and
cross-fades of two pictures, and tokens half-way between two pictures', are what no judge should take for a picture of
the world. Prints a table in Markdown and the same as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

import tokenopt_core as to  # noqa: E402
from training.panel import REAL, Opinion, Panel  # noqa: E402
from training.world import ATTRIBUTES, Album, Scene, held_out, sample_scenes  # noqa: E402

AT_ONCE = 32


@dataclass(frozen=True)
class Sort:
    """Pictures of one kind, and the scene that each is asked for."""

    name: str
    pictures: Tensor  # (N, 3, S, S)
    wanted: Sequence[Scene]


def edited(scene: Scene, rng: random.Random, name: str = "") -> Scene:
    """The scene with one attribute changed; any, if no name is given."""
    name = name or rng.choice(list(ATTRIBUTES))
    return replace(scene, **{name: rng.choice([k for k in ATTRIBUTES[name] if k != getattr(scene, name)])})


def squares(first: Tensor, second: Tensor, generator: torch.Generator, side: int = 32) -> Tensor:
    """Pictures whose squares of `side` px are of one or the other at random."""
    cells = first.shape[-1] // side
    chosen = torch.rand(len(first), 1, cells, cells, generator=generator) < 0.5
    return torch.where(F.interpolate(chosen.float(), first.shape[-1]) > 0.5, second, first)


def halves(first: Tensor, second: Tensor) -> Tensor:
    """The left half of one picture, the right half of another."""
    middle = first.shape[-1] // 2
    return torch.cat([first[..., :middle], second[..., middle:]], -1)


@torch.no_grad()
def sorts(album: Album, tokenizer: to.Tokenizer, count: int, seed: int) -> list[Sort]:
    """All kinds of pictures, `count` of each."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    scenes, others = (sample_scenes(count, rng) for _ in range(2))
    renders, second = album.pictures(scenes), album.pictures(others)
    twin = album.pictures([edited(scene, rng, "subject") for scene in scenes])
    unseen = rng.sample([scene for scene in album.scenes if held_out(scene)], min(count, 288))
    tokens, far, new = (
        torch.cat([tokenizer.quantize(tokenizer.encode(part)) for part in pictures.split(AT_ONCE)])
        for pictures in (renders, second, album.pictures(unseen))
    )

    def decode(features: Tensor) -> Tensor:
        return torch.cat([tokenizer.decode(part, quantize=False) for part in features.split(AT_ONCE)]).clamp(0, 1)

    reconstructed = decode(tokens)
    drawn = to.random_features(tokenizer, count, generator=generator, start="codes")
    return [
        Sort("renders", renders, scenes),
        Sort("reconstructions (ceiling)", reconstructed, scenes),
        Sort("the same of held-out combinations", decode(new), unseen),
        Sort("unedited inputs (floor)", reconstructed, [edited(scene, rng) for scene in scenes]),
        Sort("random tokens (floor)", decode(drawn), others),
        Sort("tokens half-way to another picture's", decode(torch.lerp(tokens, far, 0.5)), scenes),
        Sort("halves of two pictures", halves(renders, second), scenes),
        Sort("squares of two pictures", squares(renders, second, generator), scenes),
        Sort("cross-fades of two pictures, half each", torch.lerp(renders, second, 0.5), scenes),
        Sort("cross-fades of two subjects, half each", torch.lerp(renders, twin, 0.5), scenes),
        Sort("cross-fades of two subjects, a quarter", torch.lerp(renders, twin, 0.25), scenes),
        Sort("noise", torch.rand(renders.shape, generator=generator), scenes),
    ]


def share(flags: Sequence[bool]) -> float:
    return round(sum(flags) / len(flags), 4)


def row(name: str, opinions: Sequence[Opinion], wanted: Sequence[Scene]) -> dict[str, Any]:
    """What the judges say of one kind of pictures: shares, and medians in dB."""
    pairs = list(zip(opinions, map(asdict, wanted), strict=True))
    return {
        "pictures": name,
        "n": len(pairs),
        "nearest: clean": share([o.nearest.clean for o in opinions]),
        "nearest: as asked": share([o.nearest.agrees(**goal) for o, goal in pairs]),
        "network: clean": share([o.network.real >= REAL for o in opinions]),
        "network: as asked": share([o.network.real >= REAL and o.network.values == goal for o, goal in pairs]),
        "both: clean": share([o.clean for o in opinions]),
        "both: as asked": share([o.agrees(**goal) for o, goal in pairs]),
        "subject as asked": share([o.agrees(subject=goal["subject"]) for o, goal in pairs]),
        "dB": round(median(o.nearest.psnr for o in opinions), 1),
        "margin": round(median(o.nearest.margin for o in opinions), 1),
    }


def report(panel: Panel, kinds: Sequence[Sort]) -> list[dict[str, Any]]:
    """The table, a row for each kind."""
    rows = []
    for kind in kinds:
        opinions = [opinion for part in kind.pictures.split(AT_ONCE) for opinion in panel(part)]
        rows.append(row(kind.name, opinions, kind.wanted))
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([format_cell(value) for value in line.values()] for line in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) and value <= 1 else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=128, help="pictures of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", default="mini", help="a name or a folder")
    options = parser.parse_args()
    album = Album()
    rows = report(Panel(album), sorts(album, to.load_tokenizer(options.tokenizer), options.n, options.seed))
    print(markdown(rows))
    print(json.dumps({"n": options.n, "seed": options.seed, "tokenizer": options.tokenizer, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
